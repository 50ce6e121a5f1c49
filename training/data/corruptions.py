# SPDX-License-Identifier: Apache-2.0
"""Corruptions of images by weather, lenses and sensors: 18 kinds at five severities.

The list and its numbers are RoboDepth's (Kong et al., NeurIPS 2023), after Hendrycks and
Dietterich (ICLR 2019). The code is ours, and so are the choices that a table of numbers leaves
open: frost is synthesised instead of pasted from photographs, glass moves pixels by a random field
instead of swapping them one by one, elastic deforms without an affine transform, pixelate rounds
its boxes to whole pixels, and the clouds of fog are rougher. For `dark` the image is first
stretched to its range, and its noise is a tenth of that of `gaussian` and `shot` of the same
severity, as in RoboDepth's code. Lengths are in pixels of the given image, as in RoboDepth.

The result depends on image, name, severity and seed only. The severities of one seed share the same
random numbers (for photons the same mean): severity 3 is the same snowfall as severity 2, but
stronger.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from rich.console import Console

from training.data.files import read_image
from training.data.samples import F32, U8, DataError, unit_range

SEVERITIES = (1, 2, 3, 4, 5)


# --- weather and light: images are float32 RGB in 0..1 -----------------------------------------


def _brightness(x: F32, rng: np.random.Generator, add: float) -> F32:
    hsv = cv2.cvtColor(x, cv2.COLOR_RGB2HSV)
    hsv[..., 2] = np.clip(hsv[..., 2] + np.float32(add), 0, 1)
    return np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB), np.float32)


def _dark(x: F32, rng: np.random.Generator, scale: float, photons: float, sigma: float) -> F32:
    low, high = x.min(), x.max()
    full = (x - low) / (high - low) if high > low else x
    dim = _photons(np.float32(scale) * full * full, rng, photons)
    return dim + np.float32(sigma) * rng.standard_normal(x.shape, dtype=np.float32)


def _fog(x: F32, rng: np.random.Generator, thickness: float, smoothness: float) -> F32:
    veil = np.float32(thickness) * _cloud(rng, x.shape[0], x.shape[1], 1 / smoothness)[..., None]
    brightest = max(float(x.max()), 1e-3)
    return (x + veil) * np.float32(brightest / (brightest + thickness))


def _frost(x: F32, rng: np.random.Generator, intensity: float, texture: float) -> F32:
    ice = _ice(rng, x.shape[0], x.shape[1], 1 - intensity)
    return np.float32(intensity) * x + np.float32(texture) * ice


def _snow(
    x: F32,
    rng: np.random.Generator,
    mean: float,
    std: float,
    scale: float,
    threshold: float,
    radius: int,
    sigma: float,
    blend: float,
) -> F32:
    height, width = x.shape[:2]
    noise = rng.standard_normal((height, width), dtype=np.float32) * np.float32(std)
    angle = rng.uniform(-135.0, -45.0)
    # Flakes of the nearer snow are larger: the middle of the field, enlarged.
    rows, cols = math.ceil(height / scale), math.ceil(width / scale)
    top, left = (height - rows) // 2, (width - cols) // 2
    field = (noise + np.float32(mean))[top : top + rows, left : left + cols]
    flakes = cv2.resize(field, (width, height), interpolation=cv2.INTER_LINEAR)
    flakes = np.where(flakes < threshold, 0, np.clip(flakes, 0, 1)).astype(np.float32)
    streaks = _streak(np.asarray(flakes, np.float32), radius, sigma, angle)[..., None]
    grey = (x @ np.array([0.299, 0.587, 0.114], np.float32))[..., None]
    pale = np.float32(blend) * x + np.float32(1 - blend) * np.maximum(x, 1.5 * grey + 0.5)
    return pale + streaks + streaks[::-1, ::-1]


def _contrast(x: F32, rng: np.random.Generator, factor: float) -> F32:
    mean = x.mean(axis=(0, 1), keepdims=True)
    return (x - mean) * np.float32(factor) + mean


# --- optics and motion ---------------------------------------------------------------------------


def _defocus(x: F32, rng: np.random.Generator, radius: int, alias: float) -> F32:
    reach = radius + 2
    y, r = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    disk = (y * y + r * r <= radius * radius).astype(np.float32)
    soft = cv2.GaussianBlur(disk, (0, 0), alias, borderType=cv2.BORDER_CONSTANT)
    return _filtered(x, np.asarray(soft, np.float32))


def _glass(x: F32, rng: np.random.Generator, sigma: float, reach: int, rounds: int) -> F32:
    height, width = x.shape[:2]
    blurred = _blurred(x, sigma)
    y, c = np.mgrid[0:height, 0:width]
    for _ in range(rounds):
        step = np.rint(rng.uniform(-reach, reach, (2, height, width))).astype(np.intp)
        rows, cols = np.clip(y + step[0], 0, height - 1), np.clip(c + step[1], 0, width - 1)
        blurred = blurred[rows, cols]
    return _blurred(blurred, sigma)


def _motion(x: F32, rng: np.random.Generator, radius: int, sigma: float) -> F32:
    return _streak(x, radius, sigma, rng.uniform(-45.0, 45.0))


def _zoom(x: F32, rng: np.random.Generator, low: float, high: float, step: float) -> F32:
    height, width = x.shape[:2]
    total = x.copy()
    factors = np.arange(low, high, step)
    centre = ((width - 1) / 2, (height - 1) / 2)
    for factor in factors:
        grow = cv2.getRotationMatrix2D(centre, 0.0, float(factor))
        total += np.asarray(
            cv2.warpAffine(
                x, grow, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
            ),
            np.float32,
        )
    return total / np.float32(len(factors) + 1)


def _elastic(x: F32, rng: np.random.Generator, deformation: float) -> F32:
    height, width = x.shape[:2]
    side = min(height, width)
    shift = rng.uniform(-1, 1, (height, width, 2)).astype(np.float32)
    shift = _blurred(shift, max(0.01 * side, 0.5)) * np.float32(deformation * side)
    y, c = np.mgrid[0:height, 0:width].astype(np.float32)
    bent = cv2.remap(
        x, c + shift[..., 0], y + shift[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT
    )
    return np.asarray(bent, np.float32)


def _colour_quant(x: F32, rng: np.random.Generator, bits: int) -> F32:
    high_bits = np.uint8(256 - (1 << (8 - bits)))
    return unit_range(_as_bytes(x) & high_bits)


# --- sensor and file -----------------------------------------------------------------------------


def _gaussian(x: F32, rng: np.random.Generator, sigma: float) -> F32:
    return x + np.float32(sigma) * rng.standard_normal(x.shape, dtype=np.float32)


def _impulse(x: F32, rng: np.random.Generator, amount: float) -> F32:
    drawn = rng.random(x.shape, dtype=np.float32)
    salt = rng.random(x.shape, dtype=np.float32) < 0.5
    return np.where(drawn < amount, salt.astype(np.float32), x)


def _shot(x: F32, rng: np.random.Generator, photons: float) -> F32:
    return _photons(x, rng, photons)


def _iso(x: F32, rng: np.random.Generator, sigma: float) -> F32:
    noise = rng.standard_normal(x.shape, dtype=np.float32)
    return np.clip(_photons(x, rng, 25.0), 0, 1) + np.float32(0.7 * sigma) * noise


def _pixelate(x: F32, rng: np.random.Generator, factor: float) -> F32:
    height, width = x.shape[:2]
    size = (max(1, int(width * factor)), max(1, int(height * factor)))
    small = cv2.resize(x, size, interpolation=cv2.INTER_AREA)
    large = cv2.resize(small, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
    return np.asarray(large, np.float32)


def _jpeg(x: F32, rng: np.random.Generator, quality: int) -> F32:
    bgr = np.ascontiguousarray(_as_bytes(x)[..., ::-1])
    done, data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not done:
        raise RuntimeError(f"OpenCV could not write a JPEG of {x.shape}: use a smaller image.")
    decoded = cv2.imdecode(data, cv2.IMREAD_COLOR)
    if decoded is None:
        raise RuntimeError("OpenCV cannot read the JPEG that it wrote: install it with JPEG.")
    return unit_range(np.asarray(decoded, np.uint8)[..., ::-1])


# --- the table -----------------------------------------------------------------------------------

_SIGMAS = (0.08, 0.12, 0.18, 0.26, 0.38)
_PHOTONS = (60, 25, 12, 5, 3)
# Arguments of each function, in its order, at the severities 1 to 5.
_TABLE: dict[str, tuple[Callable[..., F32], tuple[tuple[Any, ...], ...]]] = {
    "brightness": (_brightness, ((0.1,), (0.2,), (0.3,), (0.4,), (0.5,))),
    "dark": (
        _dark,
        (
            *(
                (scale, 10 * _PHOTONS[k], 0.1 * _SIGMAS[k])
                for k, scale in enumerate((0.6, 0.5, 0.4, 0.3, 0.2))
            ),
        ),
    ),
    "fog": (_fog, ((1.5, 2.0), (2.0, 2.0), (2.5, 1.7), (2.5, 1.5), (3.0, 1.4))),
    "frost": (_frost, ((1.0, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75))),
    "snow": (
        _snow,
        (
            (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
            (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
            (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
            (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
            (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
        ),
    ),
    "contrast": (_contrast, ((0.4,), (0.3,), (0.2,), (0.1,), (0.05,))),
    "defocus": (_defocus, ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5))),
    "glass": (_glass, ((0.7, 1, 2), (0.9, 2, 1), (1.0, 2, 3), (1.1, 3, 2), (1.5, 4, 2))),
    "motion": (_motion, ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))),
    "zoom": (
        _zoom,
        ((1, 1.11, 0.01), (1, 1.16, 0.01), (1, 1.21, 0.02), (1, 1.26, 0.02), (1, 1.31, 0.03)),
    ),
    "elastic": (_elastic, ((0.05,), (0.065,), (0.085,), (0.1,), (0.12,))),
    "colour_quant": (_colour_quant, ((5,), (4,), (3,), (2,), (1,))),
    "gaussian": (_gaussian, tuple((value,) for value in _SIGMAS)),
    "impulse": (_impulse, ((0.03,), (0.06,), (0.09,), (0.17,), (0.27,))),
    "shot": (_shot, tuple((value,) for value in _PHOTONS)),
    "iso": (_iso, tuple((value,) for value in _SIGMAS)),
    "pixelate": (_pixelate, ((0.6,), (0.5,), (0.4,), (0.3,), (0.25,))),
    "jpeg": (_jpeg, ((25,), (18,), (15,), (10,), (7,))),
}
CORRUPTIONS = tuple(_TABLE)  # the 18 of KITTI-C
INDOOR = tuple(name for name in CORRUPTIONS if name not in ("fog", "frost", "snow"))  # NYU-C
# WeSTAR uses six corruptions at severity 5; no source says which. Ours: noise, motion blur,
# defocus, brightness, contrast (fog outdoors), compression.
SIX = ("gaussian", "motion", "defocus", "brightness", "contrast", "jpeg")
SIX_OUTDOORS = ("gaussian", "motion", "defocus", "brightness", "fog", "jpeg")
SETS = {
    "all": CORRUPTIONS, "indoor": INDOOR, "westar": SIX, "westar_outdoors": SIX_OUTDOORS
}  # fmt: skip


def named(words: Sequence[str]) -> tuple[str, ...]:
    """Return the corruptions that names of corruptions or of SETS stand for, each once, in order.

    Raises ValueError for an unknown name.
    """
    names: dict[str, None] = {}
    for word in words:
        if word not in SETS and word not in CORRUPTIONS:
            raise ValueError(
                f"No corruption is called {word!r}: use one of {', '.join(CORRUPTIONS)}, or a set"
                f" of them, {', '.join(SETS)}."
            )
        names |= dict.fromkeys(SETS.get(word, (word,)))
    return tuple(names)


def corrupt(image: U8, name: str, severity: int, seed: int = 0) -> U8:
    """Return an image (H, W, 3) uint8 RGB corrupted by one of CORRUPTIONS; severity 0 is a copy.

    Raises ValueError for an unknown name, a severity outside 0..5 or another kind of image.
    """
    if name not in _TABLE:
        raise ValueError(f"No corruption is called {name!r}: use one of {', '.join(CORRUPTIONS)}.")
    if severity not in (0, *SEVERITIES):
        raise ValueError(f"severity is {severity!r}: give a whole number from 0 (clean) to 5.")
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or image.size == 0:
        raise ValueError(
            f"The image has shape {image.shape} and type {image.dtype}: give (H, W, 3) uint8 RGB."
        )
    if severity == 0:
        return image.copy()
    function, levels = _TABLE[name]
    rng = np.random.default_rng([seed, CORRUPTIONS.index(name)])
    x = unit_range(image)
    return _as_bytes(function(x, rng, *levels[severity - 1]))


def sheet(image: U8, columns_px: int = 160, seed: int = 0) -> U8:
    """Draw all corruptions of an image (H, W, 3) on one sheet (rows, columns, 3) uint8 RGB.

    Each corruption is a row: the clean image at the left, then the severities 1 to 5. Corruptions
    are applied at the image's own size; the results are then resized to `columns_px` columns.
    """
    rows_px = max(8, round(columns_px * image.shape[0] / image.shape[1]))
    strip = 14
    lines = []
    for name in CORRUPTIONS:
        cells = [
            cv2.resize(
                corrupt(image, name, k, seed), (columns_px, rows_px), interpolation=cv2.INTER_AREA
            )
            for k in (0, *SEVERITIES)
        ]
        title = np.full((strip, columns_px * len(cells), 3), 255, np.uint8)
        cv2.putText(title, name, (3, 11), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (0, 0, 0), 1, cv2.LINE_AA)
        lines += [title, np.concatenate(cells, axis=1)]
    return np.concatenate(lines, axis=0)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `python -m training corrupt IMAGE --out sheet.png`."""
    parser.add_argument("image", type=Path, help="JPEG or PNG file")
    parser.add_argument("--out", required=True, type=Path, help="the sheet, .png or .jpg")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random fields")


def command(args: argparse.Namespace, console: Console) -> None:
    """Write the sheet of an image file. Raises DataError if a file cannot be read or written."""
    if not args.image.is_file():
        raise DataError(f"{args.image} cannot be read as an image: give a JPEG or PNG file.")
    made = sheet(read_image(args.image), seed=args.seed)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    try:
        written = cv2.imwrite(str(args.out), np.ascontiguousarray(made[..., ::-1]))
    except cv2.error:
        written = False
    if not written:
        raise DataError(f"{args.out} cannot be written: give a path that ends in .png or .jpg.")
    console.print(f"{args.out}: {len(CORRUPTIONS)} corruptions, clean at the left, then 1 to 5")


# --- scores over corruptions (RoboDepth) ---------------------------------------------------------


def depth_error(abs_rel: float, delta1: float, kind: int = 2) -> float:
    """Return the depth estimation error (DEE), which joins AbsRel and delta1.

    Kind 1 is AbsRel + 1 - delta1, kind 2 half of it (the main one), kind 3 AbsRel / delta1. Raises
    ValueError for another kind.
    """
    if kind == 3:
        return abs_rel / delta1 if delta1 > 0 else math.inf
    if kind not in (1, 2):
        raise ValueError(f"There are the depth estimation errors 1, 2 and 3, not {kind!r}.")
    return (abs_rel - delta1 + 1.0) / kind


def mean_corruption_error(
    errors: Mapping[str, Sequence[float]], base: Mapping[str, Sequence[float]]
) -> float:
    """Return mCE in per cent: the DEE summed over severities over the base's, mean of corruptions.

    errors and base map each corruption to its DEE at the severities 1 to 5. Lower is better; the
    base model has 100. Raises ValueError for other corruptions or another number of severities.
    """
    return 100.0 * float(np.mean([sum(e) / sum(b) for e, b in _pairs(errors, base)]))


def mean_resilience_rate(errors: Mapping[str, Sequence[float]], clean: float) -> float:
    """Return mRR in per cent: 1 - DEE of corrupted images over 1 - DEE of clean ones.

    It is the mean over severities and corruptions; higher is better. errors maps each corruption to
    its DEE at the severities 1 to 5. Raises ValueError as mean_corruption_error does.
    """
    resilience = [float(np.mean([1.0 - e for e in line])) for line, _ in _pairs(errors, errors)]
    return 100.0 * float(np.mean(resilience)) / (1.0 - clean)


def _pairs(
    errors: Mapping[str, Sequence[float]], base: Mapping[str, Sequence[float]]
) -> Iterator[tuple[Sequence[float], Sequence[float]]]:
    if errors.keys() != base.keys() or not errors:
        raise ValueError("A model and its base need scores of the same corruptions, one or more.")
    for name, line in errors.items():
        if len(line) != len(SEVERITIES) or len(base[name]) != len(SEVERITIES):
            raise ValueError(f"{name} needs one score for each of the five severities.")
        yield line, base[name]


# --- helpers of several corruptions --------------------------------------------------------------


def _as_bytes(x: F32) -> U8:
    return np.rint(np.clip(x, 0, 1) * np.float32(255)).astype(np.uint8)


def _photons(x: F32, rng: np.random.Generator, count: float) -> F32:
    """Return the values (H, W, 3) that a sensor measures if full white is `count` photons."""
    rate = np.maximum(x, 0).astype(np.float64) * count
    return (rng.poisson(rate) / count).astype(np.float32)


def _blurred(x: F32, sigma: float) -> F32:
    blurred = cv2.GaussianBlur(x, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE)
    return np.asarray(blurred, np.float32)


def _filtered(x: F32, kernel: F32) -> F32:
    filtered = cv2.filter2D(x, -1, kernel / kernel.sum(), borderType=cv2.BORDER_REPLICATE)
    return np.asarray(filtered, np.float32)


def _streak(x: F32, radius: int, sigma: float, angle_deg: float) -> F32:
    """Blur along a line that starts at the pixel and fades over 2 radius + 1 pixels."""
    reach = 2 * radius + 1
    kernel = np.zeros((2 * reach + 3, 2 * reach + 3), np.float32)
    along = math.radians(angle_deg)
    for k in range(reach):
        weight = math.exp(-(k * k) / (2 * sigma * sigma))
        c, r = reach + 1 + k * math.cos(along), reach + 1 + k * math.sin(along)
        c0, r0 = math.floor(c), math.floor(r)
        for row, weight_r in ((r0, 1 - r + r0), (r0 + 1, r - r0)):
            for col, weight_c in ((c0, 1 - c + c0), (c0 + 1, c - c0)):
                kernel[row, col] += weight * weight_r * weight_c
    return _filtered(x, kernel)


def _cloud(rng: np.random.Generator, height: int, width: int, persistence: float) -> F32:
    """Return fractal noise (H, W) in 0..1 around 0.5: octaves of smooth noise of falling weight.

    The weight of each octave is `persistence` times that of the one before. The octaves fit the
    longer side, so that clouds are round in an image of any shape. The weights are not normalised
    to a fixed sum: a rougher cloud is also a stronger one.
    """
    side = max(height, width)
    total = np.zeros((side, side), np.float32)
    cells, weight = 2, 1.0
    while cells < 2 * side:
        grid = rng.uniform(-1, 1, (cells + 1, cells + 1)).astype(np.float32)
        total += np.float32(weight) * cv2.resize(grid, (side, side), interpolation=cv2.INTER_CUBIC)
        cells, weight = 2 * cells, weight * persistence
    return np.clip(np.float32(0.5) + np.float32(0.4) * total[:height, :width], 0, 1)


def _ice(rng: np.random.Generator, height: int, width: int, grown: float) -> F32:
    """Return ice on a window (H, W, 3) in 0..1: bluish veins that grow inwards from the border.

    grown: 0 to 1; veins become thicker and reach farther with it.
    """
    veins: F32 = np.zeros((height, width), np.float32)
    for _ in range(4):
        # A thin line lies where smooth noise crosses its mean; several such lines look like ferns.
        line: F32 = 1 - np.abs(2 * _cloud(rng, height, width, 0.6) - 1)
        veins = np.maximum(veins, line ** np.float32(12 / (1 + 3 * grown)))
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    c = np.linspace(-1, 1, width, dtype=np.float32)[None, :]
    border = np.clip(np.maximum(np.abs(y), np.abs(c)) + np.float32(grown), 0.3, 1)
    rime = np.float32(0.2 + 2 * grown) * _cloud(rng, height, width, 0.5)
    body = np.maximum(veins, rime) * border
    tint = np.array([0.86, 0.94, 1.0], np.float32)
    return np.clip(body, 0, 1)[..., None] * tint
