# SPDX-License-Identifier: Apache-2.0
"""The real architectures with random weights as model files, the input of the TensorRT-RTX tests.

Weights are as large as trained ones (1 / sqrt of the number of inputs that they sum over), so that
scores, activations and rounding errors are of realistic size.
"""

from __future__ import annotations

import logging
import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import pytest

from depth_node.engine.manifest import Manifest, manifest_path
from depth_node.engine.preprocess import InputSpec
from depth_node.model_zoo import compare, convert, fp16, onnx_graph

DEPTH = {"vit_tiny": (126, 168), "small": (126, 168), "base": (126, 168)}


def randomised(network: Any, seed: int = 0) -> Any:
    """Set random weights as large as trained ones, in place; return the network for inference."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in network.named_parameters():
            if value.dim() >= 2 and "embed" in name and "projection" not in name:
                value.normal_(0, 0.5, generator=generator)
            elif value.dim() >= 2:
                value.normal_(0, value[0].numel() ** -0.5, generator=generator)
    return network.eval()


def depth_network(kind: str, height: int, width: int, path: Path) -> Path:
    """Export a Depth Anything of training.models.hub.SIZES by the project's exporter."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    from training.export import depth
    from training.export.exportable import Exportable
    from training.models import hub

    torch.set_num_threads(1)
    network = transformers.DepthAnythingForDepthEstimation(hub.depth_anything_config(kind))
    network = hub.DepthAnything(randomised(hub.initialise_decoder(network))).eval()
    network.network.head.conv3.bias.data.fill_(10.0)  # else the last ReLU could return only zeros
    spec = InputSpec(
        height, width, mean=hub.IMAGENET_MEAN, std=hub.IMAGENET_STD, interpolation="cubic"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        depth.to_onnx(Exportable(network, spec, network.meaning, 14), path, False)
    return path


def segmentation_network(
    folder: Path, size: int, *, layers: int = 12, batch: int = 64, kind: str = "sam"
) -> tuple[Path, Path]:
    """Export encoder and decoder of SAM ViT-B or SAM 2.1 tiny; return their files.

    layers: of SAM; with fewer than 12 only the last has global attention.
    """
    torch = pytest.importorskip("torch", reason="torch is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    from training.export import segment_anything

    torch.set_num_threads(1)
    if kind == "sam":
        places = [2, 5, 8, 11] if layers == 12 else [layers - 1]
        vision = {"image_size": size, "num_hidden_layers": layers, "global_attn_indexes": places}
        prompts = {"image_size": size, "image_embedding_size": size // 16}
        config = transformers.SamConfig(vision_config=vision, prompt_encoder_config=prompts)
        model = transformers.SamModel._from_config(config, attn_implementation="eager")
    else:
        model = transformers.Sam2Model._from_config(
            sam2_config(transformers, size), attn_implementation="eager"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        done = segment_anything.export(randomised(model), folder, kind, batch=batch)
    return done.encoder, done.decoder


def sam2_config(transformers: Any, size: int) -> Any:
    """Return the configuration of SAM 2.1 tiny for images of this size."""
    sides = [[size // part, size // part] for part in (4, 8, 16)]
    return transformers.Sam2Config(
        vision_config={
            "backbone_config": {"model_type": "sam2_hiera_det_model", "image_size": [size, size]},
            "backbone_feature_sizes": sides,
        },
        prompt_encoder_config={"image_size": size},
    )


def fp16_file(model: Path, count: int = 2) -> convert.Converted:
    """Convert a model to FP16; write it if it keeps the manifest's limits on rendered rooms."""
    manifest = Manifest.load(manifest_path(model))
    return convert.convert(model, compare.ComparisonImages.of(None, manifest, count))


def attentions_of(model: Path) -> int:
    """Return the number of attentions in a model: softmaxes over the scores of a product."""
    manifest = Manifest.load(manifest_path(model))
    ready = onnx_graph.prepared(onnx.load(str(model)), manifest.input_shapes)
    return len(fp16.attentions(ready))


# --- the table -----------------------------------------------------------------------------------


def unfused(model: Path, folder: Path) -> Path:
    """Save and return an FP16 copy without measured scores: all attention scores are in FP32."""
    manifest = Manifest.load(manifest_path(model))
    ready = onnx_graph.prepared(onnx.load(str(model)), manifest.input_shapes)
    path = folder / f"{model.stem}.before.onnx"
    onnx.save(fp16.to_fp16(ready).model, str(path))
    return path


def traffic_row(name: str, model: Path, folder: Path) -> tuple[str, ...]:
    """Return a row: name, attentions, then for FP32, FP16 before and FP16 now the number of fused
    attentions and the MB moved, and the ratio of MB now to before.
    """
    from tests.helpers import rtx

    manifest = str(manifest_path(model))
    before = rtx.built(unfused(model, folder), manifest=manifest)
    ready = fp16_file(model, 1)
    now = rtx.built(ready.path)
    full = rtx.built(model)
    row = [name, str(attentions_of(model))]
    for built in (full, before, now):
        row += [str(fused(built)), f"{built['traffic'] / 1e6:.0f}"]
    return (*row, f"{now['traffic'] / before['traffic']:.2f}")


def fused(built: dict[str, Any]) -> int:
    """Return the number of attentions that an engine runs as one kernel."""
    from tests.helpers import rtx

    return sum(layer["name"].startswith(rtx.FUSED_ATTENTION) for layer in built["layers"])


def print_traffic(arguments: Sequence[str]) -> None:
    """Print the table of docs/benchmarks.md. arguments: names of rows; without any, all rows."""
    logging.disable(logging.WARNING)
    rows = {
        "vit_tiny 392x518": lambda f: depth_network("vit_tiny", 392, 518, f / "tiny.onnx"),
        "small 378x518": lambda f: depth_network("small", 378, 518, f / "small.onnx"),
        "small 392x518": lambda f: depth_network("small", 392, 518, f / "small.onnx"),
        "small 518x518": lambda f: depth_network("small", 518, 518, f / "small.onnx"),
        "base 392x518": lambda f: depth_network("base", 392, 518, f / "base.onnx"),
        "SAM ViT-B encoder 1024": lambda f: segmentation_network(f, 1024, batch=1)[0],
    }
    head = ("network", "attentions", "FP32: fused", "MB", "FP16 before: fused", "MB",
            "FP16 now: fused", "MB", "now / before")  # fmt: skip
    print("| " + " | ".join(head) + " |")
    print("|---|" + "--:|" * (len(head) - 1), flush=True)
    for name, make in rows.items():
        if arguments and name not in arguments:
            continue
        with tempfile.TemporaryDirectory() as folder:
            model = make(Path(folder))
            print("| " + " | ".join(traffic_row(name, model, Path(folder))) + " |", flush=True)
    sys.stdout.flush()
