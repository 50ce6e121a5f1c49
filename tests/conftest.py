# SPDX-License-Identifier: Apache-2.0
"""Fixtures and hooks that all tiers of tests share."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.helpers import REPO

if TYPE_CHECKING:
    from tests.helpers.gpu_on_cpu import Machine


# The files that take longest. Workers begin with them, so that none starts one at the end while the
# others are idle.
LONG_FILES = (
    "tests/engine/test_tensorrt_rtx.py",
    "tests/ros/test_demo_live.py",
    "tests/benchmarks/test_deskew.py",
    "tests/ros/test_node.py",
    "tests/training/export/test_segment_anything.py",
    "tests/ros/process/test_process.py",
    "tests/ros/bags/test_bag_mutants.py",
    "tests/ros/test_soak.py",
)
FAST_TIER_IGNORES = [str(REPO / "tests" / name) for name in ("ros", "training")]


def pytest_configure(config: pytest.Config) -> None:
    """Select the fast tier under `colcon test`, limit a worker's threads, handle SIGINT and SIGHUP.

    A background job of a shell ignores SIGINT, a job under nohup ignores SIGHUP. Processes that the
    tests start inherit an ignored signal, but not a handler, so handlers are installed for both.
    `colcon test` is recognised by the name of its report, which is the package's.
    """
    if getattr(config.option, "junitprefix", None) == "depth_node":
        config.option.markexpr = "not slow and not gpu"
        config.option.ignore = [*(config.option.ignore or []), *FAST_TIER_IGNORES]
    if hasattr(config, "workerinput"):  # otherwise every worker's torch and BLAS use all cores
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        share = (cores or 1) // int(config.workerinput["workercount"])
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, share)))
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, lambda *_: None)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Sort LONG_FILES first for the workers, which take file by file in this order (Makefile)."""
    if hasattr(config, "workerinput"):
        place = {REPO / name: number for number, name in enumerate(LONG_FILES)}
        items.sort(key=lambda item: place.get(item.path, len(place)))


def absent(reason: str, promise: str) -> None:
    """Skip with the reason, or fail if the environment promises the part (REQUIRE_...=1)."""
    if os.environ.get(promise) == "1":
        pytest.fail(f"{reason} ({promise}=1 promises it)")
    pytest.skip(reason)


@pytest.fixture(scope="session")
def repo() -> Path:
    """Root of the checkout."""
    return REPO


@pytest.fixture(scope="session", autouse=True)
def _depth_tools_on_path(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Put `depth_tools` on PATH where it is missing, as under `colcon test`.

    Without it the package's messages name `ros2 run` instead, and tests expect `depth_tools`.
    """
    if shutil.which("depth_tools") is not None:
        yield
        return
    command = tmp_path_factory.mktemp("bin") / "depth_tools"
    run = "import sys; from depth_node.start import tools; sys.exit(tools())"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -c "{run}" "$@"\n')
    command.chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{command.parent}{os.pathsep}{os.environ.get('PATH', '')}")
        yield


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder with real frames and a real network, which are not part of the project."""
    folder = REPO.parent / "shared"
    if not (folder / "data").is_dir():
        absent(f"no real frames at {folder}", "REQUIRE_SHARED")
    return folder


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A simulated GPU: CUDA and TensorRT on the CPU."""
    from tests.helpers.gpu_on_cpu import Machine

    played = Machine()
    played.install(monkeypatch)
    return played
