# SPDX-License-Identifier: Apache-2.0
"""Images of results: colour scales, points, point clouds, text and panels."""
