# SPDX-License-Identifier: Apache-2.0
"""A replay reports the same findings on the LiDARs as the live node, and since which frame."""

from __future__ import annotations

import dataclasses
import re

from depth_node.benchmarks.calibration import faulty_frames
from depth_node.recordings.extrinsics_log import ExtrinsicsLog
from tests.helpers.walks import furnished_room

APART_NS = 400_000_000  # far enough apart that each frame is used


def test_changes_are_kept_with_their_frame() -> None:
    walk = furnished_room()
    log = ExtrinsicsLog()
    assert log.sentences() == []
    number = 0
    for frames in (walk.frames(64), faulty_frames(walk, 64, "yaw")):
        for frame in [*frames, *frames[::-1]]:
            log.add(f"{number:03d}", dataclasses.replace(frame, stamp_ns=number * APART_NS))
            number += 1
    sentences = log.sentences()
    found = [re.fullmatch(r"extrinsics from frame (\d+) on: (\w+).*", s) for s in sentences[:3]]
    numbers, findings = zip(*(match.groups() for match in found if match), strict=True)
    assert findings == ("consistent", "unknown", "wrong")
    assert 12 < int(numbers[0]) < 26 and int(numbers[1]) == 27 and int(numbers[2]) >= 39
    assert sentences[-1].startswith("extrinsics at the end: wrong by about")
    assert "deg (yaw)" in sentences[-1]
