# SPDX-License-Identifier: Apache-2.0
"""Rendered walks, kept in the machine's temporary folder because they are the same in every run."""

from __future__ import annotations

import tempfile
from pathlib import Path

from depth_node.benchmarks.calibration_sequences import RenderedWalk, room_sequence

CACHE = Path(tempfile.gettempdir()) / "depth_node_walks"


def furnished_room() -> RenderedWalk:
    """Return a walk of 13 images through a furnished room."""
    return room_sequence(1, 13, CACHE)
