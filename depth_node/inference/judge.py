# SPDX-License-Identifier: Apache-2.0
"""Plausibility check of a network's outputs, made before its manifest is written."""

from __future__ import annotations

import numpy as np

from depth_node.engine import EngineError
from depth_node.engine.manifest import PROMPTS, REGION_MEANINGS
from depth_node.engine.protocol import Engine
from depth_node.engine.self_check import reference_inputs
from depth_node.inference.depth import CompletionModel, DepthModel
from depth_node.inference.regions import RegionModel
from depth_node.prediction import DEPTH_MEANINGS, POINTS

_ABOVE_0 = ("depth_metric", "disparity_metric", "depth_metric_focal")


def judge_answer(engine: Engine) -> None:
    """Run a network on a test pattern as the node would, and check that its output is plausible.

    Raises EngineError for an output whose shape does not fit its meaning, and for a depth map of
    which more than half is not finite, that is constant, or of which half is not above 0 although
    its meaning demands values above 0. Encoders for prompts are not checked.
    """
    manifest = engine.manifest
    if manifest.meaning in REGION_MEANINGS:
        if manifest.meaning != PROMPTS:  # an encoder's outputs mean nothing without its decoder
            RegionModel(engine)
        return
    if manifest.meaning not in DEPTH_MEANINGS:
        return
    model = DepthModel(engine) if manifest.sparse is None else CompletionModel(engine)
    image, inputs = reference_inputs(manifest)
    del inputs[manifest.input_name]
    values = model.outputs(image, (lambda: inputs) if inputs else None)[manifest.output_name]
    values = values[..., -1] if manifest.meaning == POINTS else values
    known = values[np.isfinite(values)].astype(np.float64)
    output = f"output {manifest.output_name} of model {manifest.name}, run on a test pattern,"
    cure = "correct output_name, mean, std or scale, or export the model anew"
    if len(known) < 0.5 * values.size:
        raise EngineError(f"{output} has a finite number in {len(known)} of {values.size}: {cure}")
    low, high = float(known.min()), float(known.max())
    if high - low <= 1e-5 * max(abs(low), abs(high)):
        raise EngineError(f"{output} is {known[0]:.6g} everywhere: {cure}")
    if manifest.meaning in _ABOVE_0 and np.median(known) <= 0:
        raise EngineError(
            f"{output} is below 0 in half of the image ({low:.4g} to {high:.4g}), which no"
            f" {manifest.meaning} is: give another --meaning (log_depth_affine_invariant for"
            " logarithms), or another output"
        )
