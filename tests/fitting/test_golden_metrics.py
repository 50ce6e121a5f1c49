# SPDX-License-Identifier: Apache-2.0
"""What the methods reach on small frames of our own, and how wide their intervals are.

The other tests say what must hold; these notice that a number has moved. A change that is meant is
stated anew by `python -m tests.helpers.golden_metrics --write`, which prints what it changed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from depth_node.fitting import METHODS
from tests.assets.make_frames import FRAMES, SWEPT, render
from tests.helpers.golden_metrics import (
    CASES,
    CONDITIONS,
    MEMORY,
    PROJECTION,
    VARIANTS,
    reached,
    stated,
)

# How far a value may be from the stated one: relative, absolute. What is not named must be equal.
TOLERANCE = {
    "abs_rel": (0.02, 0.0),
    "width": (0.03, 0.0),
    "factor": (0.03, 0.0),
    "scale": (0.002, 0.0),
    "left_out": (0.02, 0.0),
    "coverage": (0.0, 0.01),
    "known": (0.0, 0.003),
    "suspects": (0.05, 5e-4),
    "remembered": (0.03, 0.01),
    "flicker": (0.05, 0.0),
    "error_ratio": (0.02, 0.0),
    "ratio": (0.005, 0.0),
}

# Share of the pixels whose truth lies in the 95 % interval, mean over the frames: (least, most).
# Without noise it is close; points with noise and wrong ones among them widen it; between scan
# lines and far from all points there is nothing that could calibrate it.
FIELD_BANDS = {
    "8": (0.95, 1.0),
    "50": (0.93, 0.99),
    "250": (0.93, 0.99),
    "1000": (0.93, 0.98),
    "4500n": (0.95, 1.0),
    "50n": (0.95, 1.0),
    "250n": (0.95, 1.0),
    "1000n": (0.95, 1.0),
    "aged": (0.95, 1.0),
    "lines": (0.87, 0.97),
    "lines_n": (0.92, 0.99),
    "dense_lines": (0.84, 0.97),
    "sweeps": (0.95, 1.0),
    "thin_sweeps": (0.95, 1.0),
    "part": (0.90, 1.0),
    "corner": (0.90, 1.0),
}
CLASSIC_BANDS = {
    "8": (0.90, 1.0),
    "50": (0.93, 0.99),
    "250": (0.92, 0.98),
    "1000": (0.93, 0.98),
    "250n": (0.94, 1.0),
    "1000n": (0.94, 1.0),
    "lines": (0.90, 0.98),
    "lines_n": (0.93, 1.0),
    "part": (0.70, 1.0),
    "corner": (0.15, 1.0),
}


def assert_as_stated(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found.keys() == expected.keys()
    for name, value in found.items():
        relative, absolute = TOLERANCE.get(name, (0.0, 0.0))
        np.testing.assert_allclose(value, expected[name], relative, absolute, err_msg=name)


@pytest.mark.parametrize(("variant", "condition"), CASES)
def test_a_method_is_as_right_and_its_interval_as_wide_as_stated(
    variant: str, condition: str
) -> None:
    found = reached(variant, condition)
    assert_as_stated(found, stated()["fits"][f"{variant}, {condition}"])
    bands = FIELD_BANDS if variant.startswith("field") else CLASSIC_BANDS
    low, high = bands[condition]
    assert low <= np.mean(found["coverage"]) <= high


@pytest.mark.parametrize("condition", [name for name in CONDITIONS if name != "corner"])
def test_the_field_is_the_most_accurate_method_but_where_points_are_in_one_corner(
    condition: str,
) -> None:
    means = {
        case.partition(",")[0]: np.mean(values["abs_rel"])
        for case, values in stated()["fits"].items()
        if case.partition(", ")[2] == condition and not case.startswith("field ")
    }
    assert min(means, key=lambda name: float(means[name])) == "field"


@pytest.mark.parametrize("name", MEMORY)
def test_the_memory_keeps_and_forgets_as_much_as_stated(name: str) -> None:
    assert_as_stated(MEMORY[name](), stated()["memory"][name])


@pytest.mark.parametrize("name", PROJECTION)
def test_as_many_points_are_dropped_as_stated_and_for_the_same_reasons(name: str) -> None:
    found, expected = PROJECTION[name](), stated()["projection"][name]
    assert_as_stated(found, expected)


def test_dropping_what_is_hidden_leaves_fewer_points_from_behind() -> None:
    every, default = PROJECTION["everything that is in front"](), PROJECTION["default"]()
    assert default["seen_through"] <= 0.6 * every["seen_through"]
    assert default["used"] >= 0.97 * (every["used"] - every["seen_through"])


def test_every_method_and_case_is_stated_and_nothing_else() -> None:
    assert {variant.split()[0] for variant in VARIANTS} == set(METHODS)
    assert list(stated()["fits"]) == [f"{variant}, {condition}" for variant, condition in CASES]
    assert list(stated()["memory"]) == list(MEMORY)
    assert list(stated()["projection"]) == list(PROJECTION)


def test_the_stored_frames_are_those_that_the_simulation_renders() -> None:
    rendered = render(SWEPT)
    with np.load(FRAMES / f"{SWEPT}.npz") as stored:
        assert set(stored.files) == set(rendered)
        for name, values in rendered.items():
            if values.ndim < 2:
                continue
            # Sines of another machine may round a pixel the other way.
            assert values.shape == stored[name].shape
            assert np.mean(values != stored[name]) < 1e-3, name
