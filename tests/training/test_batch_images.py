# SPDX-License-Identifier: Apache-2.0
"""The images of a batch above its maps."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs torch (requirements-training.txt)")

from training.batch_images import sheet


def test_a_sheet_has_a_column_per_image_and_a_row_per_view_and_map() -> None:
    generator = torch.Generator().manual_seed(0)
    views = [torch.rand(6, 3, 8, 10, generator=generator) for _ in range(2)]
    maps = [torch.rand(6, 1, 8, 10, generator=generator)]
    drawn = sheet(views, maps, most=4)
    assert drawn.shape == (3 * 8, 4 * 10, 3) and drawn.dtype == np.uint8
    first = (views[0][0].permute(1, 2, 0).numpy() * 255 + 0.5).astype(np.uint8)
    np.testing.assert_array_equal(drawn[:8, :10], first)


def test_scale_and_shift_of_a_map_change_no_colour() -> None:
    views = [torch.zeros(1, 3, 8, 10)]
    disparity = torch.rand(1, 1, 8, 10, generator=torch.Generator().manual_seed(1))
    one, other = (sheet(views, [m]) for m in (disparity, 8 * disparity + 4))
    assert np.abs(one.astype(int) - other.astype(int)).max() <= 2
