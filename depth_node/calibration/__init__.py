# SPDX-License-Identifier: Apache-2.0
"""Extrinsics and time offset of a LiDAR, checked and estimated by the edges of image and scan."""
