# SPDX-License-Identifier: Apache-2.0
"""The executables `depth_node` and `depth_cameras`; without ROS 2 they print one sentence."""

from __future__ import annotations

import sys

from depth_node.ros.process.allocator import keep_memory
from depth_node.ros.process.signals import end_at_once_on_stop


def main() -> int:
    """Run the node; return the exit status: 2 and one sentence on standard error without ROS 2."""
    end_at_once_on_stop()
    keep_memory()  # before rclpy, which starts threads at its import
    try:
        from depth_node.ros import node  # imports rclpy and the message packages
    except ModuleNotFoundError as error:
        return _missing(error)
    return node.main()


def main_cameras() -> int:
    """Run several cameras in this process; return the exit status, as main() does."""
    end_at_once_on_stop()
    keep_memory()
    try:
        from depth_node.ros import cameras
    except ModuleNotFoundError as error:
        return _missing(error)
    return cameras.main()


def _missing(error: ModuleNotFoundError) -> int:
    package = (error.name or "").partition(".")[0]
    if package in ("depth_node", "") or package in sys.stdlib_module_names:
        raise error
    print(
        f"depth_node: the package {package} is missing, and the node needs ROS 2: source it"
        " (`source /opt/ros/jazzy/setup.bash`); `depth_tools doctor` says what else is needed",
        file=sys.stderr,
    )
    return 2


if __name__ == "__main__":
    sys.exit(main())
