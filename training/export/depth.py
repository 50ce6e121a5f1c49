# SPDX-License-Identifier: Apache-2.0
"""Checkpoint -> ONNX with manifest, compared with torch before it is written.

Static size, batch 1, opset 20; low-rank updates merged, batch normalisations folded, the positional
embedding of a transformer computed for that very size. (A dynamic height and width would be
silently wrong: the depth head turns its output size into a constant.) Weights may be stored as
FP16 and cast to FP32 in the graph: half the file, the same arithmetic.

A recipe whose network models.networks.open_run() does not know offers `exportable(payload)`,
payload as training.checkpoints.read() gives it, which returns (network in eval mode, NetworkInput,
meaning); its settings have `height` and `width`, or they are given on the command line.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
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
from depth_node.engine import EngineError, preprocess
from depth_node.engine.manifest import PACKAGED, Manifest, manifest_path
from depth_node.engine.manifest_writer import write_manifest
from depth_node.inference import open_engine
from depth_node.model_zoo import convert
from depth_node.model_zoo.compare import ComparisonImages
from depth_node.model_zoo.onnx_graph import drop_softmax_guards
from depth_node.prediction import Prediction
from depth_node.simulation.renderer import Scene
from depth_node.simulation.viewpoints import random_view
from training import checkpoints, recipes
from training.checkpoints import TrainingError
from training.data.samples import F32
from training.models import mobilenet, network_io, networks, unet

OPSET = 20
# Greatest deviation from torch over the range of the output. Rounding weights to float16 moves it
# by a few 1e-4; a wrong graph by far more.
LIMIT_FP32, LIMIT_FP16 = 1e-4, 5e-3
SMALLEST_FP16 = 1024  # values; smaller tensors are not worth a Cast
PATCHED_SIZE = (392, 518)  # 4:3 at the width that Depth Anything was trained at


# --- what is exported ----------------------------------------------------------------------------


@dataclass
class Exportable:
    """A network in eval mode with the content of its manifest; it predicts like the exported file.

    entries: name, licence, source and training of the manifest. identity: of weights and input.
    """

    network: nn.Module
    spec: preprocess.InputSpec
    meaning: str
    patch_size: int = 0
    entries: dict[str, Any] = field(default_factory=dict)

    @property
    def identity(self) -> str:
        """Hexadecimal SHA-256 of weights, input specification and meaning."""
        digest = hashlib.sha256(repr((self.spec, self.meaning)).encode())
        for name, value in sorted(self.network.state_dict().items()):
            digest.update(name.encode())
            digest.update(value.detach().contiguous().numpy().tobytes())
        return digest.hexdigest()

    @torch.no_grad()
    def predict(self, image: NDArray[np.uint8]) -> Prediction:
        """(H, W, 3) uint8 RGB -> the prediction at the image's size, by torch."""
        tensor = torch.from_numpy(preprocess.to_tensor(image, self.spec))
        values = self.network(tensor)[0, 0].float().numpy()
        full = preprocess.to_image(values, self.spec, *image.shape[:2], image=image)
        return Prediction(full, self.meaning)

    def close(self) -> None:
        """Nothing to free."""


def open_checkpoint(path: Path, height: int = 0, width: int = 0) -> Exportable:
    """The network to export of a run of ours, or of a folder of transformers' Depth Anything.

    path: RUN, RUN/best, another checkpoint, or a folder with config.json and model.safetensors.
    height, width: of the network's input (default: the run's). Raises TrainingError.
    """
    path = Path(path)
    if (path / "config.json").is_file():
        network: Any = networks.open_network(networks.NetworkConfig(kind="small", source=str(path)))
        return _exportable(network, height, width, {}, {"start": path.name})
    payload = checkpoints.read(path)
    settings = payload["settings"]
    hook = getattr(_recipe(payload), "exportable", None)
    if hook is not None:
        network, spec, meaning = hook(payload)
    else:
        network, spec, meaning = networks.open_run(path), None, ""
    return _exportable(network, height, width, settings, _provenance(payload), spec, meaning)


def _recipe(payload: Mapping[str, Any]) -> Any:
    name = str(payload.get("recipe"))
    return recipes.find(name) if name in recipes.RECIPES else None


def _exportable(
    network: Any,
    height: int,
    width: int,
    settings: Mapping[str, Any],
    provenance: dict[str, Any],
    spec: network_io.NetworkInput | None = None,
    meaning: str = "",
) -> Exportable:
    network = network.eval().requires_grad_(False)
    spec = spec or network.spec
    meaning = meaning or getattr(network, "meaning", "disparity_affine_invariant")
    patched = spec.multiple_px == network_io.PATCH_PX
    default = PATCHED_SIZE if patched else (0, 0)
    height = height or int(settings.get("height", 0)) or default[0]
    width = width or int(settings.get("width", 0)) or default[1]
    if not height or not width:
        raise TrainingError("The run has no input size: give --height and --width.")
    fitting = spec.fitting(height, width)
    if fitting != (height, width):
        raise TrainingError(
            f"An input of {height}x{width} does not fit this network: its sides are multiples of"
            f" {spec.multiple_px}; {fitting[0]}x{fitting[1]} is near."
        )
    if isinstance(network, unet.SmallUNet):
        provenance["student"] = config.to_dict(
            network.cfg
        )  # so that models.py can open the file again
        if not _has_offset(settings):
            assert network.head.bias is not None
            network.head.bias.add_(unet.OFFSET)  # the upsampling after the head keeps a constant
    return Exportable(
        network,
        preprocess.InputSpec(
            height=height,
            width=width,
            mean=spec.mean,
            std=spec.std,
            resize="stretch",
            # Ours learn from averaged images; Depth Anything was made with cubic ones.
            interpolation="area" if settings else "cubic",
        ),
        meaning,
        spec.multiple_px if patched else 0,
        {
            # Weights that began as a third party's keep its licence, which is not known here.
            "licence": "" if patched and "start" in provenance else _licence(provenance),
            "source": f"trained by this project: python -m training {provenance['recipe']}"
            if "recipe" in provenance
            else "exported by this project",
            "training": provenance,
        },
    )


def _licence(provenance: Mapping[str, Any]) -> str:
    """SPDX expression: ours, and that of ImageNet's weights where the network began with them."""
    return "Apache-2.0 AND BSD-3-Clause" if "imagenet" in provenance else "Apache-2.0"


def _has_offset(settings: Mapping[str, Any]) -> bool:
    """Whether a run began, maybe by way of other runs, as a file that was exported."""
    source = str(settings.get("network", {}).get("source") or "")
    if source in PACKAGED or source.endswith(".onnx"):
        return True
    # What `start` names is centred again before it learns.
    path = Path(source or str(settings.get("start") or ""))
    return (
        path.is_dir()
        and checkpoints.is_run(path)
        and _has_offset(checkpoints.about(path)["settings"])
    )


def _provenance(payload: Mapping[str, Any]) -> dict[str, Any]:
    """Recipe, steps, seeds and source of a network, without paths of this machine."""
    settings = payload["settings"]
    loop = settings.get("loop", {})
    provenance: dict[str, Any] = {
        "recipe": str(payload.get("recipe")),
        "steps": int(payload["step"]),
    }
    provenance.update({key: loop[key] for key in ("batch", "seed") if key in loop})
    start = settings.get("network", {}).get("source") or settings.get("start")
    if start:
        provenance["start"] = Path(str(start)).name
    if "pool" in settings:
        provenance["pool_seed"] = settings["pool"]["seed"]
        outdoors = settings.get("outdoors_share", 0) > 0
        scenes = "rooms and outdoor scenes" if outdoors else "rooms"
        provenance["data"] = (
            f"procedural {scenes} of depth_node.simulation.renderer, no photographs"
        )
        if outdoors:
            provenance["outdoors_seed"] = settings["outdoors"]["seed"]
    if settings.get("imagenet"):
        provenance["imagenet"] = mobilenet.NOTICE
    return provenance


# --- the graph -----------------------------------------------------------------------------------


def folded(model: nn.Module) -> nn.Module:
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
            folded(child)
    return model


@contextmanager
def _sized(model: nn.Module, height: int, width: int) -> Iterator[None]:
    """Inside, positional embeddings are constants of one size: no cubic Resize in the graph."""
    embeddings: list[Any] = [m for m in model.modules() if hasattr(m, "interpolate_pos_encoding")]
    for module in embeddings:
        patch = module.patch_embeddings.patch_size
        tokens = 1 + (height // patch[0]) * (width // patch[1])
        with torch.no_grad():
            own = module.position_embeddings
            fixed = module.interpolate_pos_encoding(
                own.new_zeros(1, tokens, own.shape[-1]), height, width
            ).clone()
        module.register_buffer("fixed_positions", fixed, persistent=False)
        module.interpolate_pos_encoding = lambda *_, m=module: m.fixed_positions
    try:
        yield
    finally:
        for module in embeddings:
            del module.interpolate_pos_encoding, module.fixed_positions


def to_onnx(model: Exportable, path: Path, fp16_weights: bool) -> float:
    """Write a network as ONNX with its manifest; returns the greatest deviation from torch over the
    range of its output.

    Raises TrainingError, and writes nothing, where ONNX Runtime disagrees with torch. For a square
    input the same network is also compared at a size that is not: rows and columns that changed
    places do not show in a square.
    """
    height, width = model.spec.height, model.spec.width
    # The reference is the network as it was trained, neither folded nor sized.
    sizes = [(height, width)]
    if height == width:
        step = model.patch_size or 32
        sizes.append((height, width - step if width > step else width + step))
    inputs = [_structured_input(model.spec, *size) for size in sizes]
    with torch.no_grad():
        expected = [model.network(torch.from_numpy(x)).numpy() for x in inputs]
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
    # The exporter deprecates its own internals and misses torchvision, which nothing here needs.
    talk = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = talk.level
    talk.setLevel(logging.ERROR)
    with warnings.catch_warnings(), _sized(model, x.shape[2], x.shape[3]):
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
        _store_weights_as_fp16(graph)
    onnx.checker.check_model(graph, full_check=True)
    onnx.save(graph, str(path))


def _describe(model: Exportable, path: Path, size: tuple[int, int]) -> None:
    """The manifest of a file that was just written."""
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
    """A rendered room as input (1, 3, H, W): noise alone would hide errors of large areas."""
    rng = np.random.default_rng(5)
    scene = Scene.random(rng)
    image = scene.render(*random_view(scene, rng, width, height)).image
    mean, std = np.array(spec.mean, np.float32), np.array(spec.std, np.float32)
    x = (image.astype(np.float32) * np.float32(spec.scale) - mean) / std
    return np.ascontiguousarray(x.transpose(2, 0, 1)[None], np.float32)


def clean(graph: onnx.ModelProto) -> onnx.ModelProto:
    """Remove what the exporter writes about this machine: source paths in metadata, doc strings."""
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
    drop_softmax_guards(graph)
    for function in graph.functions:
        function.doc_string = ""
    return graph


def _store_weights_as_fp16(graph: onnx.ModelProto) -> None:
    """Store large float32 weights as float16, cast back where they are used."""
    casts = []
    for index, item in enumerate(graph.graph.initializer):
        if item.data_type != TensorProto.FLOAT or np.prod(item.dims) < SMALLEST_FP16:
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


def _deviation(path: Path, tensor: F32, expected: F32) -> float:
    """Greatest absolute difference to torch over the range of torch's output."""
    with open_engine(path, backend="onnxruntime-cpu", threads=1) as engine:
        output = engine.run(tensor)
    return float(np.abs(output - expected).max() / (np.ptp(expected) + 1e-12))


# --- the command ---------------------------------------------------------------------------------


def arguments(parser: argparse.ArgumentParser) -> None:
    """`python -m training export ...`."""
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
    """Run it. Raises TrainingError: one sentence."""
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
    """Write the averaged weights of a run as `out` with its manifest beside it.

    fp16_weights: store weights as FP16; None: for the U-Net only. entries replace the manifest's.
    Raises TrainingError for a teacher, and where ONNX Runtime disagrees with torch.
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
