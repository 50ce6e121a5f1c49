# SPDX-License-Identifier: Apache-2.0
"""Networks: picture in, one channel of relative disparity out; from the library, from a folder, or
from random weights. LoRA on their encoders.

Every network here takes pictures normalised by its own `spec` and answers (N, 1, H, W) float32,
large = near. `answer` gives what losses need besides: the encoder's features and, where a ReLU ends
the network, what entered it. Nothing is ever downloaded that `allow_download` did not ask for.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional

from depth_node import config
from depth_node.engine import EngineError
from depth_node.engine.manifest import EMBEDDED
from depth_node.model_zoo.registry import locate
from training import checkpoints
from training.checkpoints import TrainingError

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PATCH_PX = 14  # of DINOv2


@dataclass(frozen=True)
class InputSpec:
    """How pictures must look to a network: (pixel / 255 - mean) / std, sides a multiple of px."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    multiple_px: int

    def normalise(self, pictures: Tensor) -> Tensor:
        """Pictures (N, 3, H, W) in 0..1 as the network sees them."""
        mean, std = (pictures.new_tensor(x).view(1, 3, 1, 1) for x in (self.mean, self.std))
        return (pictures - mean) / std

    def fitting(self, height: int, width: int) -> tuple[int, int]:
        """The nearest size that the network takes."""
        m = self.multiple_px
        return max(round(height / m), 1) * m, max(round(width / m), 1) * m

    def require(self, height: int, width: int) -> None:
        """Raise ConfigError, with the nearest size that fits, unless the network takes this one."""
        fitting = self.fitting(height, width)
        if fitting != (height, width):
            raise config.ConfigError(
                f"height and width {height}x{width} do not fit this network: use"
                f" {fitting[0]}x{fitting[1]}"
            )


@dataclass(frozen=True)
class Answer:
    """All that a network says of a batch.

    disparity (N, 1, H, W); before: what entered a final ReLU, or None; features (N, C, h, w): the
    encoder's last, at the stride of the encoder.
    """

    disparity: Tensor
    before: Tensor | None
    features: Tensor


@dataclass(frozen=True)
class StudentConfig:
    """A residual U-Net small enough for one CPU core.

    Its 3x3 convolutions are dense: a MobileNet of inverted residuals with as many parameters
    trained at a quarter of the speed here, on one core with bfloat16 (depthwise layers and their
    normalisations move memory, not numbers).
    """

    widths: tuple[int, ...] = config.option(
        (24, 40, 80, 128, 160), "Channels at strides 2, 4, 8, 16, 32.", minimum=4
    )
    depths: tuple[int, ...] = config.option(
        (0, 1, 2, 2, 2), "Residual blocks at these strides.", minimum=0
    )
    decoder: tuple[int, ...] = config.option(
        (80, 56, 40, 24), "Channels of the decoder at strides 16, 8, 4, 2.", minimum=4
    )
    mirror: bool = config.option(
        False,
        "Once trained, answer with the mean over the picture and its mirror image: twice the time,"
        " a few per cent less error.",
    )

    def __post_init__(self) -> None:
        config.validate(self)
        if len(self.widths) != 5 or len(self.depths) != 5 or len(self.decoder) != 4:
            raise config.ConfigError(
                "widths and depths need five values each (strides 2 to 32), decoder four"
            )
        if min(self.depths[1:]) < 1:
            raise config.ConfigError(
                "depths must be at least 1 from stride 4 on: the first block halves the size"
            )


def _conv(inputs: int, outputs: int, size: int, stride: int = 1, act: bool = True) -> nn.Sequential:
    layers: list[nn.Module] = [
        nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False),
        nn.BatchNorm2d(outputs, momentum=0.03),
    ]
    if act:
        layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)


class Residual(nn.Module):
    """Two 3x3 convolutions around an identity (a 1x1 convolution where the shape changes)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _conv(inputs, outputs, 3, stride), _conv(outputs, outputs, 3, act=False)
        )
        same = stride == 1 and inputs == outputs
        self.around = nn.Identity() if same else _conv(inputs, outputs, 1, stride, act=False)

    def forward(self, x: Tensor) -> Tensor:
        """What enters, changed a little."""
        return functional.relu(self.body(x) + self.around(x))


class _Context(nn.Module):
    """What the whole picture says to every pixel: its mean feature through two layers, added."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(channels, channels // 2),
            nn.ReLU(inplace=True),
            nn.Linear(channels // 2, channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        said: Tensor = self.body(x.mean(dim=(2, 3)))
        return x + said[:, :, None, None]


class _Up(nn.Module):
    """Twice the size, the encoder's features of that size added, then a 3x3 convolution."""

    def __init__(self, inputs: int, skip: int, outputs: int) -> None:
        super().__init__()
        self.narrow = _conv(inputs, outputs, 1)
        self.skip = _conv(skip, outputs, 1)
        self.body = _conv(outputs, outputs, 3)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        merged = functional.interpolate(
            self.narrow(x), scale_factor=2.0, mode="nearest"
        ) + self.skip(skip)
        out: Tensor = self.body(merged)
        return out


class SmallUNet(nn.Module):
    """(N, 3, H, W) normalised picture, H and W multiples of 32 -> (N, 1, H, W) relative disparity,
    large = near.

    Two planes of pixel coordinates beside the colours let the first layer know where in the picture
    it looks: the prior "lower is nearer" then needs no depth of network.
    """

    spec = InputSpec((0.5,) * 3, (0.25,) * 3, 32)

    def __init__(self, cfg: StudentConfig = StudentConfig()) -> None:
        super().__init__()
        self.cfg = cfg
        self.channels = cfg.widths[4]
        w, d = cfg.widths, cfg.decoder
        self.stem = _conv(5, w[0], 3, 2)
        stages = []
        inputs = w[0]
        for level, (width, depth) in enumerate(zip(w, cfg.depths, strict=True)):
            blocks = []
            for k in range(depth):
                blocks.append(Residual(inputs, width, 2 if level > 0 and k == 0 else 1))
                inputs = width
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.ModuleList(stages)
        self.context = _Context(w[4])
        self.up = nn.ModuleList(
            [
                _Up(w[4], w[3], d[0]),
                _Up(d[0], w[2], d[1]),
                _Up(d[1], w[1], d[2]),
                _Up(d[2], w[0], d[3]),
            ]
        )
        self.head = nn.Conv2d(d[3], 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Relative disparity of normalised pictures."""
        if self.training or not self.cfg.mirror:
            return self.answer(x).disparity
        plain, mirrored = self.answer(torch.cat([x, x.flip(3)])).disparity.chunk(2)
        return (plain + mirrored.flip(3)) / 2

    def answer(self, x: Tensor) -> Answer:
        """Disparity and the encoder's last features (stride 32) of normalised pictures."""
        n, _, h, w = x.shape
        ys = torch.linspace(-1, 1, h, dtype=x.dtype, device=x.device).view(1, 1, h, 1)
        xs = torch.linspace(-1, 1, w, dtype=x.dtype, device=x.device).view(1, 1, 1, w)
        place = torch.cat([xs.expand(n, 1, h, w), ys.expand(n, 1, h, w)], dim=1)
        y = self.stem(torch.cat([x, place], dim=1))
        skips = []
        for stage in self.stages:
            y = stage(y)
            skips.append(y)
        y = features = self.context(y)
        for up, skip in zip(self.up, reversed(skips[:-1]), strict=True):
            y = up(y, skip)
        # float32 even under autocast: the last bits of a disparity are the far end of a room.
        y = self.head(y).float()
        y = functional.interpolate(y, scale_factor=2.0, mode="bilinear", align_corners=False)
        return Answer(y, None, features)


@dataclass(frozen=True)
class _Size:
    """The sizes of a Depth Anything: encoder width, layers, heads; decoder; tapped layers."""

    hidden: int
    depth: int
    heads: int
    neck: tuple[int, int, int, int]
    fusion: int
    taps: tuple[int, int, int, int]
    head: int = 32


# small, base, large are those of Depth Anything V2 (and of Distill Any Depth); vit_tiny is ours,
# after DeiT's, for edge devices; debug is for tests.
SIZES = {
    "debug": _Size(32, 4, 2, (8, 8, 16, 16), 16, (1, 2, 3, 4), head=8),
    "vit_tiny": _Size(192, 12, 3, (24, 48, 96, 192), 48, (3, 6, 9, 12)),
    "small": _Size(384, 12, 6, (48, 96, 192, 384), 64, (3, 6, 9, 12)),
    "base": _Size(768, 12, 12, (96, 192, 384, 768), 128, (3, 6, 9, 12)),
    "large": _Size(1024, 24, 16, (256, 512, 1024, 1024), 256, (5, 12, 18, 24)),
}
KINDS = ("unet", *SIZES)


@dataclass(frozen=True)
class NetworkConfig:
    """Which network, and where its weights come from."""

    kind: str = config.option(
        "unet",
        "unet: the small residual U-Net; else a Depth Anything of that size. With `source`, the"
        " size is the source's.",
        choices=KINDS,
    )
    source: str = config.option(
        "",
        "Folder (config.json, model.safetensors) or id on the Hugging Face hub of a Depth Anything"
        " or Distill Any Depth; a run folder of ours; `embedded` or an .onnx file exported from a"
        " U-Net of ours; empty: random weights.",
    )
    revision: str = config.option("main", "Revision on the hub.")
    allow_download: bool = config.option(
        False, "May fetch `source` from the hub; otherwise only what lies on this machine is used."
    )
    unet: StudentConfig = config.section(StudentConfig, "The U-Net, where kind is unet.")

    def __post_init__(self) -> None:
        config.validate(self)


class DepthAnything(nn.Module):
    """DINOv2 encoder and DPT decoder of transformers' DepthAnythingForDepthEstimation.

    (N, 3, H, W) normalised pictures, H and W multiples of 14 -> (N, 1, H, W). Relative networks
    give disparity; a metric one gives metres (`meaning`).
    """

    spec = InputSpec(IMAGENET_MEAN, IMAGENET_STD, PATCH_PX)

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network
        facts = network.config
        self.channels: int = facts.backbone_config.hidden_size
        relative = facts.depth_estimation_type == "relative"
        self.meaning = "disparity_affine_invariant" if relative else "depth_metric"
        if relative:  # taken out of the network, so that losses can see behind it
            network.head.activation2 = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Relative disparity (or metres) of normalised pictures."""
        return self.answer(x).disparity

    def answer(self, x: Tensor) -> Answer:
        """Disparity, what entered the final ReLU, and the encoder's patch features."""
        rows, columns = x.shape[-2] // PATCH_PX, x.shape[-1] // PATCH_PX
        if x.shape[-2] % PATCH_PX or x.shape[-1] % PATCH_PX:
            raise ValueError(
                f"A picture of {x.shape[-2]}x{x.shape[-1]} does not fit patches of {PATCH_PX} px:"
                " give sides that are multiples of it."
            )
        net = self.network
        maps = net.backbone.forward_with_filtered_kwargs(x).feature_maps
        # The first token stands for the whole picture, the others for the patches row by row.
        features = maps[-1][:, 1:].transpose(1, 2).unflatten(2, (rows, columns))
        y = net.head(net.neck(maps, rows, columns), rows, columns)[:, None].float()
        if self.meaning == "depth_metric":
            return Answer(y, None, features)
        return Answer(functional.relu(y), y, features)


class Dino(nn.Module):
    """A frozen DINOv2: what feature alignment compares a student's encoder with."""

    spec = InputSpec(IMAGENET_MEAN, IMAGENET_STD, PATCH_PX)

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network.eval().requires_grad_(False)
        self.channels: int = network.config.hidden_size

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Patch features (N, C, H / 14, W / 14) of normalised pictures."""
        rows, columns = x.shape[-2] // PATCH_PX, x.shape[-1] // PATCH_PX
        tokens: Tensor = self.network(pixel_values=x).last_hidden_state
        return tokens[:, 1:].transpose(1, 2).unflatten(2, (rows, columns))


Network = SmallUNet | DepthAnything


def open_network(cfg: NetworkConfig, weights: bool = True) -> Network:
    """A network as the settings say. `weights=False`: its shape alone, to load a checkpoint into.

    Raises TrainingError where the weights are not there or do not fit.
    """
    if cfg.source == EMBEDDED or cfg.source.endswith(".onnx"):
        return _from_onnx(cfg) if weights else SmallUNet(_student_of(cfg))
    if cfg.source and _is_ours(Path(cfg.source)):
        return open_run(Path(cfg.source), weights)
    if cfg.kind == "unet":
        if cfg.source:
            raise TrainingError(
                f"There is no checkpoint of ours in {cfg.source!r}; correct the source, or set kind"
                " to the size of a Depth Anything if it is one."
            )
        return SmallUNet(cfg.unet)
    from transformers import DepthAnythingForDepthEstimation

    if not cfg.source:
        return DepthAnything(
            _awake(DepthAnythingForDepthEstimation(_depth_anything_config(cfg.kind)))
        )
    if weights:
        return DepthAnything(_library(DepthAnythingForDepthEstimation, cfg))
    shape = _library(DepthAnythingForDepthEstimation.config_class, cfg)
    return DepthAnything(DepthAnythingForDepthEstimation(shape))


class Sam(nn.Module):
    """A Segment Anything (1, 2 or 2.1) of the library: masks at points of a picture."""

    spec = InputSpec(IMAGENET_MEAN, IMAGENET_STD, 1)

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network.eval().requires_grad_(False)
        # The first one keeps the picture's shape and pads it below and right, the others stretch.
        self.pads = network.config.model_type == "sam"
        self.side_px = int(network.prompt_encoder.input_image_size)

    @torch.no_grad()
    def forward(
        self, picture: Tensor, points: Tensor, at_once: int = 64
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Candidates at points (P, 2), (x, y) px of a picture (1, 3, H, W) in 0..1, by and by.

        Each time logits (k, H, W), above 0 inside, and the network's guess (k,) of their overlap
        with what is there; three candidates a point.
        """
        height, width = picture.shape[-2:]
        side = self.side_px
        if self.pads:
            share = side / max(height, width)
            inner = (max(round(height * share), 1), max(round(width * share), 1))
        else:
            inner = (side, side)
        x = functional.interpolate(
            picture, inner, mode="bilinear", align_corners=False, antialias=True
        )
        x = functional.pad(self.spec.normalise(x), (0, side - inner[1], 0, side - inner[0]))
        seen = self.network.get_image_embeddings(x)
        scale = points.new_tensor([inner[1] / width, inner[0] / height])
        for part in ((points + 0.5) * scale).split(at_once):
            out = self.network(
                image_embeddings=seen,
                input_points=part[None, :, None].to(x.dtype),
                multimask_output=True,
            )
            logits = functional.interpolate(
                out.pred_masks[0], (side, side), mode="bilinear", align_corners=False
            )[..., : inner[0], : inner[1]]
            logits = functional.interpolate(
                logits, (height, width), mode="bilinear", align_corners=False
            )
            yield logits.flatten(0, 1), out.iou_scores[0].flatten()


def open_sam(cfg: Source) -> Sam:
    """A Segment Anything from a folder or the hub. Raises TrainingError where there is none."""
    from transformers import AutoConfig, Sam2Model, SamModel

    kind = _library(AutoConfig, cfg).model_type
    classes = {"sam": SamModel, "sam2": Sam2Model, "sam2_video": Sam2Model}
    if kind not in classes:
        raise TrainingError(
            f"The network in {cfg.source!r} is a {kind!r}, no Segment Anything; give one of"
            f" {', '.join(classes)}."
        )
    return Sam(_library(classes[kind], cfg))


def _student_of(cfg: NetworkConfig) -> StudentConfig:
    """The shape of an exported U-Net, as its manifest says; as cfg.unet says where that is gone."""
    try:
        _, facts = locate(cfg.source)
    except EngineError:
        return cfg.unet
    said = facts.training.get("student")
    return config.build(StudentConfig, said) if said else cfg.unet


def _from_onnx(cfg: NetworkConfig) -> SmallUNet:
    """Our exported U-Net back in torch, so that what is shipped can be adapted further.

    The export folds batch normalisations into the convolutions; here they come back as ones that
    only add the bias.
    """
    import onnx
    from google.protobuf.message import DecodeError
    from onnx import numpy_helper

    network = SmallUNet(_student_of(cfg)).eval()
    try:
        path, _ = locate(cfg.source)
        stored = {
            item.name.removesuffix("_half"): torch.from_numpy(numpy_helper.to_array(item).copy())
            for item in onnx.load(str(path)).graph.initializer
        }
    except (EngineError, DecodeError) as error:
        raise TrainingError(
            f"The network {cfg.source!r} cannot be opened ({error}); give `embedded` or an .onnx"
            " file that `python -m training export` wrote."
        ) from error
    layers = dict(network.named_modules())
    content = {}
    for name, own in network.state_dict().items():
        layer, _, part = name.rpartition(".")
        if isinstance(layers[layer], nn.BatchNorm2d):
            before = re.sub(r"1$", "0", layer)  # the convolution that it was folded into
            bias = stored.get(f"{before}.bias", own)
            neutral = {"weight": torch.sqrt(1 + torch.tensor(layers[layer].eps)).expand_as(own)}
            neutral |= {"running_mean": own * 0, "running_var": own * 0 + 1, "bias": bias}
            content[name] = neutral.get(part, own).to(own.dtype)
        elif name in stored:
            content[name] = stored[name].to(own.dtype)
    checkpoints.load(network, content, cfg.source)
    return network


def _is_ours(path: Path) -> bool:
    return any((path / name).is_file() for name in ("about.json", "last/about.json"))


def open_run(path: Path, weights: bool = True) -> Network:
    """The network that a run of ours learnt, its low-rank updates merged, in eval mode.

    path: a run folder or a checkpoint in it. The averaged weights are taken.
    """
    found = checkpoints.read(path)
    settings = found["settings"]
    if "network" in settings:
        network = open_network(config.build(NetworkConfig, settings["network"]), weights=False)
    elif "student" in settings:
        network = SmallUNet(config.build(StudentConfig, settings["student"]))
    else:
        raise TrainingError(
            f"The run in {path} is of recipe {found.get('recipe')!r}, whose network is not known"
            " here; give a run of supervised, distill or westar."
        )
    share = 1.0
    if "tune" in settings:
        tuned = config.build(TuneConfig, settings["tune"])
        tune(network, tuned)
        share = tuned.share
    if weights:
        checkpoints.load(network, found["averaged"], path)
    return merged(network, share).requires_grad_(True).eval()  # type: ignore[return-value]


def open_dino(cfg: NetworkConfig) -> Dino:
    """A frozen DINOv2 from a folder or the hub; with random weights where `source` is empty."""
    from transformers import Dinov2Model

    if cfg.source:
        return Dino(_library(Dinov2Model, cfg))
    if cfg.kind not in SIZES:
        raise TrainingError(
            f"A DINOv2 of kind {cfg.kind!r} does not exist: use one of {', '.join(SIZES)}."
        )
    return Dino(Dinov2Model(_depth_anything_config(cfg.kind).backbone_config))


@torch.no_grad()
def _awake(network: Any) -> Any:
    """Random weights that learn: the library's are so small that the decoder answers 1e-8."""
    for part in (network.neck, network.head):
        for layer in part.modules():
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
                layer.reset_parameters()
    network.head.conv3.bias.fill_(1.0)  # above the ReLU's dead side
    return network


def _depth_anything_config(kind: str) -> Any:
    from transformers import DepthAnythingConfig, Dinov2Config

    size = SIZES[kind]
    taps: dict[str, Any] = {"out_indices": list(size.taps)}
    encoder = Dinov2Config(
        hidden_size=size.hidden,
        num_hidden_layers=size.depth,
        num_attention_heads=size.heads,
        image_size=518,
        reshape_hidden_states=False,
        apply_layernorm=True,
        **taps,
    )
    return DepthAnythingConfig(
        backbone_config=encoder,
        neck_hidden_sizes=list(size.neck),
        reassemble_hidden_size=size.hidden,
        fusion_hidden_size=size.fusion,
        head_hidden_size=size.head,
    )


class Source(Protocol):
    """Where the library's weights come from, a folder or a name on the hub, and what is allowed."""

    @property
    def source(self) -> str: ...  # noqa: D102

    @property
    def revision(self) -> str: ...  # noqa: D102

    @property
    def allow_download(self) -> bool: ...  # noqa: D102


def _library(cls: Any, cfg: Source) -> Any:
    """`cls.from_pretrained`, local unless asked, without pickles and with every weight in place."""
    from transformers.utils import logging

    local = Path(cfg.source).is_dir()
    arguments: dict[str, Any] = {"local_files_only": local or not cfg.allow_download}
    if not local:
        arguments["revision"] = cfg.revision
    is_model = issubclass(cls, nn.Module)
    if is_model:
        arguments |= {"use_safetensors": True, "output_loading_info": True, "dtype": torch.float32}
    talk, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        found = cls.from_pretrained(cfg.source, **arguments)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        first = str(error).strip().splitlines()[0]
        cure = (
            "check the folder: it needs config.json and model.safetensors of that architecture"
            if local
            else "give a folder that holds it, or set its allow_download to true"
            if not cfg.allow_download
            else "check the name, the revision and the connection"
        )
        raise TrainingError(
            f"The network {cfg.source!r} cannot be opened ({first}); {cure}."
        ) from (error)
    finally:
        logging.set_verbosity(talk)
        if bar:
            logging.enable_progress_bar()
    if not is_model:
        return found
    network, info = found
    missing = sorted(info["missing_keys"]) + sorted(str(k) for k in info["mismatched_keys"])
    if missing:
        raise TrainingError(
            f"The weights in {cfg.source!r} do not fit a {cls.__name__}: {missing[0]} and"
            f" {len(missing) - 1} more are missing or of another size; give a folder of that"
            " architecture."
        )
    return network


def in_encoder(name: str) -> bool:
    """Whether a parameter of that name belongs to the encoder of one of these networks."""
    return bool(_ENCODER.search(name))


@torch.no_grad()
def fresh_decoder(network: nn.Module) -> None:
    """Random weights for all but the encoder, in place."""
    if isinstance(network, DepthAnything):
        _awake(network.network)
        return
    for name, layer in network.named_modules():
        if name and not in_encoder(name) and hasattr(layer, "reset_parameters"):
            layer.reset_parameters()  # type: ignore[operator]


TUNES = ("lora", "full", "encoder", "decoder")
# The names of the same four matrices: transformers 5, transformers 4, and one fused matrix for the
# first three (timm, the original DINOv2), of which no part can be had alone.
_LAYERS = {
    "q": ("q_proj", "query", "qkv"),
    "k": ("k_proj", "key", "qkv"),
    "v": ("v_proj", "value", "qkv"),
    "o": ("o_proj", r"attention\.output\.dense", r"attn\.proj"),
}
_ENCODER = re.compile(r"(^|\.)(backbone|blocks|stem|stages|context)(\.|$)")


@dataclass(frozen=True)
class TuneConfig:
    """Which weights learn. Which of q, k, v, o is not said in WeSTAR; q and v are WeSAM's."""

    what: str = config.option(
        "lora", "low-rank updates of the encoder, or whole parts.", choices=TUNES
    )
    rank: int = config.option(8, "Rank of the updates.", minimum=1)
    alpha: int = config.option(16, "Updates are scaled by alpha / rank.", minimum=0)
    targets: tuple[str, ...] = config.option(
        ("q", "v"), "Matrices of the attention layers that get one.", choices=tuple(_LAYERS)
    )
    pattern: str = config.option(
        "",
        "Instead of `targets`: regular expression of the whole names of linear layers and"
        " convolutions. A U-Net has no attention: by default its encoder's layers.",
    )
    share: float = config.option(
        1.0,
        "Share of the low-rank updates with which a run is opened, once it has learnt: a point on"
        " the line from the source to what was learnt. Less forgets less.",
        minimum=0,
        maximum=1,
    )

    def __post_init__(self) -> None:
        config.validate(self)
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise config.ConfigError(f"pattern is no regular expression: {error}") from error

    def regex(self) -> str:
        """What the names of the updated layers match."""
        if self.pattern:
            return self.pattern
        names = dict.fromkeys(name for target in self.targets for name in _LAYERS[target])
        return rf"(.*\.)?(backbone|blocks|encoder)\..*({'|'.join(names)})"


def tune(model: nn.Module, cfg: TuneConfig) -> nn.Module:
    """The same model, in place, with gradients for what learns and low-rank updates where asked.

    Raises TrainingError where no layer fits.
    """
    if cfg.what != "lora":
        for name, parameter in model.named_parameters():
            inside = in_encoder(name)
            learns = cfg.what == "full" or inside == (cfg.what == "encoder")
            # The mask token is of masked image modelling: it takes no part in any answer.
            parameter.requires_grad_(learns and not name.endswith("mask_token"))
        return model
    from peft import LoraConfig, inject_adapter_in_model

    unet = isinstance(model, SmallUNet) and not cfg.pattern
    regex = r"(stem|stages|context)\..*" if unet else cfg.regex()
    found = [
        name
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d) and re.fullmatch(regex, name)
    ]
    if not found:
        raise TrainingError(
            f"No layer of this network is called like {regex!r}: set tune.pattern to the names of"
            " its linear layers or convolutions, or tune.what to full, encoder or decoder."
        )
    updates = LoraConfig(
        r=cfg.rank, lora_alpha=cfg.alpha, target_modules=found, lora_dropout=0.0, bias="none"
    )
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    inject_adapter_in_model(updates, model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)
    return model


def low_rank(model: nn.Module) -> Iterator[tuple[Tensor, Tensor, float]]:
    """(A (r, in), B (out, r), scale) of every low-rank update: W + scale B A.

    Of a convolution, in counts the kernel's places too: A is a convolution and B is 1x1.
    """
    for module in model.modules():
        layer: Any = module
        if hasattr(layer, "lora_A") and hasattr(layer, "scaling"):
            for name, a in layer.lora_A.items():
                b = layer.lora_B[name].weight
                yield a.weight.flatten(1), b.flatten(1), float(layer.scaling[name])


def hold_statistics(model: nn.Module) -> None:
    """Batch normalisations whose weights do not learn use their statistics as they are.

    Otherwise a network of which only low-rank updates learn would drift by its statistics, which
    no pull to the source holds back. Call it after train().
    """
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d) and not layer.weight.requires_grad:
            layer.eval()


def merged(model: nn.Module, share: float = 1.0) -> nn.Module:
    """The same model, in place, with a share of its low-rank updates added to the weights."""
    for parent in list(model.modules()):
        for name, module in list(parent.named_children()):
            child: Any = module
            if hasattr(child, "lora_A") and hasattr(child, "merge"):
                child.scale_layer(share)
                child.merge(safe_merge=True)
                setattr(parent, name, child.get_base_layer())
    return model


def parameter_count(model: nn.Module, learnt: bool = False) -> int:
    """Numbers in the network; with `learnt` those with a gradient."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not learnt)
