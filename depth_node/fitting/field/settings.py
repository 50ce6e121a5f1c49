# SPDX-License-Identifier: Apache-2.0
"""Settings of method `field`: what a robot's user sets, and what only studies switch off."""

from __future__ import annotations

from dataclasses import dataclass

from depth_node.config import option, section, validate
from depth_node.fitting.field.kernels import COMPILERS

REFINE = ("auto", "off")


@dataclass(frozen=True)
class TemporalConfig:
    """The memory of method field."""

    enabled: bool = option(True, "Average over frames in static parts of the scene.")
    memory: float = option(
        0.8,
        "Largest weight of the old result in the new one; 0.8 averages about nine frames.",
        minimum=0.0,
        maximum=0.98,
    )
    max_gap_s: float = option(
        1.0,
        "After a longer pause between frames, or a step back in time, earlier frames are "
        "forgotten.",
        unit="s",
        minimum=0.01,
        maximum=60.0,
    )

    def __post_init__(self) -> None:
        validate(self)


@dataclass(frozen=True)
class FieldConfig:
    """The residual field on a robot."""

    max_extrapolation: float = option(
        1.0,
        "Farther than this from every used point, relative to the larger side of the image, the"
        " interval is unknown (NaN).",
        minimum=0.01,
        maximum=2.0,
    )
    age_s: float = option(
        0.5,
        "Points of this age have twice the noise of fresh ones.",
        unit="s",
        minimum=0.01,
        maximum=100.0,
    )
    range_noise_m: float = option(
        0.0,
        "Standard deviation of a measured depth, as the sensor's data sheet gives it; it is"
        " subtracted from the interval. 0: unknown; the interval then contains measured points"
        " rather than the surfaces under them.",
        unit="m",
        minimum=0.0,
        maximum=10.0,
    )
    temporal: TemporalConfig = section(TemporalConfig, "What is remembered from frame to frame.")
    refine: str = option(
        "auto",
        "Improve the field with a small network if the depth network is weak; auto: with 100"
        " points or more, if ONNX Runtime is installed; off: never, which saves time.",
        choices=REFINE,
    )
    compiler: str = option(
        "auto",
        "Form of the inner loops; numba: refuse to start without it instead of running 40 times"
        " slower; numpy: run without numba and without its warning; auto: numba if it is"
        " installed.",
        choices=COMPILERS,
    )

    def __post_init__(self) -> None:
        validate(self)


@dataclass(frozen=True)
class FieldAblation:
    """Parts of the method that studies and tests leave out or change; no robot sets them.

    The defaults are the whole method (docs/benchmarks_field.md says what each part brings). Raises
    ConfigError out of range.
    """

    residual: bool = option(True, "Spread what the base fit leaves at the points (U and C).")
    detail: bool = option(True, "Follow single points closely where they are dense (C).")
    colour: bool = option(True, "Points of similar colour inform each other more.")
    regions: bool = option(
        False,
        "Points of one region inform each other more. Off: beside colour it gained up to 3 % with "
        "good regions and cost up to 4 % with fine ones (docs/studies/regions.md).",
    )
    blend: bool = option(True, "Blend in the field without the network where that is weak.")
    refinement: bool = option(True, "Let a refiner that is given refine the blend.")
    outliers: bool = option(True, "Find and disregard points that disagree with all neighbours.")
    node_px: float = option(
        10.0,
        "Distance of the nodes of U in an image whose larger side is 640 pixels.",
        unit="px",
        minimum=4.0,
        maximum=64.0,
    )
    neighbours: int = option(10, "Points that inform one node.", minimum=3, maximum=24)

    def __post_init__(self) -> None:
        validate(self)


WHOLE_METHOD = FieldAblation()
