# SPDX-License-Identifier: Apache-2.0
"""Export of a run of recipe `refine` to the ONNX file that method `field` runs.

It is compared with torch before it is written. Height and width of the maps are dynamic, because
the field's grid depends on the image. The names of the tensors are those of
depth_node.engine.refinement.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import warnings
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from depth_node.engine.refinement import INPUT, OUTPUT, FieldRefiner
from depth_node.fitting.field.refine import CHANNELS
from training import checkpoints
from training.checkpoints import TrainingError
from training.export.graph import folded
from training.models.refiner import RefinerNet

OPSET = 17
TRACED, OTHER = (64, 96), (120, 160)  # (h, w) of the maps at export and in the comparison
LIMIT = 1e-4  # greatest deviation from torch, log depth


def open_refiner_run(path: Path) -> RefinerNet:
    """Open the averaged network of a run, in eval mode. Raises TrainingError for another recipe."""
    payload = checkpoints.read(path)
    if payload["recipe"] != "refine":
        raise TrainingError(f"{path} is a run of {payload['recipe']}: give one of recipe refine.")
    settings = payload["settings"]
    network = RefinerNet(tuple(settings["widths"]), tuple(settings["blocks"]))
    checkpoints.load(network, payload["averaged"], str(path))
    return network.eval().requires_grad_(False)


@torch.no_grad()
def to_onnx(network: RefinerNet, path: Path) -> float:
    """Write the file and return the greatest deviation from torch, in log depth.

    Raises TrainingError, and writes nothing, if it is above LIMIT.
    """
    rng = np.random.default_rng(0)
    maps = rng.normal(0, 0.3, (1, CHANNELS, *OTHER)).astype(np.float32)
    expected = network(torch.from_numpy(maps)).numpy()[0]
    path.parent.mkdir(parents=True, exist_ok=True)
    ready = path.with_name(path.name + ".partial")
    open_sides = {2: "height", 3: "width"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            folded(network),
            (torch.zeros(1, CHANNELS, *TRACED),),
            str(ready),
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_axes={INPUT: open_sides, OUTPUT: open_sides},
            opset_version=OPSET,
            dynamo=False,
        )
    deviation = float(np.abs(FieldRefiner(ready)(maps[0]) - expected).max())
    if not deviation <= LIMIT:
        ready.unlink()
        raise TrainingError(
            f"ONNX Runtime and torch differ by {deviation:.1e} in log depth, more than {LIMIT:.0e};"
            f" {path} was not written; report the versions of torch, onnx and onnxruntime."
        )
    os.replace(ready, path)
    return deviation


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `python -m training refiner`."""
    parser.add_argument("run", type=Path, help="run folder of recipe refine, or RUN/best")
    parser.add_argument("--out", type=Path, default=Path("refine.onnx"), help="file to write")


def command(args: argparse.Namespace, console: Console) -> None:
    """Export a run and print its hash."""
    deviation = to_onnx(open_refiner_run(args.run), args.out)
    digest = hashlib.sha256(args.out.read_bytes()).hexdigest()
    console.print(f"{args.out}: differs from torch by {deviation:.1e} in log depth")
    console.print(f"sha256 {digest} (SHA256 of depth_node/engine/refinement.py)")
