# SPDX-License-Identifier: Apache-2.0
"""The soak itself, short and with faults that are cheap: the tool runs, counts and reports."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import REPO

pytest.importorskip("rclpy", reason="ROS 2 is not installed")
pytestmark = pytest.mark.slow


def soak(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.soak", *arguments],
        cwd=REPO, capture_output=True, text=True, timeout=400,
    )  # fmt: skip


def test_twenty_seconds_of_soak(tmp_path: Path) -> None:
    done = soak(
        "--minutes", "0.34", "--views", "2", "--calm", "0.5", "1", "--markdown",
        "--out", str(tmp_path), "--faults", "publisher_pause", "zero_stamps", "listeners",
    )  # fmt: skip
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    result = json.loads((tmp_path / "soak.json").read_text(encoding="utf-8"))
    assert result["failures"] == [], said
    assert result["frames"]["in"] > 50 and result["frames"]["out"] > 10, said
    assert sum(result["faults"].values()) >= 1 and result["latency_ms"], said
    assert len(result["samples"]) > 10 and not result["growth"]["judged"], said
    assert "| images in |" in done.stdout
    assert "configured" in (tmp_path / "node.log").read_text(encoding="utf-8")
    again = soak("--from", str(tmp_path / "soak.json"))
    assert (
        again.returncode == 0
        and again.stdout.strip() == done.stdout[done.stdout.index("| what") :].strip()
    )
