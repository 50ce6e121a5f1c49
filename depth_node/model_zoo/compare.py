# SPDX-License-Identifier: Apache-2.0
"""Comparison of two networks, or of one in two precisions or on two back ends, on the same images.

The figures and their limits are those of engine/self_check.py, but over many images.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from depth_node.engine import EngineError
from depth_node.engine.manifest import Manifest
from depth_node.engine.preprocess import to_image, to_tensor
from depth_node.engine.protocol import Engine
from depth_node.engine.self_check import Limits, OutputDifference, role_difference
from depth_node.engine.sparse_input import pattern_tensors
from depth_node.image_files import ALL_FORMATS
from depth_node.prediction import DEPTH_MEANINGS, POINTS
from depth_node.recordings.frames import IMAGE_SUFFIXES, FrameError, read_image
from depth_node.simulation.renderer import Scene
from depth_node.simulation.viewpoints import random_view

RECOMMENDED_IMAGES = 50  # for a reliable comparison
_VIEWS_PER_ROOM = 5
_LONGEST_PX = 384  # longer side of a rendered image

Image = npt.NDArray[np.uint8]
Tensors = dict[str, npt.NDArray[Any]]


def image_files(folder: Path) -> list[Path]:
    """Return all image files below a folder, sorted by path.

    Hidden files and those whose names begin with "depth" or "segmentation" are left out. Raises
    EngineError if there is none.
    """
    if not folder.is_dir():
        raise EngineError(f"{folder} is no folder: give --images a folder with images in it")
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    files = [
        path
        for path in files
        if not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]
    # Folders of RGB-D frames also hold depth and label maps as image files.
    files = [path for path in files if not path.stem.startswith(("depth", "segmentation"))]
    if not files:
        raise EngineError(
            f"there is no image below {folder} ({', '.join(IMAGE_SUFFIXES)}): name another"
            " folder, or leave --images out for rendered rooms"
        )
    return files


@dataclass(frozen=True)
class ComparisonImages:
    """Images to compare on, read or rendered one at a time; iteration gives (H, W, 3) uint8 RGB.

    Without ``files``: ``count`` rendered images of rooms, ``height`` x ``width`` pixels, from
    ``seed``.
    """

    count: int
    files: tuple[Path, ...] = ()
    height: int = 240
    width: int = 320
    seed: int = 0

    @classmethod
    def of(
        cls, folder: Path | None, manifest: Manifest, count: int = RECOMMENDED_IMAGES
    ) -> ComparisonImages:
        """Select at most `count` images, spread evenly over a folder; None: rendered rooms.

        manifest: of a model; rendered images have about its input size. Raises EngineError if the
        count is below 1 or the folder has no images.
        """
        if count < 1:
            raise EngineError(f"--count is {count}: compare on at least one image")
        if folder is not None:
            files = image_files(folder)
            step = max(len(files) / count, 1.0)
            chosen = tuple(files[int(k * step)] for k in range(min(count, len(files))))
            return cls(len(chosen), chosen)
        spec = manifest.input
        shrink = min(_LONGEST_PX / max(spec.height, spec.width), 1.0)
        size = [max(int(side * shrink), 32) for side in (spec.height, spec.width)]
        return cls(count, (), *size)

    def __iter__(self) -> Iterator[Image]:
        """Yield the images one by one. Raises EngineError for a file that is not an image."""
        if self.files:
            yield from (_read(path) for path in self.files[: self.count])
            return
        for number in range(self.count):
            if number % _VIEWS_PER_ROOM == 0:  # a new view costs less than a new room
                rng = np.random.default_rng([self.seed, number])
                room = Scene.random(rng, "mixed", shadow_px=96)
            view = random_view(room, rng, self.width, self.height)
            yield room.render(*view, antialias=False).image

    def __str__(self) -> str:
        return f"{self.count} " + ("images" if self.files else "rendered rooms")


def _read(path: Path) -> Image:
    try:
        image: Image = read_image(path, formats=ALL_FORMATS)
    except FrameError as error:
        raise EngineError(str(error)) from None
    return image


def tensors_of(manifest: Manifest, image: Image, number: int) -> Tensors:
    """Return a model's input tensors for an image (H, W, 3); random numbers if it takes no image.

    number: seed of the random numbers, and of the points for a completion network.
    """
    if manifest.sparse is not None:
        return pattern_tensors(manifest, image, number)
    if manifest.inputs:
        rng = np.random.default_rng(number)
        shapes = manifest.input_shapes.items()
        return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes}
    return {manifest.input_name: to_tensor(image, manifest.input)}


@dataclass
class ModelComparison:
    """Differences between the outputs of B and A, one per image, and the times of their runs.

    times_ms: (A, B) in ms for every image.
    """

    limits: Limits
    differences: list[OutputDifference] = field(default_factory=list)
    times_ms: list[tuple[float, float]] = field(default_factory=list)

    @property
    def worst(self) -> OutputDifference:
        """The worst figures of all images."""
        worst = OutputDifference(1.0, 1.0, 0.0)
        for difference in self.differences:
            worst = worst.worse(difference)
        return worst

    @property
    def failures(self) -> list[str]:
        """Descriptions of all figures that are beyond their limits."""
        return self.worst.failures(self.limits)

    def rows(self) -> list[tuple[str, str, str, str, str]]:
        """Return the rows (figure, mean, worst, limit, verdict) of a table."""
        mean = [
            float(np.mean([getattr(one, name) for one in self.differences]))
            for name in ("finite", "correlation", "relative_error")
        ]
        w, lim = self.worst, self.limits
        return [
            _row("finite values", mean[0], w.finite, lim.finite, w.finite >= lim.finite, ".4%"),
            _row(
                "correlation", mean[1], w.correlation, lim.correlation,
                w.correlation >= lim.correlation, ".6f",
            ),
            _row(
                "relative error", mean[2], w.relative_error, lim.relative_error,
                w.relative_error <= lim.relative_error, ".4%",
            ),
        ]  # fmt: skip


def _row(
    name: str, mean: float, worst: float, limit: float, good: bool, form: str
) -> tuple[str, str, str, str, str]:
    verdict = "ok" if good else "NO"
    return name, format(mean, form), format(worst, form), format(limit, form), verdict


def compare(
    a: Engine,
    b: Engine,
    images: ComparisonImages,
    on_image: Callable[[str], None] = lambda name: None,
    limits: Limits | None = None,
) -> ModelComparison:
    """Run both networks on every image and compare their outputs; A is the reference.

    Depth maps of different sizes are compared at the image's size. on_image is called with the
    file name of every image that is done ("" for a rendered one). limits: those of A's manifest by
    default. Raises EngineError if the networks cannot be compared or run.
    """
    if a.manifest.meaning != b.manifest.meaning:
        raise EngineError(
            f"{a.manifest.name} gives {a.manifest.meaning} and {b.manifest.name}"
            f" {b.manifest.meaning}: only networks of one meaning can be compared"
        )
    result = ModelComparison(limits or Limits.of(a.manifest))
    for number, image in enumerate(images):
        start = time.perf_counter()
        reference = a.run_named(tensors_of(a.manifest, image, number))
        middle = time.perf_counter()
        outputs = b.run_named(tensors_of(b.manifest, image, number))
        end = time.perf_counter()
        result.times_ms.append(((middle - start) * 1e3, (end - middle) * 1e3))
        result.differences.append(_worst_output(a.manifest, b.manifest, reference, outputs, image))
        on_image(images.files[number].name if images.files else "")
    return result


def _worst_output(
    a: Manifest, b: Manifest, references: Tensors, outputs: Tensors, image: Image
) -> OutputDifference:
    names = list(zip(a.output_names, b.output_names, strict=False))
    if len(a.output_names) != len(b.output_names):
        raise EngineError(
            f"{a.name} has {len(a.output_names)} outputs and {b.name} {len(b.output_names)}: only"
            " networks of one kind can be compared"
        )
    worst = OutputDifference(1.0, 1.0, 0.0)
    for name_a, name_b in names:
        reference, output = references[name_a], outputs[name_b]
        one_map = a.meaning in DEPTH_MEANINGS and a.roles.get("scale") != name_a
        if reference.shape != output.shape and one_map:
            points = a.meaning == POINTS and name_a == a.output_name
            reference = _at_image_size(reference, a, image, points)
            output = _at_image_size(output, b, image, points)
        worst = worst.worse(role_difference(a, name_a, output, reference))
    return worst


def _at_image_size(
    output: npt.NDArray[Any], manifest: Manifest, image: Image, points: bool
) -> npt.NDArray[Any]:
    """Resize a map (h, w), or each coordinate of a point map (h, w, 3), to the image's size."""
    height, width = image.shape[:2]
    axes = 3 if points else 2
    output = output.reshape(output.shape[-axes:])
    if not points:
        return to_image(output, manifest.input, height, width)
    maps = [to_image(output[..., k], manifest.input, height, width) for k in range(3)]
    return np.stack(maps, axis=-1)


def median_ms(times: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Return the median times of A and B, ms."""
    a, b = np.median(np.asarray(times), axis=0)
    return float(a), float(b)
