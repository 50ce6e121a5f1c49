# SPDX-License-Identifier: Apache-2.0
"""The camera's motion in the world, from TF, for the memory of earlier images and scans."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from depth_node.geometry.rigid import invert_rigid
from depth_node.ros.transforms.tf import NoTransformError, Transform, TransformSource


class CameraMotion:
    """Returns T_world_camera at any time; where TF is late, its newest transform within a
    tolerance.

    world_frame: a frame that stands still, such as odom.
    """

    def __init__(self, world_frame: str, source: TransformSource, tolerance_s: float) -> None:
        self.world_frame = world_frame
        self.tolerance_s = tolerance_s
        self._source = source

    def doubt(self, camera_frame: str) -> str:
        """Return a sentence if only static transforms join the two frames; or ""."""
        try:
            _, newest_ns = self._source.lookup(self.world_frame, camera_frame, None)
        except NoTransformError:
            return ""
        if newest_ns != 0:
            return ""
        return (
            f"world_frame {self.world_frame!r} is joined to {camera_frame!r} by static transforms"
            " alone, so it gives no motion, which is right only for a camera that stands still:"
            " name a frame that the robot moves in, such as odom"
        )

    def pose(self, camera_frame: str, stamp_ns: int) -> Transform:
        """Return T_world_camera (4, 4). Raises NoTransformError with cause and cure."""
        if not camera_frame:
            raise NoTransformError(
                "the image has no frame_id, so its camera's motion cannot be looked up: let the"
                " driver set it or empty world_frame"
            )
        try:
            return self._source.lookup(self.world_frame, camera_frame, stamp_ns)[0]
        except NoTransformError as error:
            cause = str(error)  # not the exception, which would keep the callers' frames alive
        try:
            newest, newest_ns = self._source.lookup(self.world_frame, camera_frame, None)
        except NoTransformError:
            newest, newest_ns = np.eye(4), -1
        if newest_ns >= 0 and abs(stamp_ns - newest_ns) * 1e-9 <= self.tolerance_s:
            return newest
        raise NoTransformError(
            f"the camera's motion is unknown, TF has no {self.world_frame} to {camera_frame} for"
            f" that time ({cause}): start what publishes it, or empty world_frame"
        )

    def until(self, camera_frame: str, now_ns: int) -> Callable[[int], Transform]:
        """Return a function of a time `then` in ns that gives T_now_then (4, 4) of the camera.

        The function raises NoTransformError.
        """
        inverse: list[Transform] = []  # of the pose now; looked up once, when it is first needed

        def since(then_ns: int) -> Transform:
            if then_ns == now_ns:
                return np.eye(4)
            if not inverse:
                inverse.append(invert_rigid(self.pose(camera_frame, now_ns)))
            return inverse[0] @ self.pose(camera_frame, then_ns)

        return since

    def close(self) -> None:
        """End the hold on the source of transforms."""
        self._source.close()
