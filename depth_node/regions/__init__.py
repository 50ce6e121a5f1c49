# SPDX-License-Identifier: Apache-2.0
"""Segmentation of images into regions: label maps, classical or from a network, and propagation."""
