# SPDX-License-Identifier: Apache-2.0
"""Rendered walks for the tests of this folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from depth_node.benchmarks.calibration_sequences import RenderedWalk
from tests.helpers.walks import CACHE, furnished_room


@pytest.fixture(scope="session")
def short_walk() -> RenderedWalk:
    """13 images of a furnished room."""
    return furnished_room()


@pytest.fixture(scope="session")
def cache() -> Path:
    return CACHE
