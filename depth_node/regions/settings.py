# SPDX-License-Identifier: Apache-2.0
"""Settings of regions, whatever finds them."""

from __future__ import annotations

from dataclasses import dataclass

from depth_node.config import option, section, validate
from depth_node.regions.prompted_masks import PromptConfig


@dataclass(frozen=True)
class SegmentationConfig:
    """How an image becomes regions."""

    cell_px: float = option(
        4.0,
        "Side of the cells that the image is segmented in; at 640x480, scaled with the image.",
        unit="px",
        minimum=1.0,
        maximum=64.0,
    )
    grow_cells: int = option(
        40,
        "A region grows, by the neighbour that resembles it most, until it has this many cells.",
        minimum=1,
        maximum=100_000,
    )
    depth_weight: float = option(
        0.15,
        "Weight of the prediction (in mean deviations from its median) against colour (Lab / 100).",
        minimum=0.0,
        maximum=10.0,
    )
    blur_cells: float = option(
        0.7, "Standard deviation of the blur over cells; 0 = none.", minimum=0.0, maximum=10.0
    )
    min_region_px: int = option(
        100,
        "Smaller masks are ignored and smaller regions between masks join the neighbour with the "
        "longest border; at 640x480, scaled with the area of the image.",
        unit="px",
        minimum=0,
    )
    edge_level: float = option(
        0.3,
        "Stronger edges of a network that gives edges part regions.",
        minimum=0.0,
        maximum=1.0,
    )
    edge_gap_px: float = option(
        4.0,
        "Gaps of such edges up to this width are closed; at 640x480, scaled with the image.",
        unit="px",
        minimum=0.0,
        maximum=100.0,
    )
    every: int = option(
        1,
        "Segment every so many images of a sequence and carry the regions to those between by the"
        " image's motion; 1 = every image, 0 = only those that changed.",
        minimum=0,
        maximum=1000,
    )
    change: float = option(
        0.15,
        "With `every` above or below 1: segment as soon as more than this share of the image was"
        " not there when it was last segmented.",
        minimum=0.0,
        maximum=1.0,
    )
    prompts: PromptConfig = section(PromptConfig, "points and masks of a prompted network")

    def __post_init__(self) -> None:
        validate(self)
