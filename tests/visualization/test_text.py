# SPDX-License-Identifier: Apache-2.0
"""Drawing of text on images."""

from __future__ import annotations

import numpy as np

from depth_node.visualization import text


def test_text_is_drawn_and_clipped_at_the_border() -> None:
    sample_image = np.zeros((40, 60, 3), np.uint8)
    text.put_text(sample_image, "12.5 m ± é", (50, 30), 11)
    assert sample_image.max() > 100
    text.put_text(sample_image, "outside", (500, 500), 11)
    assert text.text_width("mm", 11) > text.text_width("m", 11) > 0
