# SPDX-License-Identifier: Apache-2.0
"""The findings of the node's extrinsics watch on a recording."""

from __future__ import annotations

from depth_node.calibration.mistaken_pose import MistakenPose
from depth_node.calibration.monitor import Finding, Verdict
from depth_node.calibration.watch import ExtrinsicsWatch
from depth_node.frame import FrameInput
from depth_node.prediction import Prediction

_MOST_CHANGES = 20


class ExtrinsicsLog:
    """Judges the LiDARs of a recording and stores at which frame the finding on one changed."""

    def __init__(self) -> None:
        self._watch = ExtrinsicsWatch()
        self._mistaken = MistakenPose()
        self._findings: dict[str, Finding] = {}
        self._changes: list[str] = []

    def add(self, name: str, frame: FrameInput, prediction: Prediction | None = None) -> None:
        """Take the next frame, with its name and the network's prediction for it."""
        self._watch.add(frame)
        if prediction is not None and not frame.echoes:
            self._mistaken.look(frame, prediction)
        for lidar, verdict in self._watch.verdicts.items():
            before = self._findings.get(lidar, Finding.UNKNOWN)
            if verdict.finding is not before and len(self._changes) < _MOST_CHANGES:
                self._changes.append(f"{_head(lidar)} from frame {name} on: {verdict.text()}")
            self._findings[lidar] = verdict.finding

    @property
    def verdicts(self) -> dict[str, Verdict]:
        """The present verdict on each LiDAR, by its name."""
        return self._watch.verdicts

    def sentences(self) -> list[str]:
        """Return a mistaken pose, each change of a finding, and the last finding on each LiDAR."""
        last = [
            f"{_head(lidar)} at the end: {verdict.text()}"
            for lidar, verdict in self._watch.verdicts.items()
        ]
        mistaken = self._mistaken.sentence
        return [*([mistaken] if mistaken else []), *self._changes, *last]


def _head(lidar: str) -> str:
    return f"extrinsics of {lidar}" if lidar else "extrinsics"
