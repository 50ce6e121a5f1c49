# SPDX-License-Identifier: Apache-2.0
"""Settings of regions, classical or from a network."""

from __future__ import annotations

from dataclasses import dataclass

from depth_node.config import option, section, validate
from depth_node.regions.prompted_masks import PromptConfig


@dataclass(frozen=True)
class SegmentationConfig:
    """Segmentation of an image into regions."""

    cell_px: float = option(
        4.0,
        "Side of the cells of the segmentation; at 640x480, scaled with the image.",
        unit="px",
        minimum=1.0,
        maximum=64.0,
    )
    grow_cells: int = option(
        40,
        "Minimum number of cells of a region; smaller ones join the most similar neighbour.",
        minimum=1,
        maximum=100_000,
    )
    min_region_px: int = option(
        100,
        "Minimum size; smaller masks are ignored, smaller regions between masks join the neighbour"
        " with the longest border; at 640x480, scaled with the area of the image.",
        unit="px",
        minimum=0,
    )
    edge_level: float = option(
        0.3,
        "Smallest strength of an edge between regions, for networks that output edges.",
        minimum=0.0,
        maximum=1.0,
    )
    every: int = option(
        1,
        "Segment one of this many images of a sequence and carry its regions to the others by"
        " optical flow; 1 = every image, 0 = only images that changed.",
        minimum=0,
        maximum=1000,
    )
    change: float = option(
        0.15,
        "Segment an image if more than this fraction of it changed since the last segmentation;"
        " used if `every` is not 1.",
        minimum=0.0,
        maximum=1.0,
    )
    prompts: PromptConfig = section(PromptConfig, "Points and masks of a prompted network.")

    def __post_init__(self) -> None:
        validate(self)
