# SPDX-License-Identifier: Apache-2.0
"""Metric depth from a prediction and sparse points: `fit`, its settings and its result."""

from depth_node.fitting.methods import (
    METHODS,
    MODES,
    NETWORK,
    REGION_METHODS,
    FitConfig,
    fit,
    fit_in_sequence,
)
from depth_node.fitting.region_surfaces import REGION_FIT_DTYPE, RegionStatus
from depth_node.fitting.result import FitResult, FitStatus

__all__ = [
    "METHODS",
    "MODES",
    "NETWORK",
    "REGION_FIT_DTYPE",
    "REGION_METHODS",
    "FitConfig",
    "FitResult",
    "FitStatus",
    "RegionStatus",
    "fit",
    "fit_in_sequence",
]
