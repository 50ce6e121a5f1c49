# SPDX-License-Identifier: Apache-2.0
"""Which depth is reliable: range, uncertainty, edges, sky."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from depth_node.benchmarks import gates as benchmark
from depth_node.config import ConfigError
from depth_node.engine.manifest import EMBEDDED
from depth_node.engine.options import ModelConfig
from depth_node.gates import GateConfig, Gates, flying_pixels
from depth_node.inference import DepthModel

NO_EDGES = GateConfig(cut_edges=False)
F32 = NDArray[np.float32]


def flat(depth_m: float = 4.0, shape: tuple[int, int] = (24, 32)) -> F32:
    return np.full(shape, depth_m, np.float32)


def test_a_point_is_given_where_its_error_is_small_for_its_depth() -> None:
    depth = flat()
    std = flat(0.1)
    std[:, :8] = 0.5  # 12 %
    std[:, 8:12] = np.nan  # unknown error
    depth[0] = np.nan
    kept = Gates(depth, std).believed()
    assert not kept[:, :12].any() and not kept[0].any() and kept[1:, 12:].all()
    everything = Gates(depth, std, GateConfig(max_std=0.0)).believed()
    assert everything[1:].all() and not everything[0].any()


def test_what_is_believed_does_not_depend_on_the_unit_of_length() -> None:
    rng = np.random.default_rng(0)
    depth = np.repeat(rng.uniform(1, 9, (4, 4)), 16, axis=0).repeat(16, axis=1).astype(np.float32)
    std = (depth * rng.uniform(0, 0.2, depth.shape)).astype(np.float32)
    one, thousand = Gates(depth, std).believed(), Gates(16 * depth, 16 * std).believed()
    assert np.array_equal(one, thousand)
    assert 0.05 < one.mean() < 0.4


@pytest.mark.parametrize("every", [1, 2, 3, 7])
def test_every_nth_pixel_is_judged_as_in_the_whole_map(every: int) -> None:
    rng = np.random.default_rng(1)
    depth = rng.uniform(1, 9, (47, 61)).astype(np.float32)
    std = (depth * rng.uniform(0, 0.2, depth.shape)).astype(np.float32)
    gates = Gates(depth, std)
    assert np.array_equal(gates.believed(every), gates.believed()[::every, ::every])


def test_out_of_range_is_told_as_rep_118_says() -> None:
    depth, std = flat(), flat(0.01)
    depth[0, 0], depth[0, 1], depth[0, 2], depth[0, 3] = 0.5, 30.0, np.nan, 19.9
    config = GateConfig(min_depth_m=1.0, max_depth_m=20.0)
    image = Gates(depth, std, config).depth_image()
    assert image[0, 0] == -np.inf and image[0, 1] == np.inf and np.isnan(image[0, 2])
    assert image[0, 3] == np.float32(19.9) and (image[1:] == 4).all()
    assert depth[0, 1] == 30, "the result itself stays"
    plain = GateConfig(min_depth_m=1.0, max_depth_m=20.0, infinity=False)
    unknown = np.isnan(Gates(depth, std, plain).depth_image())
    assert unknown[0, :3].all() and unknown.sum() == 3


def test_a_clamped_depth_is_a_limit_and_no_wall() -> None:
    """The fit clamps to its range: a depth of 200 m means at least 200 m."""
    depth, std = flat(), flat(0.01)
    depth[0, 0], depth[0, 1] = 200.0, 0.05
    gates = Gates(depth, std, depth_range_m=(0.05, 200.0))
    assert gates.depth_image()[0, 0] == np.inf and gates.depth_image()[0, 1] == -np.inf
    assert not gates.believed()[0, :2].any()


def test_sky_is_infinitely_far_however_sure_the_fit_is() -> None:
    depth, std = flat(), flat(0.01)
    sky = np.zeros(depth.shape, bool)
    sky[:5] = True
    gates = Gates(depth, std, sky=sky)
    assert np.isposinf(gates.depth_image()[:5]).all() and (gates.depth_image()[5:] == 4).all()
    assert not gates.believed()[:5].any() and gates.believed()[5:].all()


def test_a_gated_depth_image_says_unknown_where_it_may_be_near() -> None:
    depth, std = flat(), flat(0.01)
    std[0], std[1] = 3.0, 150.0
    depth[1] = 200.0  # beyond the LiDAR's reach, error unbounded
    depth[2] = 200.0
    config = GateConfig(gate_depth_image=True)
    image = Gates(depth, std, config, (0.05, 200.0)).depth_image()
    assert np.isnan(image[:2]).all() and np.isposinf(image[2]).all() and (image[4:] == 4).all()


def test_a_depth_image_in_range_costs_no_copy() -> None:
    depth = flat()
    assert Gates(depth, flat(0.1)).depth_image() is depth


def room_with_a_pole(blur: float) -> tuple[F32, NDArray[np.bool_], NDArray[np.bool_]]:
    """Return depth (240, 320), m: a wall at 6 m, a blurred pole at 3 m; and both masks."""
    depth = flat(6.0, (240, 320))
    depth[:, 140:180] = 3.0
    blurred = cv2.GaussianBlur(depth, (0, 0), blur) if blur else depth
    return np.asarray(blurred, np.float32), depth == 3, depth == 6


@pytest.mark.parametrize("blur", [0.6, 1.0, 1.5])
def test_flying_pixels_between_two_surfaces_are_cut(blur: float) -> None:
    depth, _, _ = room_with_a_pole(blur)
    flying = (depth > 3.2) & (depth < 5.8)
    cut = flying_pixels(depth)
    assert flying.sum() > 200 and cut[flying].mean() > 0.99
    assert not cut[:, 148:172].any(), "the pole stays"
    assert not cut[:, :128].any() and not cut[:, 192:].any(), "so does the wall"


def test_the_near_side_of_an_edge_stays() -> None:
    depth, pole, _ = room_with_a_pole(0.0)
    cut = flying_pixels(depth)
    assert not cut[pole].any() and cut[:, 181].all()


@pytest.mark.parametrize("pitch_deg", [0, 20, 60])
def test_a_plane_has_no_edges_however_steep(pitch_deg: float) -> None:
    """A floor up to the horizon: at 40 m its depth doubles within a few rows."""
    rows = (np.arange(240) - 119.5) / 300
    pitch = np.deg2rad(pitch_deg)
    down = np.cos(pitch) * rows + np.sin(pitch)
    depth = np.where(down > 0.5 / 40, 0.5 / np.maximum(down, 1e-9), np.nan)
    floor = np.repeat(depth[:, None], 320, axis=1).astype(np.float32)
    assert not flying_pixels(floor)[np.isfinite(floor)].any()


@pytest.mark.parametrize("shape", [(1, 1), (3, 4), (4, 200), (1200, 1600)])
def test_any_size_has_gates(shape: tuple[int, int]) -> None:
    depth = flat(4.0, shape)
    assert Gates(depth, 0.01 * depth).believed(2).shape == depth[::2, ::2].shape
    assert Gates(depth, 0.01 * depth).believed().all()
    unknown = Gates(depth * np.float32(np.nan), depth)
    assert not unknown.believed().any() and np.isnan(unknown.depth_image()).all()


def test_an_empty_range_is_refused() -> None:
    with pytest.raises(ConfigError, match="the first must be smaller"):
        GateConfig(min_depth_m=5.0, max_depth_m=2.0)


def test_on_real_frames_four_fifths_of_the_far_off_points_go(shared: Path) -> None:
    """Points more than 20 % off the truth are removed, with less than a quarter of the others."""
    with DepthModel.open(ModelConfig(EMBEDDED)) as model:
        rows = benchmark.run_gates([shared / "data"], model, points=(1000,), lines=0)
    published = benchmark.averaged(rows, "1000")
    assert published.far_off_after < 0.2 * published.far_off_before
    assert published.kept > 0.75


def test_the_benchmark_of_frames_without_a_far_off_point_has_its_tables() -> None:
    """A good network on clean points has no such points; their fraction is not a divisor."""
    right, strict = GateConfig(), GateConfig(max_std=0.05)
    rows = [
        benchmark.GateRow(source, "250", gate, 0.0, 0.0, kept)
        for source in ("one", "two")
        for gate, kept in ((right, 0.9), (strict, 0.8))
    ]
    by_condition, by_source, chosen = benchmark.tables(rows)
    assert by_condition.rows == [["250", "0.00%", "0.00%", "-", "90.0%"]]
    assert [row[3] for row in (*by_source.rows, *chosen.rows)] == ["-"] * 4


def test_the_benchmark_does_not_choose_a_gate_that_nothing_passes() -> None:
    """Such a gate leaves no fraction of far-off points, whatever the order of the rows."""
    open_, shut = GateConfig(), GateConfig(max_std=0.05)
    rows = [
        benchmark.GateRow("one", "250", shut, 0.2, np.nan, 0.0),
        benchmark.GateRow("one", "250", open_, 0.2, 0.1, 0.7),
    ]
    assert benchmark.choose(rows) == benchmark.choose(rows[::-1]) == open_
