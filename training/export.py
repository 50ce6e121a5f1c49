# SPDX-License-Identifier: Apache-2.0
"""Checkpoint -> ONNX with manifest, parity first: what is written opens in depth_node as it is.

Static size, batch 1, batch normalisations folded. Weights may be stored as float16 and cast to
float32 in the graph: half the file, the same arithmetic.
"""

from __future__ import annotations

import os
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from rich.console import Console
from torch import nn

from depth_node import config
from depth_node.engine import manifest_path, open_engine, write_manifest
from depth_node.scene import Scene, random_view
from training.loop import TrainingError, read
from training.recipes import supervised

OPSET = 20
# Added to the output, which is centred on 0 in training: the usual median over deviation of a
# picture's disparity, so that 1 / output is about proportional to depth for methods that need a
# relative DEPTH. Affine invariance allows it.
OFFSET = 3.0
# Rounding weights to float16 moves the output by a few 1e-4 of its spread; a wrong graph by far
# more.
LIMIT_FP32, LIMIT_FP16 = 1e-4, 5e-3
SMALLEST_HALVED = 1024  # values; smaller tensors are not worth a Cast


def _fold(model: nn.Module) -> nn.Module:
    """Batch normalisations folded into the convolutions before them: fewer nodes, the same function
    in eval mode.
    """
    for name, child in model.named_children():
        if (
            isinstance(child, nn.Sequential)
            and len(child) >= 2
            and isinstance(child[0], nn.Conv2d)
            and isinstance(child[1], nn.BatchNorm2d)
        ):
            fused = nn.utils.fusion.fuse_conv_bn_eval(child[0], child[1])
            setattr(model, name, nn.Sequential(fused, *list(child)[2:]))
        else:
            _fold(child)
    return model


def to_onnx(model: nn.Module, height: int, width: int, path: Path, half: bool) -> float:
    """Write a network in eval mode as ONNX; returns the greatest deviation over the output's
    spread.

    Raises TrainingError, and writes nothing, where ONNX Runtime disagrees with torch.
    """
    model = _fold(model.eval().to(memory_format=torch.contiguous_format))  # type: ignore[call-overload]
    example = torch.from_numpy(_structured_input(height, width))
    with torch.no_grad():
        expected = model(example).numpy()
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        raw = Path(scratch) / "raw.onnx"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter deprecates its own internals
            torch.onnx.export(
                model,
                (example,),
                str(raw),
                input_names=["image"],
                output_names=["disparity"],
                opset_version=OPSET,
                dynamo=True,
                external_data=False,
                verbose=False,
            )
        graph = _clean(onnx.load(str(raw)))
        if half:
            _halve(graph)
        onnx.checker.check_model(graph, full_check=True)
        ready = Path(scratch) / path.name
        onnx.save(graph, str(ready))
        deviation = _deviation(ready, example.numpy(), expected)
        limit = LIMIT_FP16 if half else LIMIT_FP32
        if not deviation <= limit:
            raise TrainingError(
                f"ONNX Runtime and torch differ by {deviation:.2e} of the output's spread, more"
                f" than {limit:.0e}; "
                f"{path} was not written; report the versions of torch, onnxscript and onnxruntime."
            )
        os.replace(ready, path)
    return deviation


def _structured_input(height: int, width: int) -> NDArray[np.float32]:
    """A rendered room as the network would see it: parity on noise alone hides errors of large
    areas.
    """
    rng = np.random.default_rng(5)
    scene = Scene.random(rng)
    image = scene.render(*random_view(scene, rng, width, height)).image
    x = (image.astype(np.float32) / 255 - supervised.MEAN) / supervised.STD
    return np.ascontiguousarray(x.transpose(2, 0, 1)[None])


def _clean(graph: onnx.ModelProto) -> onnx.ModelProto:
    """Drop what the exporter says about the machine it ran on (source paths in metadata and doc
    strings).
    """
    del graph.metadata_props[:]
    graph.doc_string = ""
    graph.graph.doc_string = ""
    del graph.graph.metadata_props[:]
    for item in (
        *graph.graph.node,
        *graph.graph.input,
        *graph.graph.output,
        *graph.graph.value_info,
        *graph.graph.initializer,
    ):
        item.doc_string = ""
        if hasattr(item, "metadata_props"):
            del item.metadata_props[:]
    del graph.graph.value_info[:]
    for function in graph.functions:
        function.doc_string = ""
    return graph


def _halve(graph: onnx.ModelProto) -> None:
    """Store large float32 weights as float16, cast back where they are used."""
    casts = []
    for index, item in enumerate(graph.graph.initializer):
        if item.data_type != TensorProto.FLOAT or np.prod(item.dims) < SMALLEST_HALVED:
            continue
        values = numpy_helper.to_array(item).astype(np.float16)
        name = item.name
        graph.graph.initializer[index].CopyFrom(numpy_helper.from_array(values, name + "_half"))
        casts.append(
            helper.make_node(
                "Cast", [name + "_half"], [name], name=name + "_cast", to=TensorProto.FLOAT
            )
        )
    nodes = [*casts, *graph.graph.node]
    del graph.graph.node[:]
    graph.graph.node.extend(nodes)


def _deviation(path: Path, tensor: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """Greatest absolute difference to torch over the standard deviation of torch's output."""
    write_manifest(path, supervised.MEANING, output_name="disparity")
    with open_engine(path, threads=1) as engine:
        found = engine.run(tensor)
    return float(np.abs(found - expected).max() / (expected.std() + 1e-12))


def export_checkpoint(checkpoint: Path, out: Path, half: bool, console: Console) -> None:
    """Write the averaged weights of a supervised run as `out` with its manifest beside it."""
    payload = read(checkpoint)
    cfg = config.build(supervised.SupervisedConfig, payload["settings"])
    model = supervised.SmallUNet(cfg.student)
    model.load_state_dict(payload["averaged"])
    with torch.no_grad():  # the upsampling after the head keeps a constant
        assert model.head.bias is not None
        model.head.bias.add_(OFFSET)
    deviation = to_onnx(model, cfg.height, cfg.width, out, half)
    trained: dict[str, Any] = {
        "recipe": "supervised",
        "steps": int(payload["step"]),
        "batch": cfg.loop.batch,
        "seed": cfg.loop.seed,
        "pool_seed": cfg.pool.seed,
        "data": "procedural rooms of depth_node.scene, no photographs",
    }
    write_manifest(
        out,
        supervised.MEANING,
        name=out.stem,
        output_name="disparity",
        licence="Apache-2.0",
        source="trained by this project: python -m training supervised",
        training=trained,
        mean=(supervised.MEAN,) * 3,
        std=(supervised.STD,) * 3,
        resize="stretch",
        interpolation="area",
    )
    size = out.stat().st_size / 1e6
    console.print(
        f"{out} ({size:.2f} MB), {manifest_path(out).name};"
        f" differs from torch by {deviation:.1e} of its spread"
    )
