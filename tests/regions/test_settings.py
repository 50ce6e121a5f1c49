# SPDX-License-Identifier: Apache-2.0
"""The settings of regions: every one has a sentence, and contradictions are refused."""

from __future__ import annotations

import pytest

from depth_node import config
from depth_node.regions.settings import SegmentationConfig


def test_every_setting_is_described_in_a_sentence() -> None:
    for item in config.describe(SegmentationConfig):
        assert item.description[0].isupper() and item.description.endswith("."), item.name


def test_prompts_are_a_section_of_their_own() -> None:
    changed = config.replace(SegmentationConfig(), {"prompts.points_per_side": 8})
    assert changed.prompts.points_per_side == 8
    with pytest.raises(config.ConfigError, match=r"did you mean 'prompts\.min_iou'"):
        config.replace(SegmentationConfig(), {"prompts.min_iuo": 0.5})


@pytest.mark.parametrize(
    "wrong", [{"cell_px": 0.5}, {"grow_cells": 0}, {"edge_level": 1.5}, {"every": -1}]
)
def test_values_out_of_range_are_refused(wrong: dict) -> None:
    with pytest.raises(config.ConfigError, match=next(iter(wrong))):
        SegmentationConfig(**wrong)
