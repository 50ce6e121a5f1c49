# SPDX-License-Identifier: Apache-2.0
"""Export of a checkpoint to ONNX with manifest, compared with torch before it is written.

Static size, batch 1, opset 20; low-rank updates merged, batch normalisations folded, the positional
embedding of a transformer computed for that size. (Dynamic height and width would be silently
wrong: the exporter turns the output size of the depth head into a constant.) Weights may be stored
as FP16 and cast to FP32 in the graph: half the file size, the same arithmetic.
"""

from __future__ import annotations

import argparse
import logging
import math
import os
import tempfile
import warnings
from pathlib import Path

import numpy as np
import onnx
import torch
from rich.console import Console
from torch import nn

from depth_node.engine import EngineError, preprocess
from depth_node.engine.manifest import Manifest, manifest_path
from depth_node.engine.manifest_writer import write_manifest
from depth_node.inference import open_engine
from depth_node.model_zoo import convert
from depth_node.model_zoo.compare import ComparisonImages
from depth_node.simulation.renderer import Scene
from depth_node.simulation.viewpoints import random_view
from training.checkpoints import TrainingError
from training.data.samples import F32
from training.export.exportable import Exportable, open_checkpoint
from training.export.graph import OPSET, clean, folded, sized, store_weights_as_fp16
from training.models import unet

# Greatest deviation from torch over the range of the output. Rounding the weights to float16 causes
# a few 1e-4, a wrong graph far more.
LIMIT_FP32, LIMIT_FP16 = 1e-4, 5e-3


def to_onnx(model: Exportable, path: Path, fp16_weights: bool) -> float:
    """Write a network as ONNX with its manifest and return the greatest deviation from torch.

    The deviation is over the range of the output. For a square input the network is also compared
    at a size that is not square, where swapped rows and columns show. Raises TrainingError, and
    writes nothing, if the network's output is not finite or ONNX Runtime disagrees with torch.
    """
    height, width = model.spec.height, model.spec.width
    # The reference is the trained network, before `folded` and `sized` change it.
    sizes = [(height, width)]
    if height == width:
        step = model.patch_size or 32
        sizes.append((height, width - step if width > step else width + step))
    inputs = [_structured_input(model.spec, *size) for size in sizes]
    with torch.no_grad():
        expected = [model.network(torch.from_numpy(x)).numpy() for x in inputs]
    if not all(np.isfinite(y).all() for y in expected):
        raise TrainingError(
            f"the network gives NaN or infinity for a rendered room, so {path} was not written: its"
            " run has diverged; export an earlier checkpoint, or train again more slowly."
        )
    network = folded(model.network.eval().to(memory_format=torch.contiguous_format))  # type: ignore[call-overload]
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        deviation = 0.0
        limit = LIMIT_FP16 if fp16_weights else LIMIT_FP32
        for size, x, y in reversed(list(zip(sizes, inputs, expected, strict=True))):
            ready = Path(scratch) / path.name
            _save(network, x, _output_name(model.meaning), ready, fp16_weights)
            _describe(model, ready, size)
            deviation = max(deviation, _deviation(ready, x, y))
            if not deviation <= limit:
                raise TrainingError(
                    f"ONNX Runtime and torch differ by {deviation:.2e} of the output's range at"
                    f" {size[0]}x{size[1]}, more than {limit:.0e}; {path} was not written; report"
                    " the versions of torch, onnxscript and onnxruntime."
                )
        os.replace(manifest_path(ready), manifest_path(path))
        os.replace(ready, path)
    return deviation


def _output_name(meaning: str) -> str:
    return "disparity" if meaning.startswith("disparity") else "depth"


def _save(model: nn.Module, x: F32, output: str, path: Path, fp16_weights: bool) -> None:
    # The exporter warns about its own internals and about torchvision, which is not needed here.
    talk = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = talk.level
    talk.setLevel(logging.ERROR)
    with warnings.catch_warnings(), sized(model, x.shape[2], x.shape[3]):
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model,
            (torch.from_numpy(x),),
            str(path),
            input_names=["image"],
            output_names=[output],
            opset_version=OPSET,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    talk.setLevel(level)
    graph = clean(onnx.load(str(path)))
    if fp16_weights:
        store_weights_as_fp16(graph)
    onnx.checker.check_model(graph, full_check=True)
    onnx.save(graph, str(path))


def _describe(model: Exportable, path: Path, size: tuple[int, int]) -> None:
    """Write the manifest of an exported file; size: rows and columns of the input, px."""
    spec = model.spec
    write_manifest(
        path,
        model.meaning,
        output_name=_output_name(model.meaning),
        patch_size=model.patch_size,
        height=size[0],
        width=size[1],
        channel_order=spec.channel_order,
        scale=spec.scale,
        mean=spec.mean,
        std=spec.std,
        resize=spec.resize,
        interpolation=spec.interpolation,
        **{"name": path.stem, **model.entries},
    )


def _structured_input(spec: preprocess.InputSpec, height: int, width: int) -> F32:
    """Return a rendered room as input (1, 3, H, W); noise would hide errors of large areas."""
    rng = np.random.default_rng(5)
    scene = Scene.random(rng)
    image = scene.render(*random_view(scene, rng, width, height)).image
    mean, std = np.array(spec.mean, np.float32), np.array(spec.std, np.float32)
    x = (image.astype(np.float32) * np.float32(spec.scale) - mean) / std
    return np.ascontiguousarray(x.transpose(2, 0, 1)[None], np.float32)


def _deviation(path: Path, tensor: F32, expected: F32) -> float:
    """Return the greatest absolute difference from torch over the range of torch's output."""
    with open_engine(path, backend="onnxruntime-cpu", threads=1) as engine:
        output = engine.run(tensor)
    deviation = float(np.abs(output - expected).max() / (np.ptp(expected) + 1e-12))
    return math.inf if math.isnan(deviation) else deviation  # the caller's max() would drop a NaN


# --- the command ---------------------------------------------------------------------------------


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `python -m training export`."""
    add = parser.add_argument
    add(
        "checkpoint",
        type=Path,
        help="RUN, RUN/best, another checkpoint, or a folder of transformers' Depth Anything",
    )
    add("--out", required=True, type=Path, help="the .onnx file; its manifest goes beside it")
    add("--height", type=int, default=0, help="rows of the input (default: the run's)")
    add("--width", type=int, default=0, help="columns of the input (default: the run's)")
    add("--name", default="", help="name in the manifest (default: the file's)")
    add("--licence", default="", help="licence of the weights, for the manifest")
    add(
        "--weights",
        choices=("auto", "fp32", "fp16"),
        default="auto",
        help="how weights are stored; auto: fp16 for the U-Net (the arithmetic stays float32)",
    )
    add(
        "--fp16",
        action="store_true",
        help="also write NAME.fp16.onnx, which calculates in FP16, if its outputs agree",
    )
    add(
        "--images",
        type=Path,
        default=None,
        help="folder of images on which --fp16 is compared (default: rendered rooms)",
    )


def command(args: argparse.Namespace, console: Console) -> None:
    """Export a checkpoint and print the files. Raises TrainingError."""
    if args.fp16 and args.weights == "fp16":
        raise TrainingError("--fp16 converts the FP32 file: leave --weights fp16 out.")
    weights = "fp32" if args.fp16 else args.weights
    fp16_weights = None if weights == "auto" else weights == "fp16"
    given = {key: getattr(args, key) for key in ("name", "licence") if getattr(args, key)}
    export_checkpoint(
        args.checkpoint,
        args.out,
        fp16_weights,
        console,
        height=args.height,
        width=args.width,
        **given,
    )
    if args.fp16:
        try:
            images = ComparisonImages.of(args.images, Manifest.load(manifest_path(args.out)))
            made = convert.convert(args.out, images)
        except EngineError as error:
            raise TrainingError(str(error)) from error
        size = made.path.stat().st_size / 1e6
        console.print(f"{made.path} ({size:.2f} MB): FP16, compared with FP32 on {images}")


def export_checkpoint(
    checkpoint: Path,
    out: Path,
    fp16_weights: bool | None,
    console: Console,
    *,
    height: int = 0,
    width: int = 0,
    **entries: str,
) -> None:
    """Write the averaged weights of a run as `out`, with its manifest beside it.

    fp16_weights: store weights as FP16; None: for the U-Net only. height, width: of the input, px
    (0: the run's). entries replace those of the manifest. Raises TrainingError for a teacher, and
    as open_checkpoint and to_onnx do.
    """
    model = open_checkpoint(checkpoint, height, width)
    if getattr(model.network, "teacher_only", False):
        raise TrainingError(
            f"{checkpoint} is a teacher and not made for a robot: distil a student from it"
            " (`python -m training distill`) and export that."
        )
    model.entries.update(entries)
    if fp16_weights is None:
        fp16_weights = isinstance(model.network, unet.SmallUNet)
    deviation = to_onnx(model, out, fp16_weights)
    size = out.stat().st_size / 1e6
    console.print(
        f"{out} ({size:.2f} MB, {model.spec.height}x{model.spec.width}), {manifest_path(out).name};"
        f" differs from torch by {deviation:.1e} of its range"
    )
