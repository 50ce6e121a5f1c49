# SPDX-License-Identifier: Apache-2.0
"""Whether the LiDAR is where it is said to be, and when: told by edges of image and scan."""
