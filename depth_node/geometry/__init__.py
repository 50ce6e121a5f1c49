# SPDX-License-Identifier: Apache-2.0
"""Cameras, rigid transforms, and LiDAR points as pixels with a measured depth."""
