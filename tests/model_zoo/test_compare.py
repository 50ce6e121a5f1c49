# SPDX-License-Identifier: Apache-2.0
"""Comparison of networks on images: how much their outputs differ."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from depth_node.engine.manifest import Manifest, manifest_path
from depth_node.engine.manifest_writer import write_manifest
from depth_node.inference import open_engine
from depth_node.model_zoo import compare

pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx", reason="onnx builds the models of these tests")
from onnx import numpy_helper

from tests.helpers.onnx_graphs import FEW, f32, graph, saved
from tests.helpers.refusals import refusal


def test_pictures(network: Path, tmp_path: Path) -> None:
    manifest = Manifest.load(manifest_path(network))
    folder = tmp_path / "images"
    assert "no folder" in refusal(lambda: compare.ComparisonImages.of(folder, manifest))
    (folder / "deep").mkdir(parents=True)
    assert "no image below" in refusal(lambda: compare.ComparisonImages.of(folder, manifest))
    for number in range(6):
        image = np.full((4, 5, 3), (number, 0, 100), np.uint8)  # B, G, R
        cv2.imwrite(str(folder / "deep" / f"{number}.png"), image)
    cv2.imwrite(str(folder / "depth.png"), np.zeros((4, 5), np.uint16))
    chosen = compare.ComparisonImages.of(folder, manifest, 3)
    assert [path.stem for path in chosen.files] == ["0", "2", "4"] and str(chosen) == "3 images"
    assert [tuple(p[0, 0]) for p in chosen] == [(100, 0, 0), (100, 0, 2), (100, 0, 4)]
    assert compare.ComparisonImages.of(folder, manifest, 50).count == 6
    (folder / "deep" / "0.png").write_text("no image")
    assert "cannot be decoded" in refusal(lambda: list(chosen))
    assert "at least one" in refusal(lambda: compare.ComparisonImages.of(None, manifest, 0))
    rooms = [*compare.ComparisonImages(7, height=32, width=48)]
    assert rooms[0].shape == (32, 48, 3) and rooms[0].dtype == np.uint8
    assert len({room.tobytes() for room in rooms}) == 7
    assert np.array_equal(rooms, [*compare.ComparisonImages(7, (), 32, 48)])  # always the same


def test_compare_says_how_far_apart(network: Path, tmp_path: Path) -> None:
    moved = onnx.load(str(network))
    moved.graph.initializer[2].CopyFrom(numpy_helper.from_array(f32(10.2), "ten"))
    other = saved(moved, tmp_path / "other.onnx", "depth_metric")
    with open_engine(network) as a, open_engine(other) as b:
        assert "only networks of one meaning" in refusal(lambda: compare.compare(a, b, FEW))
    write_manifest(network, "depth_metric")
    with open_engine(network) as a, open_engine(other) as b:
        found = compare.compare(a, b, FEW)
    assert found.worst.correlation > 0.999999 and len(found.differences) == 2
    assert found.worst.relative_error > 0.005 and "relative error" in found.failures[0]
    write_manifest(network, "disparity_affine_invariant")
    write_manifest(other, "disparity_affine_invariant")
    with open_engine(network) as a, open_engine(other) as b:  # the meaning leaves the shift open
        assert compare.compare(a, b, FEW).worst.relative_error < 1e-6


def test_point_maps_of_two_sizes_are_compared_in_the_picture(tmp_path: Path) -> None:
    nodes = [("Transpose", ["image"], ["out"], {"perm": [0, 2, 3, 1]})]
    paths = []
    for height, width in ((24, 36), (48, 72)):
        path, shape = tmp_path / f"{height}.onnx", (1, 3, height, width)
        paths.append(saved(graph(nodes, shape=shape), path, "points_affine_invariant"))
    with open_engine(paths[0]) as a, open_engine(paths[1]) as b:
        assert compare.compare(a, b, FEW).worst.correlation > 0.9


def test_networks_of_two_sizes_are_compared_in_the_picture(tmp_path: Path) -> None:
    nodes = [("ReduceMean", ["image"], ["out"], {"axes": [1], "keepdims": 0})]
    paths = []
    for height, width in ((24, 36), (48, 72)):
        path = tmp_path / f"{height}.onnx"
        shape = (1, 3, height, width)
        paths.append(saved(graph(nodes, shape=shape), path, "depth_affine_invariant"))
    with open_engine(paths[0]) as a, open_engine(paths[1]) as b:
        assert compare.compare(a, b, FEW).worst.correlation > 0.9
