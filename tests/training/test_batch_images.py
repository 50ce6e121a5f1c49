# SPDX-License-Identifier: Apache-2.0
"""Sheets of the images and maps of a batch."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs torch (requirements-training.txt)")

from training.batch_images import TITLE_PX, sheet


def test_a_sheet_has_a_column_per_image_and_a_row_per_view_and_map() -> None:
    generator = torch.Generator().manual_seed(0)
    views = {name: torch.rand(6, 3, 8, 10, generator=generator) for name in ("weak", "strong")}
    maps = {"student": torch.rand(6, 1, 8, 10, generator=generator)}
    drawn = sheet(views, maps, most=4)
    assert drawn.shape == (3 * (8 + TITLE_PX), 4 * 10, 3) and drawn.dtype == np.uint8
    first = (views["weak"][0].permute(1, 2, 0).numpy() * 255 + 0.5).astype(np.uint8)
    np.testing.assert_array_equal(drawn[TITLE_PX : TITLE_PX + 8, :10], first)
    titles = [drawn[k * (8 + TITLE_PX) :][:TITLE_PX] for k in range(3)]
    assert all(title.max() == 255 for title in titles), "each row has its name above it"
    assert not np.array_equal(titles[0], titles[1])


def test_scale_and_shift_of_a_map_change_no_colour() -> None:
    views = {"image": torch.zeros(1, 3, 8, 10)}
    disparity = torch.rand(1, 1, 8, 10, generator=torch.Generator().manual_seed(1))
    one, other = (sheet(views, {"map": m}) for m in (disparity, 8 * disparity + 4))
    assert np.abs(one.astype(int) - other.astype(int)).max() <= 2
