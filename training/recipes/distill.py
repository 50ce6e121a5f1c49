# SPDX-License-Identifier: Apache-2.0
"""Distill Any Depth: a student learns teachers' maps of images without depth (arXiv 2502.19204).

Two contexts: both see the same crop (shared), or the student sees a wide view and the teacher parts
of it (local-global). One of two teachers is drawn at each step. What is compared, how maps are
normalised, and every other choice of the paper's tables 1, 2 and 4 is a setting.

The paper gives crops, weights of the losses, tolerance and probabilities of the teachers. No
training code was published; what no source states is ours and a setting: how the wide view is cut
(corners, overlap, number per step), optimiser and learning rate of the encoder, the anchor against
drift, the cost of dead outputs, and the plain average of two teachers' maps.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.nn import functional

from depth_node import config
from training.batch_images import sheet
from training.data.augmentation import ViewConfig, Window, recolour
from training.data.cache import Cache, Key, digest
from training.data.open import DataConfig, open_samples
from training.data.samples import Sample, unit_range
from training.losses.depth import (
    dead_outputs,
    dead_weight,
    feature_alignment,
    gradient_preservation,
    normalised_l1,
    scale_anchor,
)
from training.losses.diffusion import directional_gradient, token_divergence
from training.losses.normalization import NORMS, normalise
from training.losses.targets import root
from training.models.hub import Dino
from training.models.lora import TuneConfig, fresh_decoder, in_encoder, tune
from training.models.mobilenet import ImageNetFeatures
from training.models.network_io import channels_first, input_columns, input_rows
from training.models.networks import NetworkConfig, open_dino, open_student
from training.models.teachers import Teacher, TeacherConfig, ask, open_teacher
from training.models.unet import unfold
from training.recipe import Batch, BatchPart, LoopConfig, Recipe, generators

TEACHER_CHOICES = ("random", "primary", "assistant", "average", "agreement")

CHANCE = 4  # third number of the seed that draws the teacher of a step


@dataclass(frozen=True)
class LossConfig:
    """Weights and settings of the loss; a weight of 0 switches a term off.

    loss = shared * L_sc + local * L_lg + feature * L_feat + gradient * L_grad, and ours: anchor,
    dead, directional.
    """

    norm: str = config.option("hybrid", "How maps are normalised.", choices=NORMS)
    shared: float = config.option(1.0, "Weight of the shared context.", minimum=0)
    local: float = config.option(0.5, "Weight of the local-global context.", minimum=0)
    feature: float = config.option(
        1.0, "Weight of the likeness of encoder features to DINOv2's.", minimum=0
    )
    tolerance: float = config.option(
        0.85, "Features whose cosine is above this are alike enough.", minimum=-1, maximum=1
    )
    gradient: float = config.option(2.0, "Weight of gradient preservation.", minimum=0)
    anchor: float = config.option(
        0.01, "Weight of the pull to the primary teacher's scale and shift.", minimum=0
    )
    dead: float = dead_weight(0.1)
    likeness: str = config.option(
        "cosine",
        "How features are compared: by their angle, or as DepthMaster does, by the divergence of"
        " their softmax (`tolerance` then has no effect).",
        choices=("cosine", "divergence"),
    )
    directional: float = config.option(
        0.0, "Weight of DepthMaster's multi-directional gradient loss.", minimum=0
    )
    root: bool = config.option(
        False, "Compare square roots of disparity, as DepthMaster does; below 0 it is cut off."
    )

    def __post_init__(self) -> None:
        config.validate(self)


@dataclass(frozen=True)
class CropConfig:
    """Crops of an image; they have the aspect ratio of the network's input."""

    smallest_px: int = config.option(
        644, "Least rows of a crop; less where the image is smaller.", unit="px", minimum=14
    )
    flip: float = config.option(0.5, "Probability of a left-right flip.", minimum=0, maximum=1)
    wide: float = config.option(
        1.5, "Sides of the wide view over those of its parts.", minimum=1, maximum=4
    )
    grid: int = config.option(2, "The wide view has grid x grid overlapping parts.", minimum=1)
    parts: int = config.option(1, "Parts of each wide view that a step looks at.", minimum=1)
    per_image: int = config.option(
        0, "Number of fixed crops of each image; 0: new crops at every step.", minimum=0
    )

    def __post_init__(self) -> None:
        config.validate(self)
        if self.parts > self.grid**2:
            raise config.ConfigError(f"parts must be at most grid * grid, {self.grid**2}")


@dataclass(frozen=True)
class Config:
    """Settings of a distillation."""

    height: int = input_rows(560)
    width: int = input_columns(560)
    teacher_choice: str = config.option(
        "random",
        "The teacher of a step: one of the two at random, always the same one, their average, or"
        " their average in one scale with pixels weighted by agreement.",
        choices=TEACHER_CHOICES,
    )
    assistant_probability: float = config.option(
        0.3, "random: probability that the assistant teaches a step.", minimum=0, maximum=1
    )
    fresh_decoder: bool = config.option(
        False, "The student keeps its encoder but starts with a random decoder."
    )
    encoder_rate: float = config.option(
        0.1, "Learning rate of the encoder over that of the rest.", minimum=0, maximum=1
    )
    keep: int = config.option(32, "Images that are held in memory.", minimum=0)
    cache: str = config.option(
        "", "Folder of teachers' maps, computed before training; needs crop.per_image. Empty: none."
    )
    network: NetworkConfig = config.section(NetworkConfig, "The student.", kind="small")
    primary: TeacherConfig = config.section(TeacherConfig, "The first teacher.")
    assistant: TeacherConfig = config.section(TeacherConfig, "The second teacher.")
    dino: NetworkConfig = config.section(
        NetworkConfig, "The DINOv2 whose features the encoder's are to be like.", kind="small"
    )
    images: DataConfig = config.section(DataConfig, "What is looked at; depth is not used.")
    crop: CropConfig = config.section(CropConfig, "Which parts of it.")
    view: ViewConfig = config.section(ViewConfig, "What else the student's view goes through.")
    loss: LossConfig = config.section(LossConfig, "What is minimised.")
    loop: LoopConfig = config.section(
        LoopConfig,
        "How long and how fast.",
        steps=20_000,
        batch=8,
        learning_rate=5e-5,
        weight_decay=0.01,
        schedule="poly",
        warmup=0,
        final_rate=0.0,
    )

    def __post_init__(self) -> None:
        config.validate(self)
        if self.loss.shared == self.loss.local == 0:
            raise config.ConfigError("loss.shared and loss.local are both 0: nothing to learn from")
        if self.loss.norm == "none" and self.teacher_choice not in ("primary", "assistant"):
            raise config.ConfigError(
                "loss.norm=none compares maps as they are, which needs one teacher, as two have"
                " different scales: set teacher_choice to primary or assistant"
            )
        if self.cache and not self.crop.per_image:
            raise config.ConfigError(
                "cache needs fixed crops: set crop.per_image to their number per image"
            )
        if self.view.flip or self.view.smallest_crop < 1:
            raise config.ConfigError("view may not move pixels: use crop.flip and crop.smallest_px")

    @property
    def wide_size(self) -> tuple[int, int]:
        """Rows and columns of the wide view, px; its parts are `height` x `width` of them."""
        return round(self.height * self.crop.wide), round(self.width * self.crop.wide)

    def corners(self) -> list[tuple[int, int]]:
        """Return top row and left column of each part of the wide view, px."""
        (rows, columns), n = self.wide_size, self.crop.grid
        tops = np.linspace(0, rows - self.height, n).round().astype(int)
        lefts = np.linspace(0, columns - self.width, n).round().astype(int)
        return [(int(top), int(left)) for top in tops for left in lefts]


@dataclass(frozen=True)
class CropViews:
    """Views of one image, (h, w, 3) uint8 RGB: a crop, and the same crop as a wide view.

    window: of the crop. Views are not flipped yet, so that a teacher's cached map serves both.
    """

    window: Window
    crop: NDArray[np.uint8]
    wide: NDArray[np.uint8]


class Distill(Recipe):
    """The recipe: crops of images, and teachers that predict their disparity.

    teachers: primary and assistant, None for one that is never used. Raises ConfigError if both are
    None.
    """

    name = "distill"
    free_to_change = ("cache", "keep")

    def __init__(
        self, cfg: Config, images: Sequence[Sample], teachers: Sequence[Teacher | None]
    ) -> None:
        self.cfg = cfg
        self.images = images
        self.teachers = list(teachers)
        self.cache = Cache(cfg.cache) if cfg.cache else None
        self.projection: nn.Module | None = None
        self.dino: Dino | ImageNetFeatures | None = None
        self._read = functools.lru_cache(cfg.keep)(images.__getitem__)
        if not any(self.teachers[k] is not None for k in (0, 1)):
            raise config.ConfigError("a distillation needs a teacher")

    def model(self) -> nn.Module:
        """Return the student; all of its weights learn.

        Raises ConfigError for an input size that does not fit it.
        """
        cfg = self.cfg
        network = open_student(cfg.network)
        network.spec.require(cfg.height, cfg.width)
        unfold(network, self._crops)
        if cfg.fresh_decoder:
            fresh_decoder(network)
        if cfg.loss.feature:
            self.dino = open_dino(cfg.dino)
            self.projection = nn.Conv2d(network.channels, self.dino.channels, 1)
        return tune(network, TuneConfig(mode="full"))

    def _crops(self, count: int) -> Tensor:
        """Return random crops (count, 3, h, w) in 0..1 without changes of colour."""
        crops = []
        for k in range(count):
            rng = np.random.default_rng([self.cfg.loop.seed, k])
            image = self._read(int(rng.integers(0, len(self.images)))).image
            crops.append(self.window(image.shape, rng).unit_range(image))
        return channels_first(crops)

    def extra(self) -> nn.Module | None:
        """Return the projection from the student's features to DINOv2's, or None if it is off."""
        return self.projection

    def rate(self, name: str) -> float:
        """Return encoder_rate for the encoder and 1 for the rest."""
        return self.cfg.encoder_rate if in_encoder(name) else 1.0

    def views(self, index: int, window: Window) -> CropViews:
        """Return a crop of an image and the same crop as a wide view."""
        image = self._read(index).image
        rows, columns = self.cfg.wide_size
        wide = Window(window.top, window.left, window.rows, window.columns, rows, columns)
        return CropViews(window, window.image(image), wide.image(image))

    def window(self, shape: tuple[int, ...], rng: np.random.Generator) -> Window:
        """Draw a random crop of an image, with the aspect ratio of the network's input."""
        cfg = self.cfg
        tallest = min(shape[0], int(shape[1] * cfg.height / cfg.width))
        rows = int(rng.integers(min(cfg.crop.smallest_px, tallest), tallest + 1))
        columns = min(max(round(rows * cfg.width / cfg.height), 1), shape[1])
        top = int(rng.integers(0, shape[0] - rows + 1))
        left = int(rng.integers(0, shape[1] - columns + 1))
        return Window(top, left, rows, columns, cfg.height, cfg.width)

    def fixed_window(self, index: int, k: int) -> Window:
        """Return the k-th fixed crop of an image."""
        rng = np.random.default_rng([self.cfg.loop.seed, index, k])
        return self.window(self._read(index).image.shape, rng)

    def asked_teachers(self, step: int) -> list[int]:
        """Return the teachers of a step, 0 primary and 1 assistant; the same for all parts."""
        cfg = self.cfg
        if cfg.teacher_choice != "random":
            return {"primary": [0], "assistant": [1]}.get(cfg.teacher_choice, [0, 1])
        chance = np.random.default_rng([cfg.loop.seed, step, CHANCE]).random()
        return [1 if chance < cfg.assistant_probability else 0]

    def batch(self, step: int, part: BatchPart) -> Batch:
        """Return the student's views and the teachers' images or cached maps.

        crop, wide (n, 3, h, w): the student's views in 0..1. corner (n * parts, 2): top and left of
        each part in the wide view, px. teachers: those of the step. Without a cache teach_crop
        (n, 3, h, w) and teach_part (n * parts, 3, h, w), the images for the teachers; with a cache
        map_crop_T (n, 1, h, w) and map_part_T (n * parts, 1, h, w) of each teacher T of the step.
        """
        cfg = self.cfg
        asked = self.asked_teachers(step)
        rows = [self._row(rng, asked) for rng in generators(cfg.loop, step, part)]

        def stacked(name: str) -> Tensor:
            flat = [part for row in rows for part in row[name]]
            return channels_first(flat).contiguous()

        batch: Batch = {name: stacked(name) for name in ("crop", "wide")}
        batch["corner"] = torch.from_numpy(np.concatenate([row["corner"] for row in rows]))
        batch["teachers"] = torch.tensor(asked)
        for name in rows[0]:
            if name.startswith(("teach_", "map_")):
                batch[name] = stacked(name)
        return batch

    def _row(self, rng: np.random.Generator, asked: list[int]) -> dict[str, Any]:
        cfg = self.cfg
        index = int(rng.integers(0, len(self.images)))
        if cfg.crop.per_image:
            window = self.fixed_window(index, int(rng.integers(0, cfg.crop.per_image)))
        else:
            window = self.window(self._read(index).image.shape, rng)
        views = self.views(index, window)
        flip = rng.random() < cfg.crop.flip
        corners = cfg.corners()
        chosen = rng.permutation(len(corners))[: cfg.crop.parts]
        small = Window.whole(views.wide.shape, cfg.height, cfg.width).image(views.wide)
        row: dict[str, Any] = {
            "crop": [recolour(unit_range(views.crop), cfg.view, rng)],
            "wide": [recolour(unit_range(small), cfg.view, rng)],
            "corner": np.array([corners[k] for k in chosen]),
        }
        if self.cache is None:
            row["teach_crop"] = [unit_range(views.crop)]
            row["teach_part"] = [unit_range(self._part(views, corners[k])) for k in chosen]
        else:
            for t in asked:
                row[f"map_crop_{t}"] = [self._cached_map(views, t, -1)]
                row[f"map_part_{t}"] = [self._cached_map(views, t, int(k)) for k in chosen]
        if flip:
            width = cfg.wide_size[1]
            for name, part in row.items():
                if name != "corner":
                    row[name] = [np.ascontiguousarray(image[:, ::-1]) for image in part]
            row["corner"][:, 1] = width - cfg.width - row["corner"][:, 1]
        return row

    def _part(self, views: CropViews, corner: tuple[int, int]) -> NDArray[np.uint8]:
        top, left = corner
        return views.wide[top : top + self.cfg.height, left : left + self.cfg.width]

    def _key(self, views: CropViews, teacher: int, part: int) -> Key:
        """Return the cache key of a teacher's map of a crop (part -1) or of a part of it."""
        source = self.teachers[teacher]
        assert source is not None
        content = (
            "crop" if part < 0 else f"part {part} of {self.cfg.corners()} in {views.wide.shape}"
        )
        return Key(digest(views.crop), f"{source.name} {content}", source.revision, views.window)

    def _cached_map(self, views: CropViews, teacher: int, part: int) -> NDArray[np.float32]:
        assert self.cache is not None
        return self.cache.read_map(self._key(views, teacher, part))[..., None]

    def fill(self, console: Console) -> int:
        """Compute every teacher's map that is not cached yet and return their number."""
        if self.cache is None:
            return 0
        count = 0
        columns = (TextColumn("teachers"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
            jobs = [(i, k) for i in range(len(self.images)) for k in range(self.cfg.crop.per_image)]
            for index, k in bar.track(jobs):
                views = self.views(index, self.fixed_window(index, k))
                for t, teacher in enumerate(self.teachers):
                    if teacher is not None:
                        count += self._fill_one(views, t, teacher)
        return count

    def _fill_one(self, views: CropViews, number: int, teacher: Teacher) -> int:
        assert self.cache is not None
        corners = self.cfg.corners() if self.cfg.loss.local else []
        parts = [views.crop, *(self._part(views, corner) for corner in corners)]
        count = 0
        for part, image in enumerate(parts, start=-1):
            key = self._key(views, number, part)
            if key in self.cache:
                continue
            disparity, known = ask(teacher, channels_first([unit_range(image)]))
            disparity = disparity.masked_fill(~known, float("nan"))
            self.cache.write_map(key, disparity[0, 0].numpy(), meaning="disparity")
            count += 1
        return count

    def loss(self, model: nn.Module, batch: Batch, averaged: nn.Module | None) -> dict[str, Tensor]:
        """Return the terms of LossConfig and their weighted sum."""
        cfg, weights = self.cfg, self.cfg.loss
        network: Any = model
        terms: dict[str, Tensor] = {}
        compared: list[tuple[Tensor, Tensor, Tensor]] = []
        answers = []
        if weights.shared:
            answer = network.answer(network.spec.normalise(batch["crop"]))
            target, known, weight = self._target(batch, "crop")
            own, target = self._compared(answer.disparity, target)
            terms["shared"] = normalised_l1(own, target, known, weights.norm, weight)
            compared.append((own, target, known))
            answers.append((answer, batch["crop"]))
        if weights.local:
            answer = network.answer(network.spec.normalise(batch["wide"]))
            target, known, weight = self._target(batch, "part")
            own, target = self._compared(parts_of(answer.disparity, batch["corner"], cfg), target)
            terms["local"] = normalised_l1(own, target, known, weights.norm, weight)
            compared.append((own, target, known))
            answers.append((answer, batch["wide"]))
        # The other terms use the shared context, or the local-global one if that is off.
        (answer, image), (student, target, known) = answers[0], compared[0]
        if weights.feature:
            terms["feature"] = self._likeness(answer.features, image)
        if weights.gradient:
            terms["gradient"] = gradient_preservation(student, target, known)
        if weights.directional:
            terms["directional"] = directional_gradient(
                normalise(student, known), normalise(target, known), known
            )
        if weights.anchor and batch["teachers"].tolist() == [0]:
            terms["anchor"] = scale_anchor(student, target, known)
        if weights.dead and answer.before is not None:
            terms["dead"] = dead_outputs(answer.before)
        total = torch.stack([getattr(weights, name) * value for name, value in terms.items()]).sum()
        return {"loss": total, **terms}

    def _compared(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """Return both maps in the space in which they are compared (see loss.root)."""
        if not self.cfg.loss.root:
            return student, teacher
        return root(student), root(teacher.clamp_min(0))

    def batch_images(
        self, model: nn.Module, batch: Batch, averaged: nn.Module | None
    ) -> dict[str, NDArray[np.uint8]]:
        """Draw the crops, the teachers' maps and the student's."""
        network: Any = model
        target, known, _ = self._target(batch, "crop")
        student = network(network.spec.normalise(batch["crop"]))
        target = target.masked_fill(~known, float("nan"))
        return {"crop": sheet({"crop": batch["crop"]}, {"teacher": target, "student": student})}

    @torch.no_grad()
    def _target(self, batch: Batch, content: str) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return the teachers' disparity (n, 1, h, w), the mask of known pixels and the weights.

        Two teachers are averaged. The weights of the pixels are None if all are equal. content:
        crop or part.
        """
        answers = []
        for number in batch["teachers"].tolist():
            if f"map_{content}_{number}" in batch:
                stored = batch[f"map_{content}_{number}"]
                known = torch.isfinite(stored)
                answers.append((torch.where(known, stored, torch.zeros_like(stored)), known))
            else:
                teacher = self.teachers[number]
                assert teacher is not None
                answers.append(ask(teacher, batch[f"teach_{content}"]))
        known = torch.stack([part for _, part in answers]).all(dim=0)
        maps = [disparity for disparity, _ in answers]
        if self.cfg.teacher_choice == "agreement":
            target, weight = agreed(maps, known)
            return target, known, weight
        return torch.stack(maps).mean(dim=0), known, None

    def _likeness(self, features: Tensor, images: Tensor) -> Tensor:
        """Return the difference of the student's features from DINOv2's, on the student's grid."""
        assert self.dino is not None and self.projection is not None
        self.dino.to(images.device)
        size = self.dino.spec.fitting(*images.shape[-2:])
        x = images
        if size != tuple(images.shape[-2:]):
            x = functional.interpolate(x, size, mode="bilinear", align_corners=False)
        reference = self.dino(self.dino.spec.normalise(x)).float()
        if reference.shape[-2:] != features.shape[-2:]:
            reference = functional.interpolate(
                reference, features.shape[-2:], mode="bilinear", align_corners=False
            )
        projected = self.projection(features)
        if self.cfg.loss.likeness == "divergence":
            return token_divergence(projected, reference)
        return feature_alignment(
            projected.flatten(2).transpose(1, 2),
            reference.flatten(2).transpose(1, 2),
            self.cfg.loss.tolerance,
        )


def agreed(maps: Sequence[Tensor], known: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean (n, 1, h, w) of two maps, each normalised over the image, and weights.

    The weight of a pixel is exp(-difference): 1 where the maps agree, 1/e where they differ by one
    mean deviation. Ours.
    """
    one, other = (normalise(values, known) for values in maps)
    return (one + other) / 2, torch.exp(-(one - other).abs())


def parts_of(disparity: Tensor, corner: Tensor, cfg: Config) -> Tensor:
    """Cut the parts (n * parts, 1, h, w) out of the student's maps (n, 1, h, w) of wide views.

    corner (n * parts, 2): top and left of each part in the wide view, px.
    """
    wide = functional.interpolate(disparity, cfg.wide_size, mode="bilinear", align_corners=False)
    each = len(corner) // len(wide)
    cut = [
        wide[k // each, :, top : top + cfg.height, left : left + cfg.width]
        for k, (top, left) in enumerate(corner.tolist())
    ]
    return torch.stack(cut)


def build(cfg: Config, console: Console) -> Distill:
    """Open images and teachers, compute cached maps that are missing, and return the recipe."""
    needed = [cfg.teacher_choice != "assistant", cfg.teacher_choice != "primary"]
    if cfg.teacher_choice == "random":
        needed = [cfg.assistant_probability < 1, cfg.assistant_probability > 0]
    settings = (cfg.primary, cfg.assistant)
    teachers = [open_teacher(t) if use else None for t, use in zip(settings, needed, strict=True)]
    recipe = Distill(cfg, open_samples(cfg.images), teachers)
    count = recipe.fill(console)
    if count:
        console.print(f"{count} maps of teachers stored in {cfg.cache}")
    return recipe
