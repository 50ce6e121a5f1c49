# SPDX-License-Identifier: Apache-2.0
"""What the node receives: its subscriptions, the camera and the LiDARs."""
