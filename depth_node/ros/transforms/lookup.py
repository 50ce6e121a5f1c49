# SPDX-License-Identifier: Apache-2.0
"""The pose of one frame in another at the stamp of an image, from static or moving transforms."""

from __future__ import annotations

import time

from depth_node.ros.transforms.tf import NoTransformError, Transform, TransformSource

LOOK_AGAIN_S = 1.0


class StaleTransformError(NoTransformError):
    """TF has no transform for the stamp, and its newest is too far from it.

    behind_s: how much older than the stamp the newest is; negative where it is newer.
    """

    def __init__(self, behind_s: float) -> None:
        side = "older" if behind_s > 0 else "newer"
        super().__init__(f"the newest is {abs(behind_s):.2f} s {side} than the image")
        self.behind_s = behind_s


class StampedLookup:
    """Looks up T_target_source at stamps of images.

    A chain of static transforms is kept, also when its publisher is gone later, and looked up anew
    every LOOK_AGAIN_S, because a calibration publishes another one. A moving chain is looked up at
    the stamp; where TF is late, the newest transform serves if it is at most `tolerance_s` away.
    """

    def __init__(self, source: TransformSource, tolerance_s: float) -> None:
        self.tolerance_s = tolerance_s
        self._source = source
        self._static: dict[tuple[str, str], tuple[Transform, float]] = {}  # and when it was found

    def find(self, target: str, source: str, stamp_ns: int) -> Transform:
        """T_target_source (4, 4). Raises NoTransformError, a StaleTransformError where TF has the
        chain but not for that time."""
        key = (target, source)
        kept, found_s = self._static.get(key, (None, 0.0))
        if kept is not None and time.monotonic() - found_s < LOOK_AGAIN_S:
            return kept
        try:
            newest, newest_ns = self._source.lookup(target, source, None)
        except NoTransformError:
            if kept is not None:
                return kept
            raise
        if newest_ns == 0:
            self._static[key] = newest, time.monotonic()
            return newest
        self._static.pop(key, None)
        try:
            return self._source.lookup(target, source, stamp_ns)[0]
        except NoTransformError as error:
            behind_s = (stamp_ns - newest_ns) * 1e-9
            if abs(behind_s) <= self.tolerance_s:
                return newest
            raise StaleTransformError(behind_s) from error

    def forget(self) -> None:
        """Look static transforms up again, after a new calibration for instance."""
        self._static.clear()

    def close(self) -> None:
        """End the hold on the source."""
        self._source.close()
