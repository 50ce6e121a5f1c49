# SPDX-License-Identifier: Apache-2.0
"""Procedural rooms with exact depth, regions and LiDAR: for the demo, tests and training."""
