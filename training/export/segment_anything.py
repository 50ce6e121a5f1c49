# SPDX-License-Identifier: Apache-2.0
"""Export of Segment Anything and MobileSAM to ONNX, as an encoder and a prompt decoder.

`python -m training segmentation SOURCE --out FOLDER` writes NAME.onnx (the encoder, whose manifest
names the decoder) and NAME_decoder.onnx, after a comparison with torch. Inputs and outputs of the
decoder are described at depth_node.inference.PromptedRegionModel. SOURCE is a Hugging Face id or
folder of a SAM or SAM 2.1 (transformers), or with --kind the checkpoint of the authors' packages
`segment-anything` (vit_b, vit_l, vit_h) or `mobile_sam` (vit_t).

The decoder's graph also computes stability and boxes of the masks: on a GPU this costs almost
nothing there, and only masks that pass the limits are processed further.
"""

from __future__ import annotations

import argparse
import math
import os
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor, nn

from depth_node.engine.manifest import PROMPT_DECODER, PROMPTS, manifest_path
from depth_node.engine.manifest_writer import write_manifest
from depth_node.engine.preprocess import InputSpec, to_tensor
from depth_node.inference import open_engine
from depth_node.simulation.renderer import Scene
from depth_node.simulation.viewpoints import random_view
from training.checkpoints import TrainingError
from training.export.graph import OPSET, clean
from training.models.network_io import IMAGENET_MEAN, IMAGENET_STD

STABILITY_OFFSET = 1.0  # on the logits, as in the automatic mask generators of SAM and SAM 2
ANSWERS = ("masks", "iou", "stability", "boxes")
LIMIT = 1e-3  # greatest deviation from torch over the tensor's standard deviation
LARGEST_FILE = 1_800_000_000  # bytes; protobuf's limit is 2^31, larger weights get a separate file
KINDS = {"vit_b": "segment_anything", "vit_l": "segment_anything", "vit_h": "segment_anything"}
KINDS["vit_t"] = "mobile_sam"


class Encoder(nn.Module):
    """From a normalised image (1, 3, size, size) to the tensors that the decoder needs."""

    size: int  # of the image, px
    resize: str  # of the manifest
    names: tuple[str, ...] = ("embedding",)


class Decoder(nn.Module):
    """From points (n, 2), extent (2,) and the encoder's tensors to masks and their properties."""

    size: int

    def prompted(self, points: Tensor, features: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return masks (n, m, h, w) as logits and their IoU (n, m) for points (n, 2) in px."""
        raise NotImplementedError

    def forward(
        self, points: Tensor, extent: Tensor, *features: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return masks, iou, stability and boxes; see PromptedRegionModel."""
        masks, iou = self.prompted(points, features)
        height, width = masks.shape[-2:]
        row = torch.arange(height, dtype=masks.dtype)
        col = torch.arange(width, dtype=masks.dtype)
        in_image = ((row + 0.5) * (self.size / height) < extent[0])[:, None] & (
            (col + 0.5) * (self.size / width) < extent[1]
        )
        strict, lax = (
            ((masks > level) & in_image).to(masks.dtype).sum(dim=(-2, -1))
            for level in (STABILITY_OFFSET, -STABILITY_OFFSET)
        )
        stability = strict / lax.clamp(min=1.0)
        inside = ((masks > 0) & in_image).to(masks.dtype)
        rows, cols = inside.amax(dim=-1), inside.amax(dim=-2)
        far = float(max(height, width))
        boxes = torch.stack(
            [
                torch.where(cols > 0, col, far).amin(dim=-1),
                torch.where(rows > 0, row, far).amin(dim=-1),
                torch.where(cols > 0, col, -1.0).amax(dim=-1),
                torch.where(rows > 0, row, -1.0).amax(dim=-1),
            ],
            dim=-1,
        )
        boxes = torch.where(rows.amax(dim=-1, keepdim=True) > 0, boxes, 0.0)
        return masks, iou, stability, boxes


# --- the authors' packages: segment-anything, mobile_sam ------------------------------------------


class _SamEncoder(Encoder):
    resize = "corner"

    def __init__(self, sam: Any) -> None:
        super().__init__()
        self.network = sam.image_encoder
        self.size = int(sam.image_encoder.img_size)

    def forward(self, image: Tensor) -> Tensor:
        out: Tensor = self.network(image)
        return out


class _SamDecoder(Decoder):
    def __init__(self, sam: Any) -> None:
        super().__init__()
        self.prompts, self.network = sam.prompt_encoder, sam.mask_decoder
        self.size = int(sam.image_encoder.img_size)
        with torch.no_grad():
            self.register_buffer("place", sam.prompt_encoder.get_dense_pe().clone())

    def prompted(self, points: Tensor, features: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        # The package's prompt encoder for one foreground point and no box, without its indexing by
        # boolean masks, which the exporter does not support.
        code = self.prompts.pe_layer._pe_encoding((points + 0.5) / self.size)
        token = code + self.prompts.point_embeddings[1].weight
        padding = self.prompts.not_a_point_embed.weight.expand(len(points), -1)
        height, width = self.prompts.image_embedding_size
        dense = self.prompts.no_mask_embed.weight.reshape(1, -1, 1, 1)
        masks, iou = self.network(
            image_embeddings=features[0],
            image_pe=self.place,
            sparse_prompt_embeddings=torch.stack([token, padding], dim=1),
            dense_prompt_embeddings=dense.expand(len(points), -1, height, width),
            multimask_output=True,
        )
        return masks, iou


# --- transformers ---------------------------------------------------------------------------------


class _HubEncoder(Encoder):
    resize = "corner"

    def __init__(self, model: Any) -> None:
        super().__init__()
        if any(type(part).__name__ == "SamVisionSdpaAttention" for part in model.modules()):
            raise TrainingError(
                "the exporter cannot follow this SamModel's attention: load it with"
                ' attn_implementation="eager", which computes the same.'
            )
        self.network = model.vision_encoder
        self.size = int(model.config.vision_config.image_size)

    def forward(self, image: Tensor) -> Tensor:
        out: Tensor = self.network(image)[0]
        return out


class _Hub2Encoder(Encoder):
    """SAM 2.1: the embedding and two finer maps, reduced to the decoder's numbers of channels."""

    resize = "stretch"
    names = ("embedding", "fine", "finer")

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.network = model.vision_encoder
        self.finer, self.fine = model.mask_decoder.conv_s0, model.mask_decoder.conv_s1
        self.no_memory = nn.Parameter(model.no_memory_embedding.detach().reshape(1, -1, 1, 1))
        self.size = _side(model.config.prompt_encoder_config.image_size)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        finer, fine, coarse = self.network(image).fpn_hidden_states
        return coarse + self.no_memory, self.fine(fine), self.finer(finer)


class _HubDecoder(Decoder):
    """The decoder of SamModel and Sam2Model; the latter also takes the finer maps."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.prompts, self.network = model.prompt_encoder, model.mask_decoder
        self.size = _side(model.config.prompt_encoder_config.image_size)
        with torch.no_grad():
            self.register_buffer("place", model.get_image_wide_positional_embeddings().clone())

    def prompted(self, points: Tensor, features: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        ones = torch.ones(1, len(points), 1, dtype=torch.int64)
        sparse, dense = self.prompts(
            input_points=points[None, :, None],
            input_labels=ones,
            input_boxes=None,
            input_masks=None,
        )
        finer = {"high_resolution_features": [features[2], features[1]]} if features[1:] else {}
        masks, iou, *_ = self.network(
            image_embeddings=features[0],
            image_positional_embeddings=self.place,
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=True,
            **finer,
        )
        return masks[0], iou[0]


def _side(size: Any) -> int:
    if isinstance(size, int):
        return size
    if len(set(size)) != 1:
        raise TrainingError(f"the model wants images of {size}: only square inputs are known.")
    return int(size[0])


def encoder_and_decoder(model: Any) -> tuple[Encoder, Decoder]:
    """Split a Sam (segment-anything, mobile_sam), a SamModel or a Sam2Model into its two parts.

    Raises TrainingError for another network.
    """
    model = model.eval()
    if hasattr(model, "no_memory_embedding"):
        return _Hub2Encoder(model).eval(), _HubDecoder(model).eval()
    if hasattr(model, "vision_encoder"):
        return _HubEncoder(model).eval(), _HubDecoder(model).eval()
    if hasattr(model, "image_encoder") and hasattr(model, "prompt_encoder"):
        return _SamEncoder(model).eval(), _SamDecoder(model).eval()
    raise TrainingError(
        f"{type(model).__name__} is no promptable segmentation network: give a Sam of"
        " segment-anything or mobile_sam, or a SamModel or Sam2Model of transformers."
    )


# --- writing --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Exported:
    """Paths of both files, and the greatest deviation from torch over a standard deviation."""

    encoder: Path
    decoder: Path
    deviation: float


def export(
    model: Any,
    out: Path,
    name: str,
    *,
    batch: int = 64,
    licence: str = "",
    source: str = "",
) -> Exported:
    """Write out/NAME.onnx and out/NAME_decoder.onnx with their manifests.

    batch: number of points in a run of the decoder, fixed in its graph. licence, source: for the
    manifests. Raises TrainingError for another network, for a batch below 1 and, writing nothing,
    if ONNX Runtime disagrees with torch.
    """
    if batch < 1:
        raise TrainingError(
            f"the batch is {batch}: give the number of points of a decoder run, 1 or more."
        )
    encoder, decoder = encoder_and_decoder(model)
    spec = InputSpec(
        encoder.size,
        encoder.size,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        resize=encoder.resize,
        interpolation="area",
    )
    image = torch.from_numpy(to_tensor(_room(encoder.size), spec))
    rng = np.random.default_rng(0)
    points = torch.from_numpy((rng.random((batch, 2)) * encoder.size).astype(np.float32))
    extent = torch.tensor([0.75 * encoder.size, encoder.size], dtype=torch.float32)
    with torch.no_grad():
        features = encoder(image)
    features = (features,) if isinstance(features, Tensor) else features
    common: dict[str, Any] = {
        "licence": licence,
        "source": source,
        "mean": spec.mean,
        "std": spec.std,
        "resize": spec.resize,
        "interpolation": spec.interpolation,
    }
    paths = out / f"{name}.onnx", out / f"{name}_decoder.onnx"
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out) as scratch:
        first, second = (Path(scratch) / path.name for path in paths)
        _write(encoder, {"image": image}, encoder.names, first)
        write_manifest(
            first, PROMPTS, outputs=encoder.names, decoder=second.name, name=name,
            **common,
        )  # fmt: skip
        given = {"points": points, "extent": extent}
        given.update(zip(encoder.names, features, strict=True))
        _write(decoder, given, ANSWERS, second)
        write_manifest(
            second, PROMPT_DECODER, outputs=ANSWERS, height=spec.height, width=spec.width,
            name=f"{name}_decoder",  **common,
        )  # fmt: skip
        deviation = max(
            _deviation(first, {"image": image}, dict(zip(encoder.names, features, strict=True))),
            _deviation(second, given, _answers(decoder, given)),
        )
        if not deviation <= LIMIT:
            raise TrainingError(
                f"ONNX Runtime and torch differ by {deviation:.2e} of a tensor's spread, more than"
                f" {LIMIT:.0e}; {name} was not written; report the versions of torch, onnxscript"
                " and onnxruntime."
            )
        for file in sorted(Path(scratch).iterdir()):
            os.replace(file, out / file.name)
    return Exported(*paths, deviation)


def _answers(decoder: Decoder, given: dict[str, Tensor]) -> dict[str, Tensor]:
    with torch.no_grad():
        return dict(zip(ANSWERS[:2], decoder(*given.values()), strict=False))


def _room(size: int) -> NDArray[np.uint8]:
    """Return a rendered room (H, W, 3) uint8 RGB; noise would hide errors of large areas."""
    rng = np.random.default_rng(5)
    scene = Scene.random(rng)
    view = random_view(scene, rng, size, size * 3 // 4)
    return scene.render(*view, antialias=False).image


def _write(
    network: nn.Module, given: dict[str, Tensor], outputs: Sequence[str], path: Path
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter deprecates its own internals
        torch.onnx.export(
            network,
            tuple(given.values()),
            str(path),
            input_names=[_MARK + name for name in given],
            output_names=[_MARK + name for name in outputs],
            opset_version=OPSET,
            dynamo=True,
            external_data=True,
            verbose=False,
        )
    graph = clean(_renamed(onnx.load(str(path))))
    aside = path.with_name(path.name + ".data")
    aside.unlink(missing_ok=True)
    large = graph.ByteSize() > LARGEST_FILE
    onnx.save(graph, str(path), save_as_external_data=large, location=aside.name)
    onnx.checker.check_model(str(path), full_check=True)


_MARK = "given."  # a prefix that the exporter gives to none of its own tensors


def _renamed(model: onnx.ModelProto) -> onnx.ModelProto:
    """Give inputs and outputs their final names; inner tensors with these names are renamed.

    The exporter names constants after parameters even if an input has that name already: exported
    with the final names, a decoder for 64 points used a constant instead of its input `embedding`.
    """
    graph = model.graph
    ends = {
        item.name: item.name.removeprefix(_MARK)
        for item in (*graph.input, *graph.output)
        if item.name.startswith(_MARK)
    }
    names = {name: f"{name}.inner" for name in ends.values()} | ends
    for item in (*graph.input, *graph.output, *graph.initializer, *graph.value_info):
        item.name = names.get(item.name, item.name)
    for node in graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = names.get(name, name)
        for index, name in enumerate(node.output):
            node.output[index] = names.get(name, name)
    return model


def _deviation(path: Path, given: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Return the greatest absolute difference from torch over torch's standard deviation."""
    with open_engine(path, backend="onnxruntime-cpu", threads=1) as engine:
        outputs = engine.run_named({name: tensor.numpy() for name, tensor in given.items()})
    deviations = [
        float(np.abs(outputs[name] - tensor.numpy()).max() / (tensor.numpy().std() + 1e-12))
        for name, tensor in expected.items()
    ]
    return math.inf if any(map(math.isnan, deviations)) else max(deviations)


# --- command --------------------------------------------------------------------------------------


def load(source: str, kind: str = "") -> Any:
    """Load the network that SOURCE and --kind name. Raises TrainingError if that fails."""
    if not kind:
        from transformers import AutoConfig, Sam2Model, SamModel

        try:
            model_type = AutoConfig.from_pretrained(source).model_type
            model: Any = {"sam": SamModel, "sam2": Sam2Model, "sam2_video": Sam2Model}[model_type]
            return model.from_pretrained(source, attn_implementation="eager")
        except KeyError:
            raise TrainingError(
                f"{source} is a {model_type}: give a SAM or a SAM 2.1, such as"
                " facebook/sam-vit-base or facebook/sam2.1-hiera-tiny."
            ) from None
        except (OSError, ValueError) as error:
            raise TrainingError(
                f"{source} cannot be loaded by transformers ({' '.join(str(error).split())[:200]}):"
                " check the name, or give the folder that it was downloaded to; for a .pth file of"
                " the authors add --kind vit_b, vit_l, vit_h or vit_t."
            ) from error
    try:
        package = __import__(KINDS[kind])
    except (ImportError, RuntimeError) as error:  # RuntimeError: torchvision for another torch
        raise TrainingError(
            f"{KINDS[kind]} cannot be imported ({error}): install requirements-segmentation.txt as"
            " docs/segmentation.md says, in an environment of its own."
        ) from error
    try:
        return package.sam_model_registry[kind](checkpoint=source)
    except (OSError, RuntimeError) as error:
        raise TrainingError(
            f"{source} is no checkpoint of {kind} ({' '.join(str(error).split())[:200]}): check"
            " the file and --kind."
        ) from error


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `python -m training segmentation`."""
    parser.add_argument("source", help="Hugging Face id, folder, or with --kind a .pth file")
    parser.add_argument("--out", required=True, type=Path, help="folder for encoder and decoder")
    parser.add_argument("--name", default="", help="name of the files (default: from SOURCE)")
    parser.add_argument(
        "--kind", default="", choices=["", *KINDS], help="kind of an authors' .pth file"
    )
    parser.add_argument("--batch", type=int, default=64, help="points per run of the decoder (64)")
    parser.add_argument("--licence", default="Apache-2.0")


def command(args: argparse.Namespace, console: Console) -> None:
    """Load a network, export it and print the files. Raises TrainingError."""
    name = args.name or Path(args.source).stem
    model = load(args.source, args.kind)
    done = export(model, args.out, name, batch=args.batch, licence=args.licence, source=args.source)
    for path in (done.encoder, done.decoder):
        size = sum(part.stat().st_size for part in path.parent.glob(path.name + "*"))
        console.print(f"{path} ({size / 1e6:.1f} MB), {manifest_path(path).name}")
    console.print(f"differs from torch by at most {done.deviation:.1e} of a tensor's spread")
    console.print(f"use it with region_model.path: {done.encoder}")
