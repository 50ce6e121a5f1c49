# SPDX-License-Identifier: Apache-2.0
"""WeSTAR: a depth network adapted to the images of a new place (arXiv 2511.14238).

The student sees a strong augmentation of an image, its teacher (the average of the student's
weights) a weak one; the student learns the teacher's disparity, normalised over the whole image and
over the masks of the objects in it. A few pairs of points with ordinal labels correct the depth
order, and the low-rank updates are regularised towards the source's weights. No depth is needed.
Ours: images of the source's own domain, on which the student must keep the source's output, because
regularised weights alone forget too much (docs/studies/westar.md).

Only the abstract of the paper was available. The structure, the weights of the losses, the rank and
the decay 0.996 of the averaged weights are from third-party notes and are the defaults here. What
no source states is ours and a setting: the margin, that the cost of the pairs is a mean and is
taken on the normalised map, how often labelled images are drawn, that the deviation of a map is the
mean absolute one, which masks count, how often each strong change is applied (no blur or noise
among them, after WeSAM), learning rate, steps and size. training/configs/westar.yaml departs from
the paper's weights.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor, nn

from depth_node import config
from training.batch_images import sheet
from training.data.appearance import Appearance
from training.data.augmentation import STRONG, WEAK, ViewConfig, Window, random_window, recolour
from training.data.open import DataConfig, open_samples
from training.data.ordinal_labels import LabelSet, SimulationConfig, read_labels, simulate
from training.data.region_masks import MaskConfig, MaskMaker, as_layers, stacked
from training.data.samples import DataError, Sample
from training.losses.depth import (
    ORDINAL_FORMS,
    context_l1,
    dead_outputs,
    dead_weight,
    drift,
    ordinal,
    product_norm,
)
from training.losses.normalization import DEVIATIONS, layers, normalise, worthwhile
from training.models.lora import TuneConfig, hold_statistics, low_rank, tune
from training.models.network_io import channels_first, input_columns, input_rows
from training.models.networks import Network, NetworkConfig, open_student
from training.models.unet import (
    STATISTICS_OF,
    folded,
    measure_statistics,
    restore_statistics,
)
from training.recipe import Batch, BatchPart, LoopConfig, Recipe, generators

FEW_PAIRS = 20  # with fewer held-out pairs their fraction in the wrong order is unreliable
CONTEXTS = ("global", "depth_bins", "masks")
TEACHERS = ("ema", "shared", "frozen_source", "truth")


@dataclass(frozen=True)
class LossConfig:
    """Weights and settings of the loss; a weight of 0 switches a term off.

    loss = st * self-training + weak * ordinal + reg * squared distance of the weights to the source
    + dead * outputs cut off by a final ReLU + known * difference from the source's output on images
    of the source's own domain.
    """

    st: float = config.option(1.0, "Weight of dense self-training.", minimum=0)
    weak: float = config.option(
        0.001,
        "Weight of the ordinal labels, a mean over pairs. The default is the paper's, whose sum or"
        " mean is not known: as a mean it moves nothing; westar.yaml has ours.",
        minimum=0,
    )
    reg: float = config.option(
        1.0,
        "Weight of the squared distance of the weights to the source; the default is the paper's.",
        minimum=0,
    )
    contexts: str = config.option(
        "masks",
        "Normalised over the whole image (global), over 1 + 2 + 4 bins of the teacher's range"
        " (depth_bins), or over the whole image and each mask.",
        choices=CONTEXTS,
    )
    deviation: str = config.option(
        "mean",
        "What a context is divided by: its mean absolute deviation, or the median one; the paper's"
        " MAD may be either.",
        choices=DEVIATIONS,
    )
    mask_px: int = config.option(
        256, "Smaller masks are no context; counted in the network's input.", unit="px", minimum=2
    )
    mask_spread: float = config.option(
        1e-3,
        "Masks in which the teacher's deviation is below this fraction of its deviation in the"
        " whole image are no context.",
        minimum=0,
    )
    ordinal: str = config.option("margin", "Form of the ordinal loss.", choices=ORDINAL_FORMS)
    margin: float = config.option(
        0.05, "Least difference of an ordered pair, in the units of `ordinal_on`.", minimum=0
    )
    ordinal_on: str = config.option(
        "normalised",
        "Pairs are compared on the map normalised over the image, or as it is.",
        choices=("normalised", "raw"),
    )
    dead: float = dead_weight(0.0)
    known: float = config.option(
        0.0,
        "Weight of answering as the source does on the images of `known`, normalised over the"
        " whole image; one is seen beside each image of the new place.",
        minimum=0,
    )

    def __post_init__(self) -> None:
        config.validate(self)


@dataclass(frozen=True)
class LabelConfig:
    """Source of the ordinal labels: a file or simulation from depth; with neither, no labels."""

    file: str = config.option("", "Label file, .csv or .json (docs/training/data.md).")
    from_depth: bool = config.option(
        False, "Draw labels from the depth that comes with the images, instead of a file."
    )
    probability: float = config.option(
        0.5,
        "Probability that an image of a batch is drawn from the labelled ones alone, so that few"
        " labels among many images are seen often; 0: all images alike. Ours.",
        minimum=0,
        maximum=1,
    )
    held: float = config.option(
        0.1,
        "Fraction of the labelled images held out of training: the fraction of their pairs in the"
        " wrong order is logged at every checkpoint and decides which is best.",
        minimum=0,
        maximum=0.9,
    )
    simulation: SimulationConfig = config.section(SimulationConfig, "How they are drawn.")

    def __post_init__(self) -> None:
        config.validate(self)
        if self.file and self.from_depth:
            raise config.ConfigError("file and from_depth exclude each other: clear one")


@dataclass(frozen=True)
class Config:
    """Settings of an adaptation."""

    height: int = input_rows(392)
    width: int = input_columns(518)
    teacher: str = config.option(
        "ema",
        "The student's averaged weights, the student itself, the source as it was, or the depth"
        " that comes with the images (what this tuning could reach at best).",
        choices=TEACHERS,
    )
    network: NetworkConfig = config.section(NetworkConfig, "The source model.", kind="small")
    tune: TuneConfig = config.section(TuneConfig, "What of it learns.")
    appearance: float = config.option(
        0.0,
        "loss.known: probability that the student sees an image of `known` as it would look at the"
        " new place (light, contrast, sharpness, noise), while the source answers for it as it is."
        " Ours.",
        minimum=0,
        maximum=1,
    )
    keep: int = config.option(32, "Images of each place that are held in memory.", minimum=0)
    images: DataConfig = config.section(DataConfig, "The new place.")
    known: DataConfig = config.section(
        DataConfig, "loss.known: images of the place that the source knows, without depth."
    )
    weak: ViewConfig = config.section(ViewConfig, "The teacher's view.", **WEAK)
    strong: ViewConfig = config.section(
        ViewConfig, "The student's view; its geometry is the teacher's.", **STRONG
    )
    masks: MaskConfig = config.section(MaskConfig, "The things in the images.")
    labels: LabelConfig = config.section(LabelConfig, "The ordinal labels.")
    loss: LossConfig = config.section(LossConfig, "What is minimised.")
    loop: LoopConfig = config.section(
        LoopConfig,
        "How long and how fast.",
        steps=5000,
        batch=4,
        learning_rate=1e-4,
        weight_decay=0.01,
        warmup=250,
        final_rate=0.0,
        ema=0.996,
        ema_warmup=False,
    )

    def __post_init__(self) -> None:
        config.validate(self)
        if self.teacher == "ema" and self.loop.ema == 0:
            raise config.ConfigError(
                "teacher=ema needs averaged weights: set loop.ema (0.996), or another teacher"
            )
        if self.loss.st == self.loss.weak == 0 and not self.appearance:
            raise config.ConfigError(
                "loss.st, loss.weak and appearance are all 0: nothing would be learnt; set one"
            )
        if self.appearance and not self.loss.known:
            raise config.ConfigError(
                "appearance changes the images of loss.known, which is 0: set a weight (4), or"
                " appearance=0"
            )


class Westar(Recipe):
    """The recipe: two views of each image of the new place, with its masks and labels.

    images: of the new place. labels: their ordinal labels. known: images of the source's own
    domain. say: receives sentences for the user. Raises DataError if loss.known is set and `known`
    is empty, and ConfigError if only labels would teach and there are none.
    """

    name = "westar"
    free_to_change = ("masks.folder", "keep")

    def __init__(
        self,
        cfg: Config,
        images: Sequence[Sample],
        labels: LabelSet | None = None,
        known: Sequence[Sample] = (),
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        if cfg.loss.known and not known:
            raise DataError("loss.known needs images: set `known` to a data set, or it to 0.")
        if labels is None and not cfg.labels.from_depth and not (cfg.loss.st or cfg.appearance):
            raise config.ConfigError(
                "loss.st and appearance are 0 and there are no labels: nothing would be learnt; set"
                " labels.file to a label file, or loss.st to a weight (1)"
            )
        self.cfg = cfg
        self.images = images
        self.known = len(known)
        self.labels = labels
        self.held: list[str] = []
        if labels is not None and cfg.labels.held:
            order = np.random.default_rng(max(cfg.loop.seed, 0)).permutation(len(labels.images))
            count = int(cfg.labels.held * len(order))
            self.held = [labels.images[k] for k in sorted(order[:count])]
        self.masks = MaskMaker(cfg.masks)
        self._report = say
        self._read = functools.lru_cache(cfg.keep)(images.__getitem__)
        self._layers = functools.lru_cache(cfg.keep)(self._mask_layers)
        self._recall = functools.lru_cache(cfg.keep)(known.__getitem__)
        self.source: nn.Module | None = None  # for teacher=frozen_source and loss.known
        self.before: list[Tensor] = []  # initial values of the learnt weights, for loss.reg

    def model(self) -> nn.Module:
        """Return the source network, with gradients for the tuned weights only."""
        cfg = self.cfg
        network = open_student(cfg.network)
        network.spec.require(cfg.height, cfg.width)
        if cfg.teacher == "frozen_source" or cfg.loss.known:
            self.source = copy.deepcopy(network).eval().requires_grad_(False)
        if self.held:
            before = self.validate(network.eval())
            if before:
                self._report(
                    f"Held back: {before['held_pairs']:.0f} ordered pairs of {len(self.held)}"
                    f" images, of which the source has {before['wrong_order']:.3f} in the wrong"
                    " order (lower is better)."
                    + (" So few say little." if before["held_pairs"] < FEW_PAIRS else "")
                )
            network.train()
        if cfg.tune.statistics != "source":
            self._move_statistics(network)
        tune(network, cfg.tune)
        if cfg.loss.reg and cfg.tune.mode != "lora":
            self.before = [p.detach().clone() for p in network.parameters() if p.requires_grad]
        return network

    def _move_statistics(self, network: Network) -> None:
        """Move the statistics of batch normalisations towards those of images of the new place.

        A network from an exported file has lost the source's statistics; they are first restored
        from images of `known`. Raises DataError if these are needed and missing.
        """
        both = self.cfg.tune.statistics == "both"
        old: list[Tensor] = []
        normalised = network.spec.normalise
        if both or folded(network):
            if not self.known:
                raise DataError(
                    "tune.statistics needs images that the source knows, for `both` and for an"
                    " exported network, which has lost its statistics: set `known` to a data set."
                )
            old = [normalised(self._whole(self._recall, self.known))]
        if folded(network):
            restore_statistics(network, old[0])
        new = normalised(self._whole(self._read, len(self.images)))
        images = torch.cat([new, *old]) if both else new
        measure_statistics(network, images, self.cfg.tune.statistics_share)

    @functools.cached_property
    def _appearance(self) -> Appearance:
        """The transform that makes an image of `known` look like one of the new place."""
        both = [self._whole(self._read, len(self.images)), self._whole(self._recall, self.known)]
        to, of = (images.permute(0, 2, 3, 1).numpy() for images in both)
        return Appearance(to=to, of=of)

    def _whole(self, read: Callable[[int], Sample], count: int) -> Tensor:
        """Return STATISTICS_OF whole images (n, 3, h, w) in 0..1, evenly spaced among `count`.

        With fewer images some are repeated, so that two data sets have equal weight.
        """
        views = []
        evenly = np.linspace(0, count - 1, min(count, STATISTICS_OF)).astype(int)
        for index in np.resize(evenly, STATISTICS_OF):
            image = read(int(index)).image
            window = Window.whole(image.shape, self.cfg.height, self.cfg.width)
            views.append(window.unit_range(image))
        return channels_first(views)

    def batch(self, step: int, part: BatchPart) -> Batch:
        """Return weak and strong views (n, 3, h, w) in 0..1, layers of masks, pairs of points.

        points (P, 4): x1, y1, x2, y2 in px of the view; sign (P,): +1 the first point is nearer, -1
        farther, 0 alike; owner (P,): index of the image. Depending on the settings also masks
        (n, L, h, w); known (n, 3, h, w), images of the source's domain, and known_source, the same
        images as the source sees them, if `appearance` changes some; truth (n, 1, h, w), disparity
        in 1/m.
        """
        rows = [self._view(rng) for rng in generators(self.cfg.loop, step, part)]
        batch: Batch = {
            name: channels_first([row[name] for row in rows])
            for name in ("weak", "strong", "known", "known_source")
            if name in rows[0]
        }
        if self.cfg.loss.contexts == "masks" and self.cfg.loss.st:
            batch["masks"] = torch.from_numpy(stacked([row["masks"] for row in rows]))
        if self.cfg.teacher == "truth":
            batch["truth"] = torch.from_numpy(np.stack([row["truth"] for row in rows]))[:, None]
        counts = [len(row["sign"]) for row in rows]
        batch["points"] = torch.from_numpy(np.concatenate([row["points"] for row in rows])).float()
        batch["sign"] = torch.from_numpy(np.concatenate([row["sign"] for row in rows]))
        batch["owner"] = torch.from_numpy(np.repeat(np.arange(len(rows)), counts))
        return batch

    def _view(self, rng: np.random.Generator) -> dict[str, Any]:
        cfg = self.cfg
        index = int(rng.integers(0, len(self.images)))
        if self._labelled and rng.random() < cfg.labels.probability:
            index = self._labelled[int(rng.integers(0, len(self._labelled)))]
        sample = self._read(index)
        window = random_window(sample.image.shape, cfg.height, cfg.width, cfg.weak, rng)
        pixels = window.unit_range(sample.image)
        row: dict[str, Any] = {
            "weak": recolour(pixels, cfg.weak, rng),
            "strong": recolour(pixels, cfg.strong, rng),
        }
        if cfg.loss.known:
            old = self._recall(int(rng.integers(0, self.known))).image
            known_window = random_window(old.shape, cfg.height, cfg.width, cfg.weak, rng)
            row["known"] = known_window.unit_range(old)
            if cfg.appearance:
                row["known_source"] = row["known"]
                if rng.random() < cfg.appearance:
                    row["known"] = self._appearance(row["known"], rng)
        if cfg.teacher == "truth":
            row["truth"] = _disparity(sample, window)
        if cfg.loss.contexts == "masks" and cfg.loss.st:
            shape = sample.image.shape
            row["masks"] = np.stack([window.nearest(m, shape) for m in self._layers(index)])
        first, second, sign = self._points(sample)
        one, other = window.points(first), window.points(second)
        both = np.concatenate([one, other], axis=1)
        # The crop of the weak view may leave points out.
        inside = ((both > -0.5) & (both < np.tile([cfg.width - 0.5, cfg.height - 0.5], 2))).all(1)
        row["points"], row["sign"] = both[inside], sign[inside]
        return row

    def _mask_layers(self, index: int) -> NDArray[np.int32]:
        sample = self._read(index)
        if not self.cfg.masks.given:
            return as_layers(self.masks(sample.image))
        if sample.masks is None:
            raise DataError(
                f"{sample.name} has no masks: set masks.given to false, so that they are made, or"
                " give images that come with masks."
            )
        return sample.masks[None]

    def _points(self, sample: Sample) -> tuple[Any, Any, Any]:
        labels = self.labels
        if self.cfg.loss.weak and self.cfg.labels.from_depth and sample.depth is not None:
            pairs = simulate(sample.name, sample.depth, self.cfg.labels.simulation)
            labels = LabelSet(pairs, [sample.name])
        if labels is None or not self.cfg.loss.weak or sample.name in self.held:
            labels = LabelSet([], [])
        return labels.points(sample.name, sample.image.shape)

    def loss(self, model: nn.Module, batch: Batch, averaged: nn.Module | None) -> dict[str, Tensor]:
        """Return the terms of LossConfig and their weighted sum.

        Also wrong_order_train, the fraction of the batch's ordered pairs in the wrong order.
        """
        cfg = self.cfg.loss
        network: Any = model
        hold_statistics(model)
        new = ("strong",) if cfg.st or cfg.weak else ()  # otherwise no term uses the strong view
        views = [batch[name] for name in (*new, "known") if name in batch]
        answer = network.answer(network.spec.normalise(torch.cat(views)))
        student, again = answer.disparity.tensor_split([len(batch["strong"]) if new else 0])
        zero = student.sum() * 0.0
        terms = {"st": zero, "weak": zero, "reg": zero}
        if cfg.st:
            teacher = self._teach(network, batch, averaged)
            terms["st"] = self_training(student, teacher, batch.get("masks"), cfg)
        if cfg.weak and len(batch["sign"]):
            terms["weak"] = ordinal_loss(student, batch, cfg)
            ordered = batch["sign"] != 0
            if ordered.any():
                wrong = differences(student.detach(), batch) * batch["sign"] <= 0
                terms["wrong_order_train"] = wrong[ordered].float().mean()
        elif cfg.weak:
            del terms["weak"]  # no label in this part: it must not enter the log's mean as 0
        if cfg.reg:
            terms["reg"] = self._distance(model)
        total = cfg.st * terms["st"] + cfg.reg * terms["reg"]
        if "weak" in terms:
            total = total + cfg.weak * terms["weak"]
        if cfg.known:
            reference = self._source_disparity(
                network, batch["known_source"] if "known_source" in batch else batch["known"]
            )
            terms["known"] = self_training(again, reference, None, KNOWN)
            total = total + cfg.known * terms["known"]
        if cfg.dead and answer.before is not None:
            terms["dead"] = dead_outputs(answer.before)
            total = total + cfg.dead * terms["dead"]
        return {"loss": total, **terms}

    @torch.no_grad()
    def _teach(self, model: Any, batch: Batch, averaged: nn.Module | None) -> Tensor:
        if self.cfg.teacher == "truth":
            return batch["truth"]
        if self.cfg.teacher == "frozen_source":
            return self._source_disparity(model, batch["weak"])
        x = model.spec.normalise(batch["weak"])
        if self.cfg.teacher == "ema":
            assert averaged is not None
            return averaged(x)
        was = model.training
        model.eval()  # with teacher=shared the teacher's pass must not move running statistics
        try:
            return model(x)
        finally:
            model.train(was)
            hold_statistics(model)

    @torch.no_grad()
    def _source_disparity(self, model: Any, images: Tensor) -> Tensor:
        assert self.source is not None
        x = model.spec.normalise(images)
        return self.source.to(x.device)(x)

    def batch_images(
        self, model: nn.Module, batch: Batch, averaged: nn.Module | None
    ) -> dict[str, NDArray[np.uint8]]:
        """Draw both views, the teacher's map of the weak and the student's of the strong one."""
        network: Any = model
        teacher = self._teach(network, batch, averaged)
        student = network(network.spec.normalise(batch["strong"]))
        views = {"weak view": batch["weak"], "strong view": batch["strong"]}
        return {"views": sheet(views, {"teacher of weak": teacher, "student of strong": student})}

    def validate(self, model: nn.Module) -> dict[str, float]:
        """Return the fraction of the held-out ordered pairs that are in the wrong order.

        Pairs labelled alike do not count. Empty without held-out images.
        """
        if not self.held or self.labels is None:
            return {}
        held = self._wrong(model, self._places(self.held))
        if not len(held):
            return {}
        wrong_fraction = float(held.mean())
        return {
            "wrong_order": wrong_fraction,
            "held_pairs": float(len(held)),
            "score": wrong_fraction,
        }

    def shown(self) -> dict[str, str]:
        """Label the fractions of wrong pairs in training and held out; the latter is the score."""
        return {
            "wrong_order_train": "wrong pairs in training (lower is better)",
            "wrong_order": "wrong pairs held back (lower is better)",
            **({"score": ""} if self.held else {}),
        }

    def next_step(self, run: Path) -> str:
        """Return the export command, then the comparison on held-out labels, or the launch."""
        export = f"python -m training export {run} --out {run.name}.onnx"
        if not self.cfg.loss.weak:
            launch = "ros2 launch depth_node depth_node.launch.py"
            return f"{export}; then `{launch} model:=$PWD/{run.name}.onnx`"
        return (
            f"{export}; then `python -m training evaluate --model {run.name}.onnx --labels HELD.csv"
            " --images IMAGES` with labels that this run did not see (`python -m training labels"
            " split` makes them)"
        )

    def _wrong(self, model: nn.Module, places: Sequence[int]) -> Tensor:
        """Return 1.0 for each ordered pair (P,) of some images in the wrong order, else 0.0."""
        assert self.labels is not None
        network: Any = model
        device = next(model.parameters()).device
        wrong: list[Tensor] = [torch.zeros(0, device=device)]
        for index in places:
            sample = self.images[index]
            window = Window.whole(sample.image.shape, self.cfg.height, self.cfg.width)
            x = torch.from_numpy(window.unit_range(sample.image)).permute(2, 0, 1)[None].to(device)
            with torch.no_grad():
                disparity = network(network.spec.normalise(x))
            first, second, sign = self.labels.points(sample.name, sample.image.shape)
            points = np.concatenate([window.points(first), window.points(second)], axis=1)
            locations = torch.from_numpy(points).float().to(device)
            owner = torch.zeros(len(locations), dtype=torch.long, device=device)
            difference = differences(disparity, {"points": locations, "owner": owner})
            ordered = torch.from_numpy(sign).to(device)
            wrong.append((difference * ordered <= 0)[ordered != 0].float())
        return torch.cat(wrong)

    @functools.cached_property
    def _place(self) -> dict[str, int]:
        """Name of an image -> its index in the data set."""
        # A data set lists its names in `items` without reading the images.
        items = getattr(self.images, "items", self.images)
        return {item.name: k for k, item in enumerate(items)}

    def _places(self, names: Sequence[str]) -> list[int]:
        return [self._place[name] for name in names]

    @functools.cached_property
    def _labelled(self) -> list[int]:
        """Indices of the images that have labels to train on."""
        if self.labels is None or not self.cfg.loss.weak:
            return []
        return self._places([name for name in self.labels.images if name not in self.held])

    def _distance(self, model: nn.Module) -> Tensor:
        if self.cfg.tune.mode == "lora":
            return product_norm(low_rank(model))
        learnt = [p for p in model.parameters() if p.requires_grad]
        if learnt and self.before[0].device != learnt[0].device:
            self.before = [w.to(learnt[0].device) for w in self.before]
        return drift(learnt, self.before)


def _disparity(sample: Sample, window: Window) -> NDArray[np.float32]:
    """Return the true disparity (h, w) of a window in 1/m, NaN where it is unknown.

    Raises DataError for an image without depth.
    """
    if sample.depth is None:
        raise DataError(f"{sample.name} has no depth: teacher=truth needs it.")
    depth = window.nearest(sample.depth)
    return np.float32(1) / np.where(depth > 0, depth, np.float32(np.nan)).astype(np.float32)


KNOWN = LossConfig(contexts="global")


def self_training(
    student: Tensor, teacher: Tensor, masks: Tensor | None, cfg: LossConfig
) -> Tensor:
    """Return the mean |N_c(student) - N_c(teacher)| over the contexts c of cfg.

    Maps (N, 1, H, W) of disparity; the teacher's is NaN where it is unknown. masks (N, L, H, W):
    numbers from 1, 0 = none; used with contexts=masks.
    """
    valid = torch.isfinite(teacher)
    teacher = torch.where(valid, teacher, torch.zeros_like(teacher))
    if cfg.contexts == "depth_bins":
        contexts = layers(teacher, valid, "hybrid")
        return context_l1(student, teacher, contexts, valid, deviation=cfg.deviation)
    contexts = layers(teacher, valid, "global")
    if cfg.contexts == "masks" and masks is not None:
        mask_contexts = worthwhile(masks, teacher, valid, cfg.mask_px, cfg.mask_spread)
        contexts = torch.cat([contexts, mask_contexts], dim=1)
    return context_l1(student, teacher, contexts, valid, deviation=cfg.deviation)


def ordinal_loss(student: Tensor, batch: Batch, cfg: LossConfig) -> Tensor:
    """Return the mean over the labelled images of the mean cost of their pairs.

    student (N, 1, H, W) disparity; points, sign and owner of the batch as in Westar.batch.
    """
    mapped = student
    if cfg.ordinal_on == "normalised":
        mapped = normalise(student, torch.ones_like(student, dtype=torch.bool), cfg.deviation)
    difference = differences(mapped, batch)
    return ordinal(difference, batch["sign"], cfg.ordinal, cfg.margin, batch["owner"])


def differences(maps: Tensor, batch: Batch) -> Tensor:
    """Return the value (P,) at the first point minus that at the second of a batch's pairs."""
    points, owner = batch["points"], batch["owner"]
    return at(maps, points[:, :2], owner) - at(maps, points[:, 2:], owner)


def at(maps: Tensor, points: Tensor, owner: Tensor) -> Tensor:
    """Interpolate maps (N, 1, H, W) bilinearly at points: values (P,).

    points (P, 2): (x, y) in px. owner (P,): index of each point's map.
    """
    height, width = maps.shape[-2:]
    x, y = points[:, 0].clamp(0, width - 1), points[:, 1].clamp(0, height - 1)
    left, top = x.long().clamp_max(width - 2), y.long().clamp_max(height - 2)
    along, down = x - left, y - top
    flat = maps.float().flatten()
    corner = (owner * height + top) * width + left
    upper = torch.lerp(flat[corner], flat[corner + 1], along)
    lower = torch.lerp(flat[corner + width], flat[corner + width + 1], along)
    return torch.lerp(upper, lower, down)


def build(cfg: Config, console: Console) -> Westar:
    """Open images and labels and return the recipe.

    Raises DataError if either cannot be read.
    """
    images = open_samples(cfg.images)
    labels = None
    if cfg.labels.file and cfg.loss.weak:
        labels = LabelSet(read_labels(cfg.labels.file), [item.name for item in images.items])
        console.print(
            f"{len(labels)} ordinal labels on {len(labels.images)} of {len(images)} images"
        )
    given = cfg.known.folder or cfg.known.kind == "procedural"
    needed = cfg.loss.known or (cfg.tune.statistics != "source" and given)
    known = open_samples(cfg.known) if needed else ()
    return Westar(cfg, images, labels, known, console.print)
