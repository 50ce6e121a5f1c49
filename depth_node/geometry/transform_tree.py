# SPDX-License-Identifier: Apache-2.0
"""Transforms between frames over time: recorded TF without a running ROS."""

from __future__ import annotations

import bisect
from array import array
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation, Slerp

from depth_node.geometry.rigid import invert_rigid

Transform = NDArray[np.float64]


class TransformError(LookupError):
    """Two frames are not connected, or not at this time; the message names them."""


_NUMBERS = 12  # stored per transform: its upper three rows


@dataclass
class _Link:
    """T_parent_child of one frame at each of its stamps; without stamps it is static.

    The numbers are stored in one flat array, because an hour of an arm's joints has millions of
    transforms.
    """

    parent: str
    stamps_ns: array[int] = field(default_factory=lambda: array("q"))
    numbers: array[float] = field(default_factory=lambda: array("d"))

    def put(self, T: Transform, stamp_ns: int | None) -> None:
        numbers = array("d", np.asarray(T, np.float64)[:3].tobytes())
        if stamp_ns is None:
            self.numbers = numbers
            return
        index = bisect.bisect_left(self.stamps_ns, stamp_ns)
        place = index * _NUMBERS
        if index < len(self.stamps_ns) and self.stamps_ns[index] == stamp_ns:
            self.numbers[place : place + _NUMBERS] = numbers
            return
        self.stamps_ns.insert(index, stamp_ns)
        self.numbers[place:place] = numbers

    def _transform(self, index: int) -> Transform:
        T = np.eye(4)
        place = index * _NUMBERS
        T[:3] = np.reshape(self.numbers[place : place + _NUMBERS], (3, 4))
        return T

    def at(self, stamp_ns: int, tolerance_ns: float, name: str) -> Transform:
        if not self.stamps_ns:
            return self._transform(0)
        after = bisect.bisect_left(self.stamps_ns, stamp_ns)
        if 0 < after < len(self.stamps_ns):
            return _interpolate(
                self._transform(after - 1),
                self._transform(after),
                (stamp_ns - self.stamps_ns[after - 1])
                / (self.stamps_ns[after] - self.stamps_ns[after - 1]),
            )
        end = min(after, len(self.stamps_ns) - 1)
        apart_ns = abs(stamp_ns - self.stamps_ns[end])
        if apart_ns > tolerance_ns:
            raise TransformError(
                f"the transform of {name} is known from {self.stamps_ns[0] * 1e-9:.3f} s to"
                f" {self.stamps_ns[-1] * 1e-9:.3f} s, and {stamp_ns * 1e-9:.3f} s was asked for"
            )
        return self._transform(end)


class TransformTree:
    """A tree of frames with transforms T_parent_child, (4, 4).

    Between two stamps a transform is interpolated, as tf2 does; before the first and after the last
    stamp it is valid for tolerance_s.
    """

    def __init__(self, tolerance_s: float = 0.1) -> None:
        self._tolerance_ns = tolerance_s * 1e9
        self._links: dict[str, _Link] = {}

    def add(self, parent: str, child: str, T: Transform, stamp_ns: int | None = None) -> None:
        """Add T_parent_child (4, 4) at a stamp, or static (None).

        A new parent replaces the old one.
        """
        parent, child = parent.lstrip("/"), child.lstrip("/")
        link = self._links.get(child)
        if link is None or link.parent != parent or stamp_ns is None or not link.stamps_ns:
            link = self._links[child] = _Link(parent)
        link.put(T, stamp_ns)

    def look_up(self, target: str, source: str, stamp_ns: int) -> Transform:
        """Return T_target_source (4, 4) at a stamp.

        Raises TransformError if the frames are not connected, or not known at this time.
        """
        above_target, above_source = self._chain(target), self._chain(source)
        joint = next((name for name in above_source if name in above_target), None)
        if joint is None:
            raise TransformError(
                f"no transform leads from {source or '(no frame)'} to {target or '(no frame)'}"
            )
        T_joint_target = self._down(above_target[: above_target.index(joint)], stamp_ns)
        T_joint_source = self._down(above_source[: above_source.index(joint)], stamp_ns)
        return invert_rigid(T_joint_target) @ T_joint_source

    def newest_ns(self, target: str, source: str) -> int:
        """Return the stamp until which T_target_source is known, 0 if all links are static.

        Raises TransformError if the frames are not connected, or not known at that stamp.
        """
        chains = self._chain(target), self._chain(source)
        moving = {
            child: self._links[child].stamps_ns[-1]
            for chain, other in (chains, chains[::-1])
            for child in chain
            if child not in other and child in self._links and self._links[child].stamps_ns
        }
        self.look_up(target, source, min(moving.values(), default=0))
        return min(moving.values(), default=0)

    def _chain(self, frame: str) -> list[str]:
        chain = [frame.lstrip("/")]
        while chain[-1] in self._links:
            parent = self._links[chain[-1]].parent
            if parent in chain:
                raise TransformError(f"the transforms go round in a circle at {parent}")
            chain.append(parent)
        return chain

    def _down(self, chain: list[str], stamp_ns: int) -> Transform:
        T = np.eye(4)
        for child in chain:
            link = self._links[child]
            name = f"{child} in {link.parent}"
            T = link.at(stamp_ns, self._tolerance_ns, name) @ T
        return T


def _interpolate(first: Transform, second: Transform, fraction: float) -> Transform:
    """Interpolate translations linearly and rotations along the shortest arc; 0 gives `first`."""
    turns = Rotation.from_matrix(np.stack([first[:3, :3], second[:3, :3]]))
    T = np.eye(4)
    T[:3, :3] = Slerp([0.0, 1.0], turns)(fraction).as_matrix()
    T[:3, 3] = (1 - fraction) * first[:3, 3] + fraction * second[:3, 3]
    return T
