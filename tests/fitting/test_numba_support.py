# SPDX-License-Identifier: Apache-2.0
"""numba where it can be used, and a reason where it cannot."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import numpy as np
import pytest

from depth_node.fitting import numba_support
from depth_node.fitting.numba_support import compiled, find_numba


@pytest.fixture
def _fresh() -> Iterator[None]:
    """The look-up is kept for the life of a process; here it is made anew."""
    find_numba.cache_clear()
    yield
    find_numba.cache_clear()


def double(values: np.ndarray, out: np.ndarray) -> None:
    for index in range(len(values)):
        out[index] = 2 * values[index]


def test_a_compiled_loop_gives_what_the_loop_gives() -> None:
    if find_numba()[0] is None:
        pytest.skip("numba is not installed")
    values, out = np.arange(5.0), np.zeros(5)
    compiled(double)(values, out)
    np.testing.assert_array_equal(out, 2 * values)


@pytest.mark.usefixtures("_fresh")
def test_numba_that_is_missing_or_broken_has_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numba_support, "find_spec", lambda name: None)
    assert find_numba() == (None, "numba is not installed")
    with pytest.raises(RuntimeError, match="numba is not installed"):
        compiled(double)
    find_numba.cache_clear()
    monkeypatch.setattr(numba_support, "find_spec", lambda name: object())
    monkeypatch.setitem(sys.modules, "numba", None)
    module, reason = find_numba()
    assert module is None and "cannot be loaded" in reason
