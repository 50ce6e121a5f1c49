# SPDX-License-Identifier: Apache-2.0
"""The comparison of two checkouts' times."""

from __future__ import annotations

import numpy as np
import pytest

from tests import beside
from tests.helpers import REPO


def test_the_ratio_of_paired_times_has_an_interval_about_it() -> None:
    """A slow machine slows both checkouts, so their ratio remains."""
    rng = np.random.default_rng(0)
    load = rng.uniform(1, 3, 200)
    there = 10 * load * rng.uniform(0.98, 1.02, 200)
    here = 12 * load * rng.uniform(0.98, 1.02, 200)
    middle, low, high = beside.ratio(here, there)
    assert low < middle < high
    assert middle == pytest.approx(1.2, abs=0.05)


@pytest.mark.slow
def test_a_checkout_beside_itself_takes_as_long() -> None:
    times = beside.measure(REPO, 20)
    assert {"CPU", "clock", "total", "fit"} <= set(times)
    assert all(len(here) == len(there) == 20 for here, there in times.values())
