# SPDX-License-Identifier: Apache-2.0
"""Metric depth from a camera image and sparse LiDAR points, region by region."""

from importlib import metadata

__version__ = "0.1.0"


def _check_numpy() -> None:
    """Raise ImportError for a NumPy that is too old.

    Checked here, because older versions do not fail cleanly: with 1.21 the package's code crashes.
    NumPy itself is not imported, so that depth_node.start can set signals before imports that take
    time.
    """
    try:
        version = metadata.version("numpy")
    except metadata.PackageNotFoundError:  # missing, or installed without metadata
        return
    if tuple(int(part) for part in version.split(".")[:2]) < (1, 26):
        raise ImportError(
            f"depth_node needs NumPy 1.26 or newer, and {version} is installed:"
            " python3 -m pip install --user 'numpy>=1.26,<2' (2.x where nothing, such as"
            " apt's OpenCV, was built for 1.x)."
        )


_check_numpy()
