# SPDX-License-Identifier: Apache-2.0
"""What a network answers, looked at before its manifest is believed."""

from __future__ import annotations

import numpy as np

from depth_node.engine import EngineError
from depth_node.engine.manifest import PROMPTS, REGION_MEANINGS
from depth_node.engine.protocol import Engine
from depth_node.engine.self_check import reference_inputs
from depth_node.inference.depth import CompletionModel, DepthModel
from depth_node.inference.image_model import POINTS
from depth_node.inference.regions import RegionModel
from depth_node.prediction import DEPTH_MEANINGS

_ABOVE_0 = ("depth_metric", "disparity_metric", "depth_metric_focal")


def judge_answer(engine: Engine) -> None:
    """Run a network as the node would, on a test pattern, and look at what it answers.

    Raises EngineError for an output of another shape than its meaning has, and for a depth map that
    holds no numbers, is the same everywhere, or is below 0 where its meaning has none such.
    """
    manifest = engine.manifest
    if manifest.meaning in REGION_MEANINGS:
        if manifest.meaning != PROMPTS:  # its answer needs the decoder
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
