# SPDX-License-Identifier: Apache-2.0
"""The tables of the calibration benchmark; its cases are tested in tests/calibration."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from depth_node.benchmarks import calibration
from depth_node.benchmarks.calibration import CalibrateCase, MonitorCase
from depth_node.calibration.monitor import Verdict


def test_tables_of_a_few_frames_state_their_number_and_no_nan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So few that the monitor has no verdict: no fault is found, and no frame is consistent."""
    walk: Any = SimpleNamespace(name="room 1")
    estimate: Any = SimpleNamespace(std=np.zeros(7), unknown=())

    def unknown(walk: Any, lines: int, case: str, odometry: bool = True) -> MonitorCase:
        return MonitorCase(walk.name, lines, case, Verdict(), (), odometry)

    monkeypatch.setattr(calibration, "room_sequence", lambda *_: walk)
    monkeypatch.setattr(calibration, "bare_wall_sequence", lambda *_: walk)
    monkeypatch.setattr(calibration, "monitor_case", unknown)
    monkeypatch.setattr(calibration, "monitor_ms", lambda *_: 1.0)
    monkeypatch.setattr(
        calibration,
        "calibrate_case",
        lambda walk, lines, late, _: CalibrateCase(walk.name, lines, late, np.zeros(7), estimate),
    )
    tables = calibration.study(tmp_path, (1,), frames=7)
    assert tables[0].notes[0].startswith("7 frames at 10 Hz")
    assert not [cell for table in tables for row in table.rows for cell in row if "nan" in cell]
    right = next(row for row in tables[0].rows if row[1] == "right")
    pitch = next(row for row in tables[0].rows if row[1] == "pitch")
    assert right[-1] == "no verdict yet" and pitch[-2:] == ["0", "-"]
