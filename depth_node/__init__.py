# SPDX-License-Identifier: Apache-2.0
"""Metric depth from a camera image and sparse LiDAR points, region by region."""

import numpy

__version__ = "0.1.0"

if tuple(int(part) for part in numpy.__version__.split(".")[:2]) < (1, 26):
    # Checked here, because older versions do not fail cleanly: with 1.21 the package's code
    # crashes.
    raise ImportError(
        f"depth_node needs NumPy 1.26 or newer, and {numpy.__version__} is installed:"
        " python3 -m pip install --user 'numpy>=1.26,<2' (2.x where nothing, such as"
        " apt's OpenCV, was built for 1.x)."
    )
