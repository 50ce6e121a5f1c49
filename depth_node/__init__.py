# SPDX-License-Identifier: Apache-2.0
"""Metric depth from a camera image and sparse LiDAR points, region by region."""

__version__ = "0.1.0"
