# SPDX-License-Identifier: Apache-2.0
"""Procedural rooms and outdoor scenes with exact depth, regions, LiDAR: demo, tests, training."""
