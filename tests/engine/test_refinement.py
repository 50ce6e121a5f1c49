# SPDX-License-Identifier: Apache-2.0
"""The shipped network that refines the field: its file, output range, scale and benefit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from depth_node import config
from depth_node.engine import EngineError, refinement
from depth_node.engine.refinement import FieldRefiner, refiner_for, shipped_refiner
from depth_node.fitting import FitConfig, FitResult, fit
from depth_node.fitting.field.lattice import Map
from depth_node.fitting.field.refine import CANDIDATES, CHANNELS
from depth_node.geometry.sparse_depth import SparseDepth
from depth_node.prediction import Prediction
from tests.helpers.field_room import Room, inside, make_room, measure, with_depth

FIELD = FitConfig(method="field")


@pytest.fixture(scope="module")
def room() -> Room:
    return make_room()


@pytest.fixture(scope="module")
def refiner() -> FieldRefiner:
    opened = shipped_refiner()
    assert opened is not None
    return opened


def weak(room: Room) -> Prediction:
    disparity = room.image.mean(axis=2).astype(np.float32) / 255 + 0.2
    return Prediction(disparity, "disparity_affine_invariant")


def refined(room: Room, points: SparseDepth, refiner: FieldRefiner | None) -> FitResult:
    return fit(weak(room), points, image=room.image, config=FIELD, refiner=refiner)


@pytest.mark.parametrize("count", [250, 1000])
def test_it_helps_a_weak_network(room: Room, refiner: FieldRefiner, count: int) -> None:
    points = measure(room, count)
    with_it, without = refined(room, points, refiner), refined(room, points, None)

    def error(result: FitResult) -> float:
        return float(np.mean(np.abs(result.depth / room.depth - 1)))

    assert error(with_it) < 0.95 * error(without)
    assert inside(with_it, room.depth) > 0.92


def test_scale_in_is_scale_out(room: Room, refiner: FieldRefiner) -> None:
    points = measure(room, 400)
    one = refined(room, points, refiner)
    seven = refined(room, with_depth(points, 7 * points.depth), refiner)
    np.testing.assert_allclose(seven.depth, 7 * one.depth, rtol=2e-3)
    np.testing.assert_allclose(seven.std, 7 * one.std, rtol=2e-2)


def test_it_never_leaves_the_range_of_its_candidates(room: Room, refiner: FieldRefiner) -> None:
    asked: list[tuple[Map, Map]] = []

    def watched(maps: Map) -> Map:
        change = refiner(maps)
        asked.append((maps.copy(), change))
        return change

    fit(weak(room), measure(room, 500), image=room.image, config=FIELD, refiner=watched)
    wild = np.random.default_rng(0).normal(0, 1, (CHANNELS, 24, 32)).astype(np.float32)
    watched(wild)
    for maps, change in asked:
        each = maps[: 4 * len(CANDIDATES)].reshape(len(CANDIDATES), *change.shape)
        assert (change <= np.maximum(each.max(axis=0), 0) + 1e-5).all()
        assert (change >= np.minimum(each.min(axis=0), 0) - 1e-5).all()


def test_damaged_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    damaged = tmp_path / "refine.onnx"
    damaged.write_bytes(refinement.MODEL.read_bytes()[:-10] + b"0123456789")
    monkeypatch.setattr(refinement, "MODEL", damaged)
    with pytest.raises(EngineError, match="install the package again"):
        shipped_refiner.__wrapped__()


def test_it_cannot_be_forgotten(room: Room) -> None:
    """Without the argument the field would silently not be refined, and look plausible."""
    with pytest.raises(TypeError, match="refiner"):
        fit(weak(room), measure(room, 50), image=room.image, config=FIELD)  # type: ignore[call-arg]


def test_maps_of_another_version_are_told(refiner: FieldRefiner) -> None:
    with pytest.raises(EngineError, match=r"fit\.field\.refine"):
        refiner(np.zeros((CHANNELS + 1, 16, 16), np.float32))


def test_it_is_opened_once_and_only_where_it_is_asked_for() -> None:
    off = config.build(FitConfig, {"method": "field", "field": {"refine": "off"}})
    assert refiner_for(off) is None
    assert refiner_for(FitConfig(method="ssf")) is None
    assert refiner_for(FIELD) is refiner_for(FIELD) is not None
