# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the command line's tests: an own folder, recorded frames, a bag."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.recordings import BagWriter, write_frame


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands write into the folder they are called in."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recordings") / "hall"
    for name in ("a", "b"):
        write_frame(folder / name)
    return folder


@pytest.fixture
def bag(tmp_path: Path) -> Path:
    pytest.importorskip("rosbags", reason="rosbags is not installed")
    pytest.importorskip("sensor_msgs", reason="the ROS message packages are not installed")
    writer = BagWriter(tmp_path / "bag")
    for time_s in (1.0, 1.1):
        writer.info(time_s)
        writer.cloud(time_s)
        writer.image(time_s)
    writer.close()
    return tmp_path / "bag"
