# SPDX-License-Identifier: Apache-2.0
"""`make gpu-check`: its JSON file, its row, its exit status."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from depth_node.benchmarks import gpu
from depth_node.engine import EngineError, gpu_kernels

pytest.importorskip("onnxruntime")
from tests.helpers.gpu_on_cpu import Machine


@pytest.mark.slow
def test_gpu_check_writes_its_json_and_row(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the simulated GPU its logic and the agreement are tested; the times mean nothing."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(gpu, "_COPY_BYTES", 4_000_000)
    assert gpu.main(["--repeats", "2", "--out", str(tmp_path)]) == 0
    facts = json.loads((tmp_path / "gpu_check.json").read_text())
    assert facts["gpu"] == "Played GPU" and facts["failures"] == []
    assert set(facts["kernels"]) == {"image_vga", "image_1080p", "regions", "field"}
    assert all(found["agrees"] for found in facts["kernels"].values())
    assert facts["cycles"]["lost_bytes"] == 0
    assert "correlation 1.000000" in facts["engines"]["tensorrt"]["check"]
    assert facts["engines"]["tensorrt"]["cuda graph"] and facts["engines"]["tensorrt"]["p95_ms"] > 0
    assert {"engine", "fit", "total"} <= set(facts["pipelines"]["tensorrt"]["stages_ms"])
    assert facts["engine_cycles"]["tensorrt"]["lost_bytes"] == 0
    assert facts["left_out"] == []
    head, line, row = (tmp_path / "gpu_check.md").read_text().splitlines()
    assert head.count("|") == line.count("|") == row.count("|")
    assert machine.leaks == {}


@pytest.mark.slow
def test_gpu_check_fails_where_a_kernel_does(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    twin = gpu_kernels.apply_grid
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(gpu, "_COPY_BYTES", 4_000_000)
    monkeypatch.setattr(gpu_kernels, "apply_grid", lambda *given: twin(*given) + np.float32(0.01))
    assert gpu.main(["--repeats", "1", "--out", str(tmp_path)]) == 1
    facts = json.loads((tmp_path / "gpu_check.json").read_text())
    assert [text for text in facts["failures"] if text.startswith("kernel field")]


def test_gpu_check_without_a_gpu_says_so(
    machine: Machine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.driver_version = 0
    assert gpu.main(["--out", str(tmp_path)]) == 2
    assert "no NVIDIA driver" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_gpu_check_begins_nothing_after_its_time_and_keeps_what_is_done(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert gpu.main(["--repeats", "1", "--limit-s", "0", "--out", str(tmp_path)]) == 0
    facts = json.loads((tmp_path / "gpu_check.json").read_text())
    assert {"bandwidth", "kernels", "engine tensorrt"} <= set(facts["left_out"])
    head, _, row = (tmp_path / "gpu_check.md").read_text().splitlines()
    assert head.count("|") == row.count("|") and "not run" in row


def test_a_back_end_that_cannot_start_is_no_failure(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """onnxruntime-gpu lists the provider of TensorRT whether TensorRT is installed or not."""
    monkeypatch.setattr(gpu, "backends", lambda: {"onnxruntime-tensorrt": ""})
    monkeypatch.setattr(gpu, "_COPY_BYTES", 4_000_000)
    assert gpu.main(["--repeats", "1", "--out", str(tmp_path)]) == 0
    facts = json.loads((tmp_path / "gpu_check.json").read_text())
    assert "cannot be used here" in facts["engines"]["onnxruntime-tensorrt"]["not run"]
    assert "onnxruntime-tensorrt" not in facts["pipelines"]


def test_an_engine_that_fails_when_it_runs_is_a_failure_and_the_others_are_still_checked(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The status is 1, because 2 means that nothing could be checked."""

    def lost(*_: object) -> None:
        raise EngineError("the GPU is lost: restart the machine")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(gpu, "backends", lambda: {"tensorrt": "", "onnxruntime-cpu": ""})
    monkeypatch.setattr(gpu, "_COPY_BYTES", 4_000_000)
    monkeypatch.setattr(gpu, "_kernels", lost)
    monkeypatch.setattr(gpu, "_times", lost)
    assert gpu.main(["--repeats", "1", "--out", str(tmp_path)]) == 1
    facts = json.loads((tmp_path / "gpu_check.json").read_text())
    assert [text for text in facts["failures"] if text.startswith("kernels: the GPU is lost")]
    assert [text for text in facts["failures"] if text.startswith("tensorrt: the GPU is lost")]
    assert facts["engines"]["onnxruntime-cpu"] == {"failed": "the GPU is lost: restart the machine"}
    assert "not run" in (tmp_path / "gpu_check.md").read_text()
    assert machine.leaks == {}
