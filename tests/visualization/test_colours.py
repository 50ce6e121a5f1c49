# SPDX-License-Identifier: Apache-2.0
"""Colour scales: order, ticks, unknown pixels and regions."""

from __future__ import annotations

import numpy as np
import pytest

from depth_node.visualization import colours


@pytest.mark.parametrize("logarithmic", [False, True])
def test_scale_orders_values_and_clips(logarithmic: bool) -> None:
    scale = colours.Scale("depth", 1.0, 16.0, logarithmic)
    place = scale.position(np.array([0.1, 1.0, 2.0, 4.0, 16.0, 99.0, np.inf]))
    assert place[0] == place[1] == 0.0
    assert place[-3] == place[-2] == 1.0
    assert np.all(np.diff(place) >= 0)
    assert place[3] == pytest.approx(0.5 if logarithmic else 0.2)


@pytest.mark.parametrize(
    "scale",
    [
        colours.Scale("depth", 0.31, 0.83, logarithmic=True),
        colours.Scale("depth", 1.1, 7.2, logarithmic=True),
        colours.Scale("depth", 6.8, 113.0, logarithmic=True),
        colours.Scale("deviation", 0.0, 0.037),
        colours.error_scale(25.0),
    ],
)
def test_ticks_are_few_round_and_inside(scale: colours.Scale) -> None:
    ticks = scale.ticks()
    assert 2 <= len(ticks) <= 6
    assert all(scale.low - 1e-9 <= tick <= scale.high + 1e-9 for tick in ticks)
    assert all(len(f"{tick:g}".lstrip("-")) <= 5 for tick in ticks)
    assert ticks == sorted(set(ticks))


def test_scale_refuses_what_cannot_be_drawn() -> None:
    with pytest.raises(ValueError, match="low < high"):
        colours.Scale("depth", 2.0, 2.0)
    with pytest.raises(ValueError, match="low > 0"):
        colours.Scale("depth", 0.0, 2.0, logarithmic=True)
    with pytest.raises(ValueError, match="No colour table"):
        colours.colour_table("rainbow")


def test_unknown_pixels_never_take_a_colour_of_the_scale() -> None:
    scale = colours.Scale("depth", 1.0, 5.0, logarithmic=True)
    values = np.linspace(1, 5, 40, dtype=np.float32).reshape(4, 10)
    values[1, 3] = np.nan
    values[2, 5] = np.inf
    sample_image = colours.colour_map(values, scale)
    ground = {colours.UNKNOWN, colours.UNKNOWN_LINE}
    assert not ground & {tuple(colour) for colour in colours.colour_table("depth").tolist()}
    unknown = [[tuple(pixel) in ground for pixel in row] for row in sample_image.tolist()]
    assert np.array_equal(unknown, ~np.isfinite(values))


def test_near_is_warm_and_far_is_cold() -> None:
    near, far = colours.Scale("depth", 1.0, 9.0).colours(np.array([1.0, 9.0])).astype(int)
    assert near[0] > near[2] + 80
    assert far[2] > far[0] + 80


def test_error_is_signed_and_unknown_where_either_is_unknown() -> None:
    truth = np.array([[2.0, 2.0, np.nan, 2.0, 0.0]], np.float32)
    depth = np.array([[2.2, 1.0, 2.0, np.nan, 1.0]], np.float32)
    error = colours.relative_error_percent(depth, truth)
    assert error[0, :2] == pytest.approx([10.0, -50.0], rel=1e-5)
    assert np.isnan(error[0, 2:]).all()
    too_far, too_near = colours.error_scale().colours(np.array([25.0, -25.0])).astype(int)
    assert too_far[0] > too_far[2]
    assert too_near[2] > too_near[0]


def test_neighbouring_region_numbers_are_told_apart() -> None:
    palette = colours.region_palette(60).astype(int)
    steps = np.abs(np.diff(palette[1:], axis=0)).sum(axis=1)
    assert steps.min() > 60
    assert tuple(palette[0]) == colours.UNKNOWN
