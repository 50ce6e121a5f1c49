# SPDX-License-Identifier: Apache-2.0
"""Radar, two sensors of different noise and a depth camera's holes, on real frames."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from depth_node.benchmarks import sparse_sensors
from depth_node.benchmarks.sparse_sensors import run_sensors
from depth_node.engine.manifest_writer import write_manifest
from depth_node.engine.options import ModelConfig
from depth_node.inference import DepthModel
from depth_node.recordings.files import FrameError
from tests.helpers.recordings import CAMERA, scene, write_frame


@pytest.mark.slow
def test_each_sensor_is_weighed_as_declared(shared: Path, tmp_path: Path) -> None:
    model = shared / "models" / "fastdepth_nyu_224.onnx"
    manifest = tmp_path / "fastdepth.manifest.yaml"
    write_manifest(model, "depth_metric", manifest=manifest)
    with DepthModel.open(ModelConfig(str(model), str(manifest))) as network:
        table = run_sensors([shared / "data"], network)
    rows = {row[0]: [float(value) for value in row[1:]] for row in table.rows}
    _, inside, _, _ = rows["radar, noise declared"]
    assert 0.93 <= inside <= 0.99
    both, alone = rows["two sensors, noise declared"], rows["the good sensor alone"]
    alike = rows["two sensors, all alike"]
    assert both[0] < 0.9 * alike[0], "the good sensor's points count more"
    assert both[0] < 1.05 * alone[0], "and poor ones beside them do hardly any harm"
    assert both[3] < 0.7 * alike[3], "the interval is not as wide as the poor sensor's noise"
    assert 0.93 <= both[1] <= 0.99
    error, inside, _, _ = rows["holes of a depth camera"]
    assert error <= 0.05 and 0.93 <= inside <= 0.99
    placed, on_axes = rows["rangers, the network tells where"], rows["rangers, on their axes"]
    assert placed[0] < 0.9 * on_axes[0], "the echo is of the nearest thing, seldom on the axis"
    assert 0.93 <= rows["radar and rangers"][1] <= 0.99


def test_frames_of_too_few_known_depths_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """200 points of each sensor could not be drawn from them."""
    monkeypatch.setattr(sparse_sensors, "SEEDS", (0,))
    dense, thin = write_frame(tmp_path / "a" / "dense"), write_frame(tmp_path / "b" / "thin")
    depth = np.full((CAMERA.height, CAMERA.width), np.nan, np.float32)
    depth[::8, ::8] = scene()[1][::8, ::8]
    np.savez(thin / "depth.npz", depth=depth)
    (thin / "lidar.npy").unlink()
    names: list[str] = []
    table = run_sensors([dense, thin], "test", names.append)
    assert names == ["a/dense", "b/thin"]
    assert [row for row in table.rows if row[0] == "two sensors, noise declared"]
    assert not [cell for row in table.rows for cell in row if "nan" in cell]
    with pytest.raises(FrameError, match="No frame has 600 pixels of known depth"):
        run_sensors([thin], "test")
