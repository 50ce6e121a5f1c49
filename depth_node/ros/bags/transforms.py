# SPDX-License-Identifier: Apache-2.0
"""The recorded TF of a bag."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from depth_node.geometry.rigid import rigid_transform
from depth_node.geometry.transform_tree import TransformError, TransformTree
from depth_node.recordings.sources import LeftOut
from depth_node.ros import messages
from depth_node.ros.transforms.tf import NoTransformError
from depth_node.sentences import both_ends


class BagTransforms:
    """The transforms of a bag as a tree and as a TransformSource.

    left_out: counts invalid transforms, which tf2 ignores too. `skipped` has their frames: such a
    transform matters only if a chain lacks it.
    """

    def __init__(self, left_out: LeftOut) -> None:
        self.tree = TransformTree()
        self.skipped: set[str] = set()
        self._left_out = left_out
        self._known: set[str] = set()

    def add(self, recorded: Iterable[tuple[str, int, Any]]) -> None:
        """Add the transforms of TF messages: (topic, time of recording in ns, message) each.

        Frames of an earlier call are skipped.
        """
        children: set[str] = set()
        for topic, recorded_ns, message in recorded:
            for item in message.transforms:
                if item.child_frame_id not in self._known:
                    children.add(item.child_frame_id)
                    self._add(topic, recorded_ns, item)
        self._known |= children

    def _add(self, topic: str, recorded_ns: int, item: Any) -> None:
        move, turn = item.transform.translation, item.transform.rotation
        try:
            with np.errstate(all="ignore"):
                T = rigid_transform((move.x, move.y, move.z), (turn.x, turn.y, turn.z, turn.w))
            parent, child = (
                name.lstrip("/") for name in (item.header.frame_id, item.child_frame_id)
            )
            if not parent or not child or parent == child:
                raise ValueError(f"it is a transform from {child!r} to {parent!r}")
        except ValueError as error:
            self.skipped.add(item.child_frame_id.lstrip("/"))
            self._left_out.add(
                f"{topic}: {both_ends(item.child_frame_id, 100)}: {error}",
                kind=f"transforms of {both_ends(item.child_frame_id, 100)}",
                damaged=False,
            )
            return
        moving = not topic.rpartition("/")[2].startswith("tf_static")
        # The times of an MCAP have 64 bits without sign, those of the tree have a sign.
        stamp = messages.stamp_ns(item.header.stamp) or min(recorded_ns, 2**63 - 1)
        self.tree.add(item.header.frame_id, item.child_frame_id, T, stamp if moving else None)

    def lookup(
        self, target: str, source: str, stamp_ns: int | None
    ) -> tuple[NDArray[np.float64], int]:
        """See TransformSource."""
        try:
            if stamp_ns is not None:
                return self.tree.look_up(target, source, stamp_ns), stamp_ns
            newest_ns = self.tree.newest_ns(target, source)
            return self.tree.look_up(target, source, newest_ns), newest_ns
        except TransformError as error:
            raise NoTransformError(str(error)) from None

    def forget_moving(self) -> None:
        """Do nothing: the tree holds the whole bag."""

    def close(self) -> None:
        """Do nothing: no subscription is held."""
