# SPDX-License-Identifier: Apache-2.0
"""Scores of predictions under a protocol and an alignment."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from depth_node.metrics import boundary_f1, evaluate
from training.data.corruptions import (
    CORRUPTIONS,
    SEVERITIES,
)
from training.data.samples import F32, F64, DataError, Sample
from training.evaluation import protocols
from training.evaluation.predict import NetworkPredictor, corrupted

BASELINES = ("constant", "plane")
INDOOR = "indoor"
CLEAN = "clean"
SCORES = ("abs_rel", "delta1", "delta2", "delta3", "rmse", "rmse_log", "log10", "silog")
ROWS = 20  # a table lists up to this many sources; with more it shows the mean only


@dataclass(frozen=True)
class Row:
    """Scores of one method on one image, with alignment, protocol and corruption."""

    method: str
    source: str
    frame: str
    abs_rel: float
    delta1: float
    delta2: float = math.nan
    delta3: float = math.nan
    rmse: float = math.nan
    rmse_log: float = math.nan
    log10: float = math.nan
    silog: float = math.nan
    boundary_f1: float = math.nan
    answered: float = math.nan
    alignment: str = ""
    protocol: str = ""
    corruption: str = CLEAN
    severity: int = 0


@dataclass(frozen=True)
class ScoringPlan:
    """Alignments, protocol and corruptions of an evaluation.

    Without alignments each network gets its usual one; without a protocol a set gets its own.
    Raises ValueError for an unknown name.
    """

    alignments: tuple[str, ...] = ()
    protocol: str = ""
    corruptions: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.protocol:
            protocols.find(self.protocol)
        for name in self.alignments:
            if name not in protocols.ALIGNMENTS:
                raise ValueError(
                    f"No alignment is called {name!r}: use {', '.join(protocols.ALIGNMENTS)}."
                )
        for name in self.corruptions:
            if name not in CORRUPTIONS:
                raise ValueError(f"No corruption is called {name!r}: use {', '.join(CORRUPTIONS)}.")


def score(
    samples: Iterable[Sample],
    models: Mapping[str, NetworkPredictor],
    plan: ScoringPlan = ScoringPlan(),
) -> list[Row]:
    """Score every model on every image, clean and corrupted, and every baseline on clean images.

    An image without a scored pixel gives no row. Raises ValueError for an alignment that a
    network's output does not allow, and DataError for an image without depth.
    """
    protocol = protocols.find(plan.protocol or INDOOR)
    rows = []
    for sample in samples:
        if sample.depth is None:
            raise DataError(f"{sample.name} has no depth to be judged by: give a set with depth.")
        mask = protocols.counted(protocol, sample.depth)
        if not mask.any():
            continue
        truth = np.where(mask, sample.depth, np.float32(np.nan))
        for name in BASELINES:
            depth = np.clip(baseline(name, truth, protocol), 0, protocol.max_depth_m)
            rows.append(_row(name, sample, depth, truth, "-", protocol.name, CLEAN, 0))
        variants = [(CLEAN, 0), *((name, k) for name in plan.corruptions for k in SEVERITIES)]
        for corruption, severity in variants:
            variant = corrupted(sample, corruption, severity) if severity else sample
            for name, model in models.items():
                prediction = model.predict(variant.image)
                for alignment in plan.alignments or protocols.alignments_for(prediction.kind)[:1]:
                    depth = protocols.align(prediction, sample.depth, mask, alignment, protocol)
                    where = (alignment, protocol.name, corruption, severity)
                    rows.append(_row(name, sample, depth, truth, *where))
    return rows


def _row(
    method: str,
    sample: Sample,
    depth: F32,
    truth: F32,
    alignment: str,
    protocol: str,
    corruption: str,
    severity: int,
) -> Row:
    scores = evaluate(depth, truth)
    return Row(
        method,
        sample.source,
        sample.name,
        **{name: getattr(scores, name) for name in SCORES},
        # Edges are scored on clean images only, between pixels that the protocol scores.
        boundary_f1=boundary_f1(depth, truth) if not severity else math.nan,
        answered=scores.answered,
        alignment=alignment,
        protocol=protocol,
        corruption=corruption,
        severity=severity,
    )


def plane_terms(height: int, width: int) -> F64:
    """Return (1, x, y) of every pixel, (H, W, 3); x and y are fractions of width and height."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([np.ones((height, width)), x / width, y / height], axis=-1)


def baseline(
    name: str, truth: F32, protocol: protocols.Protocol = protocols.PROTOCOLS[INDOOR]
) -> F32:
    """Return the depth (H, W) m of a baseline that does not use the image.

    truth is (H, W) m, NaN where a pixel does not count. Raises ValueError for an unknown name.
    """
    if name == "constant":
        return np.full(truth.shape, 1.0 / np.nanmedian(1.0 / truth), np.float32)
    if name == "plane":
        terms, known = plane_terms(*truth.shape), np.isfinite(truth)
        weights = np.linalg.lstsq(terms[known], 1.0 / truth[known].astype(np.float64), rcond=None)
        least = max(1.0 / protocol.max_depth_m, protocols.SMALLEST_DISPARITY)
        return (1.0 / np.maximum(terms @ weights[0], least)).astype(np.float32)
    raise ValueError(f"No baseline is called {name!r}; known are {', '.join(BASELINES)}.")
