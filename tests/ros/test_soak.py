# SPDX-License-Identifier: Apache-2.0
"""The soak tool in a short run with cheap faults: it runs, counts and reports."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

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


def test_a_long_run_of_restarts_alone_has_an_end() -> None:
    """After the first quarter no fault of this kind is left, and the run goes on without faults."""
    from tests.soak import RESTARTS, Soak

    draws: list[list[str]] = []

    def permutation(names: list[str]) -> list[str]:
        assert len(draws) < 100, "the schedule looks for a fault for ever"
        draws.append(names)
        return names

    late = object.__new__(Soak)
    late.options = argparse.Namespace(faults=list(RESTARTS), minutes=20.0)
    late.rng = SimpleNamespace(permutation=permutation)  # type: ignore[assignment]
    late.start = time.monotonic() - 10 * 60
    assert list(late._schedule()) == []
    late.options.faults = [*RESTARTS, "hostile"]
    schedule = late._schedule()
    assert [next(schedule) for _ in range(3)] == ["hostile"] * 3
    late.start = time.monotonic()
    fresh = late._schedule()
    assert {next(fresh) for _ in range(4)} == {*RESTARTS, "hostile"}
