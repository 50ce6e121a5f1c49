# SPDX-License-Identifier: Apache-2.0
"""Options that several commands share."""

from __future__ import annotations

import numpy as np
import pytest

from depth_node.cli.arguments import integers, matrix, words
from depth_node.cli.console import UsageError

pytest.importorskip("rich", reason="rich is not installed")
# rclpy imports lark, which imports modules that Python has renamed: nobody here can help.
pytestmark = pytest.mark.filterwarnings("ignore:module 'sre_:DeprecationWarning")


def test_matrix_is_read_row_by_row() -> None:
    text = ", ".join(str(value) for value in range(16))
    T = matrix(text)
    assert T is not None and np.array_equal(T, np.arange(16.0).reshape(4, 4))
    assert matrix("") is None
    with pytest.raises(UsageError, match="--start needs the 16 numbers"):
        matrix("1 2 3", "--start")


def test_lists_of_words_and_numbers() -> None:
    assert words(" slf, ssf,,") == ["slf", "ssf"]
    assert integers("--points", "50, 250") == [50, 250]
    with pytest.raises(UsageError, match="--points '50,x' must be whole numbers"):
        integers("--points", "50,x")
