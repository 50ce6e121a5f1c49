# SPDX-License-Identifier: Apache-2.0
"""The bond by which a lifecycle manager, such as Nav2's, detects that the node has died."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rclpy.node import Node

_TOPIC = "bond"  # Nav2's topic, relative to the namespace


class ManagerBond:
    """A bond with the node's name while it is active; does nothing without bondpy."""

    def __init__(self, node: Node) -> None:
        self._bond: Any = None
        try:
            from bondpy.bondpy import Bond
        except ImportError:
            node.get_logger().debug(
                "no bond is offered, bondpy is not installed: install it (apt install"
                " ros-$ROS_DISTRO-bondpy) or give a lifecycle manager bond_timeout 0.0"
            )
            return
        self._bond = Bond(node, _TOPIC, node.get_name())
        self._bond.start()

    def close(self) -> None:
        """Break the bond, so that the manager knows that it ends on purpose."""
        if self._bond is not None:
            self._bond.shutdown()
            self._bond = None
