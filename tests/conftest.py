# SPDX-License-Identifier: Apache-2.0
"""Fixtures that every tier of tests shares."""

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


# Files that take longest: a worker that began with one at the end would leave the others idle.
LONG_FILES = (
    "tests/engine/test_tensorrt_rtx.py",
    "tests/ros/test_demo_live.py",
    "tests/benchmarks/test_deskew.py",
    "tests/ros/test_node.py",
    "tests/training/export/test_segment_anything.py",
    "tests/ros/test_process.py",
    "tests/ros/test_bag_mutants.py",
    "tests/ros/test_soak.py",
)
FAST_TIER_IGNORES = [str(REPO / "tests" / name) for name in ("ros", "training")]


def pytest_configure(config: pytest.Config) -> None:
    """In the background of a shell we are deaf to SIGINT, under nohup to SIGHUP, and the processes
    of tests would be: they inherit what is ignored, but no handler.

    `colcon test`, which names its report after the package, runs the fast tier.
    """
    if getattr(config.option, "junitprefix", None) == "depth_node":
        config.option.markexpr = "not slow and not gpu"
        config.option.ignore = [*(config.option.ignore or []), *FAST_TIER_IGNORES]
    if hasattr(config, "workerinput"):  # each worker's torch and BLAS would have a thread a core
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        share = (cores or 1) // int(config.workerinput["workercount"])
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, share)))
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, lambda *_: None)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Workers, who take file by file in this order (Makefile), begin with the long ones."""
    if hasattr(config, "workerinput"):
        place = {REPO / name: number for number, name in enumerate(LONG_FILES)}
        items.sort(key=lambda item: place.get(item.path, len(place)))


def absent(reason: str, promise: str) -> None:
    """Skip with the reason, or fail where the environment promised the part (REQUIRE_...=1)."""
    if os.environ.get(promise) == "1":
        pytest.fail(f"{reason} ({promise}=1 promises it)")
    pytest.skip(reason)


@pytest.fixture(scope="session")
def repo() -> Path:
    """Root of the checkout."""
    return REPO


@pytest.fixture(scope="session", autouse=True)
def _depth_tools_on_path(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Under `colcon test` the command is not on PATH, and sentences name `ros2 run` (rightly)."""
    if shutil.which("depth_tools") is not None:
        yield
        return
    command = tmp_path_factory.mktemp("bin") / "depth_tools"
    run = "import sys; from depth_node.cli.main import main; sys.exit(main())"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -c "{run}" "$@"\n')
    command.chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{command.parent}{os.pathsep}{os.environ.get('PATH', '')}")
        yield


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder with real frames and a real network; they are not part of the project."""
    folder = REPO.parent / "shared"
    if not (folder / "data").is_dir():
        absent(f"no real frames at {folder}", "REQUIRE_SHARED")
    return folder


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A played GPU: CUDA and TensorRT on the CPU."""
    from tests.helpers.gpu_on_cpu import Machine

    played = Machine()
    played.install(monkeypatch)
    return played
