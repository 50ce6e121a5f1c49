# SPDX-License-Identifier: Apache-2.0
"""Golden metrics of every method, of the memory and of the projection on tests/assets' frames.

    python -m tests.helpers.golden_metrics           print what differs from the stored values
    python -m tests.helpers.golden_metrics --write   store the present values

The stored values are in tests/assets/golden_metrics.json, one line per case; a list has one value
per frame.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from depth_node.fitting import METHODS, FitConfig, FitResult
from depth_node.fitting.field.memory import FieldState
from depth_node.fitting.field.settings import FieldAblation
from depth_node.geometry.camera import Camera
from depth_node.geometry.sparse_depth import ProjectionConfig, SparseDepth, project_points
from depth_node.metrics import coverage, evaluate
from depth_node.prediction import Prediction
from tests.assets.make_frames import HEIGHT, PLANS, SWEPT, T_CAMERA_LIDAR, WIDTH, Frame
from tests.helpers.fits import fit

STATED = Path(__file__).parents[1] / "assets" / "golden_metrics.json"
Values = dict[str, Any]

# --- points --------------------------------------------------------------------------------------

RANGE_NOISE, WRONG_SHARE, WRONG_RANGE = 0.02, 0.05, (0.4, 2.0)

# Condition -> number of points (at most those that the pattern allows), pattern, whether noisy.
CONDITIONS: dict[str, tuple[int, str, bool]] = {
    "8": (8, "anywhere", False),
    "50": (50, "anywhere", False),
    "250": (250, "anywhere", False),
    "1000": (1000, "anywhere", False),
    "250n": (250, "anywhere", True),
    "1000n": (1000, "anywhere", True),
    "lines": (600, "lines", False),
    "lines_n": (600, "lines", True),
    "part": (250, "part", False),
    "corner": (60, "corner", False),
}
# Conditions that matter to the field only: very many points, dense lines, points of different age.
FIELD_CONDITIONS: dict[str, tuple[int, str, bool]] = {
    "50n": (50, "anywhere", True),
    "4500n": (4500, "anywhere", True),
    "dense_lines": (3500, "dense_lines", False),
    "aged": (400, "aged", True),
    "sweeps": (30000, "sweeps", False),
    "thin_sweeps": (30000, "thin_sweeps", False),
}
LARGE = ("sweeps", "thin_sweeps")  # conditions on two frames enlarged three times


def _allowed(pattern: str, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    rows, cols = np.mgrid[: shape[0], : shape[1]]
    return {
        "lines": rows % 18 == 5,
        "dense_lines": rows % 8 == 3,
        "sweeps": rows % 12 == 5,
        "thin_sweeps": (rows % 12 == 5) & (cols % 2 == 0),
        "part": (cols < 0.45 * WIDTH) & (rows > 0.2 * HEIGHT),
        "corner": (cols < 0.15 * WIDTH) & (rows < 0.2 * HEIGHT),
    }.get(pattern, np.ones(shape, bool))


def measure(depth: NDArray[np.float32], condition: str, seed: int) -> SparseDepth:
    """Return the points of a condition; a noisy one has 2 % range noise and 5 % wrong points."""
    count, pattern, noisy = (CONDITIONS | FIELD_CONDITIONS)[condition]
    rng = np.random.default_rng(seed)
    pixel = rng.permutation(np.flatnonzero(_allowed(pattern, depth.shape)))[:count]
    rows, cols = np.divmod(pixel, depth.shape[1])
    z = depth[rows, cols].astype(np.float64)
    age_s = rng.integers(0, 3, len(z)) * 0.5 if pattern == "aged" else np.zeros(len(z))
    if noisy:
        z *= 1 + RANGE_NOISE * np.sqrt(1 + 12 * age_s**2) * rng.standard_normal(len(z))
        wrong = rng.random(len(z)) < WRONG_SHARE
        z[wrong] *= rng.uniform(*WRONG_RANGE, np.count_nonzero(wrong))
    return SparseDepth.from_arrays(rows, cols, z, age_s)


# --- fits ----------------------------------------------------------------------------------------


@functools.cache
def frames() -> dict[str, Frame]:
    """Return the stored frames by name."""
    return {name: Frame.read(name) for name in PLANS}


@functools.cache
def large_frames() -> dict[str, Frame]:
    """Return two of the frames, enlarged to 600 x 450."""

    def larger(image: NDArray[Any], how: int = cv2.INTER_NEAREST) -> NDArray[Any]:
        return np.asarray(cv2.resize(image, None, fx=3, fy=3, interpolation=how))

    return {
        name: dataclasses.replace(
            frame,
            image=larger(frame.image, cv2.INTER_LINEAR),
            depth=larger(frame.depth),
            labels=larger(frame.labels),
            prediction=Prediction(
                larger(frame.prediction.values, cv2.INTER_LINEAR), frame.prediction.kind
            ),
        )
        for name, frame in frames().items()
        if name in ("hall", "desk")
    }


def _variants() -> dict[str, tuple[FitConfig, FieldAblation]]:
    variants: dict[str, tuple[FitConfig, FieldAblation]] = {}
    for method in METHODS:
        if method == "field":
            field = FitConfig(method="field")
            variants["field"] = (field, FieldAblation())
            variants["field regions"] = (field, FieldAblation(regions=True))
            variants["field grey"] = (field, FieldAblation(colour=False))
            continue
        for mode in ("paper", "sensor"):
            variants[f"{method} {mode}"] = (FitConfig(method=method, mode=mode), FieldAblation())
    return variants


VARIANTS = _variants()
CASES = [
    (variant, condition)
    for variant in VARIANTS
    for condition in (["250n"] if variant.startswith("field ") else CONDITIONS)
]
CASES += [("field", condition) for condition in FIELD_CONDITIONS]


def reached(variant: str, condition: str) -> Values:
    """Return the metrics of a variant under a condition, each a list over the frames.

    abs_rel, coverage, width (mean std / depth), known (fraction of pixels with a standard
    deviation); for the field also its estimated parameters.
    """
    found: dict[str, list[float]] = {}
    given = large_frames() if condition in LARGE else frames()
    for number, frame in enumerate(given.values()):
        points = measure(frame.depth, condition, number)
        config, ablation = VARIANTS[variant]
        result = fit(
            frame.prediction, points, frame.labels, image=frame.image, config=config,
            ablation=ablation,
        )  # fmt: skip
        values = {
            "abs_rel": evaluate(result.depth, frame.depth).abs_rel,
            "coverage": coverage(result.depth, result.std, frame.depth),
            "width": float(np.nanmean(result.std / result.depth)),
            "known": float(np.isfinite(result.std).mean()),
        }
        if config.method == "field":
            values |= {name: result.details[name] for name in ("nugget", "detail", "clip", "scale")}
            values["factor"] = result.details["interval_factor"]
            values["left_out"] = result.details["leave_one_out"]
            values["suspects"] = result.details["outlier_fraction"]
        for name, value in values.items():
            found.setdefault(name, []).append(value)
    return found


# --- memory --------------------------------------------------------------------------------------

FRAME_NS = 100_000_000
AREA = (slice(50, 120), slice(60, 140))
SMALL_AREA = (slice(70, 110), slice(80, 130))


class Camera10Hz:
    """A camera that stands still and gets other points in each frame."""

    def __init__(self, name: str, count: int = 300, noise: float = RANGE_NOISE) -> None:
        self.frame, self.count, self.noise = frames()[name], count, noise
        self.config = FitConfig(method="field")
        self.state, self.time_ns, self.seed = FieldState(), 0, 0

    def see(
        self,
        depth: NDArray[np.float32] | None = None,
        image: NDArray[np.uint8] | None = None,
        values: NDArray[np.float32] | None = None,
        gap_s: float = 0.1,
    ) -> tuple[FitResult, FitResult]:
        """Fit a frame without and with memory; return both results.

        depth, image, values: changed truth, image or prediction of this frame.
        """
        self.seed += 1
        self.time_ns += round(gap_s * 1e9)
        truth = self.frame.depth if depth is None else depth
        rng = np.random.default_rng(self.seed)
        rows, cols = np.divmod(rng.permutation(truth.size)[: self.count], truth.shape[1])
        z = truth[rows, cols] * (1 + self.noise * rng.standard_normal(self.count))
        points = SparseDepth.from_arrays(rows, cols, z)
        prediction = self.frame.prediction
        if values is not None:
            prediction = Prediction(values, prediction.kind)
        image = self.frame.image if image is None else image
        self.state.at(self.time_ns)
        alone = fit(prediction, points, image=image, config=self.config)
        both = fit(prediction, points, image=image, config=self.config, state=self.state)
        return alone, both

    def stand(self, number: int = 6) -> Camera10Hz:
        """See a few frames in which nothing changes."""
        for _ in range(number):
            self.see()
        return self

    @property
    def remembered(self) -> float:
        """Weight of the past in the last answer."""
        return self.state.old_weight


def _standing(name: str, count: int) -> Values:
    camera = Camera10Hz(name, count)
    shares, answers = [], []
    for _ in range(8):
        answers.append(camera.see())
        shares.append(camera.remembered)

    def flicker(one: FitResult, other: FitResult) -> float:
        return float(np.median(np.abs(np.log(one.depth / other.depth))))

    pairs = list(itertools.pairwise(answers[3:]))
    ratio = sum(flicker(a[1], b[1]) for a, b in pairs) / sum(flicker(a[0], b[0]) for a, b in pairs)
    return {"remembered": shares, "flicker": [ratio]}


def _things_move(
    name: str,
    factor: float,
    count: int = 300,
    area: tuple[slice, slice] = AREA,
    noise: float = RANGE_NOISE,
) -> Values:
    """Move a part nearer, which only the points show; return what is remembered and errors there.

    error_ratio: error with memory over error without.
    """
    camera = Camera10Hz(name, count, noise).stand()
    depth = camera.frame.depth.copy()
    depth[area] *= factor
    shares, errors = [], []
    for _ in range(2):
        alone, both = camera.see(depth=depth)
        shares.append(camera.remembered)
        wrong = (np.abs(each.depth - depth)[area].mean() for each in (both, alone))
        errors.append(float(next(wrong) / next(wrong)))
    return {"remembered": shares, "error_ratio": errors}


def _picture_changes(name: str, brighter: int) -> Values:
    """Brighten the image towards the right, by up to `brighter` grey levels."""
    camera = Camera10Hz(name).stand(3)
    ramp = np.linspace(-0.5 * brighter, brighter, WIDTH)[None, :, None].clip(0)
    image = np.clip(camera.frame.image * 0.6 + ramp, 0, 255).astype(np.uint8)
    camera.see(image=(camera.frame.image * 0.6).astype(np.uint8))
    camera.see(image=image)
    return {"remembered": [camera.remembered], "resets": [camera.state.resets]}


def _network_changes(name: str, change: float) -> Values:
    """Bend the network's map by up to `change` times its range."""
    camera = Camera10Hz(name).stand(3)
    values = camera.frame.prediction.values
    ramp = np.linspace(-0.5, 1, HEIGHT, dtype=np.float32)[:, None].clip(0)
    camera.see(values=values + np.float32(change) * np.ptp(values) * ramp)
    return {"remembered": [camera.remembered], "resets": [camera.state.resets]}


def _unannounced_move(name: str, pixels: int, count: int = 300) -> Values:
    """Move the whole scene sideways without a camera pose that says so."""
    camera = Camera10Hz(name, count).stand()
    frame = camera.frame
    moved = [np.roll(each, pixels, axis=1) for each in (frame.depth, frame.prediction.values)]
    camera.see(depth=moved[0], values=moved[1], image=np.roll(frame.image, pixels, axis=1))
    return {"remembered": [camera.remembered], "resets": [camera.state.resets]}


def _unseen_move(name: str, pixels: int, count: int = 300) -> Values:
    """Move only the points sideways, so that the past predicts them badly."""
    camera = Camera10Hz(name, count).stand()
    camera.see(depth=np.roll(camera.frame.depth, pixels, axis=1))
    return {"remembered": [camera.remembered], "resets": [camera.state.resets]}


def _another_part(name: str, share: float) -> Values:
    """Replace the image in a fraction `share` of its columns."""
    camera = Camera10Hz(name).stand(3)
    image = camera.frame.image.copy()
    image[:, : round(share * WIDTH)] = 255 - image[:, : round(share * WIDTH)] // 2
    camera.see(image=image)
    return {"remembered": [camera.remembered], "resets": [camera.state.resets]}


def _everything_nearer(name: str, factor: float) -> Values:
    """Scale all points by a factor, which the remembered depth takes over."""
    camera = Camera10Hz(name).stand()
    alone, both = camera.see(depth=camera.frame.depth * np.float32(factor))
    ratio = float(np.median(both.depth / alone.depth))
    return {"remembered": [camera.remembered], "ratio": [ratio]}


def _pause(name: str, gap_s: float) -> Values:
    camera = Camera10Hz(name).stand(3)
    camera.see(gap_s=gap_s)
    return {"remembered": [camera.remembered], "resets": [camera.state.resets]}


MEMORY: dict[str, Callable[[], Values]] = {
    "standing, 60 points": lambda: _standing("room", 60),
    "standing, 300 points": lambda: _standing("hall", 300),
    "standing, 1200 points": lambda: _standing("desk", 1200),
    "a part 8 % nearer": lambda: _things_move("hall", 0.92),
    "a part 15 % nearer": lambda: _things_move("desk", 0.85),
    "a part 30 % nearer": lambda: _things_move("room", 0.7, 1200),
    "a small part 3 % nearer": lambda: _things_move("bin", 0.97, 600, SMALL_AREA, 0.0),
    "a small part 6 % nearer": lambda: _things_move("bin", 0.94, 600, SMALL_AREA, 0.0),
    "picture brighter to the right": lambda: _picture_changes("hall", 60),
    "picture much brighter to the right": lambda: _picture_changes("desk", 150),
    "network bent a little": lambda: _network_changes("room", 0.1),
    "network bent": lambda: _network_changes("hall", 0.2),
    "unannounced move by 2 px": lambda: _unannounced_move("room", 2),
    "unannounced move by 5 px": lambda: _unannounced_move("desk", 5, 1000),
    "points alone move by 2 px": lambda: _unseen_move("room", 2, 1000),
    "points alone move by 4 px": lambda: _unseen_move("room", 4),
    "points alone move by 10 px": lambda: _unseen_move("desk", 10),
    "another picture in 40 %": lambda: _another_part("hall", 0.4),
    "another picture in 80 %": lambda: _another_part("hall", 0.8),
    "all 10 % nearer": lambda: _everything_nearer("hall", 0.9),
    "pause of 0.7 s": lambda: _pause("room", 0.7),
    "pause of 1.5 s": lambda: _pause("room", 1.5),
}

# --- projection ----------------------------------------------------------------------------------


def _projected(**settings: Any) -> Values:
    frame = frames()[SWEPT]
    f = frame.focal_px
    camera = Camera(WIDTH, HEIGHT, f, f, WIDTH / 2 - 0.5, HEIGHT / 2 - 0.5)
    T_camera_lidar = np.vstack([T_CAMERA_LIDAR, (0, 0, 0, 1)])
    config = ProjectionConfig(**settings)
    found = project_points(frame.points_lidar, T_camera_lidar, camera, config)
    off = found.depth / frame.depth[found.rows, found.cols] - 1
    counts: Values = dataclasses.asdict(found.counts)
    return counts | {
        "seen_through": int(np.count_nonzero(off > 0.2)),
        "abs_rel": float(np.abs(off).mean()),
    }


PROJECTION: dict[str, Callable[[], Values]] = {
    "default": lambda: _projected(),
    "everything that is in front": lambda: _projected(drop_occluded=False),
    "from 1.5 to 3 m": lambda: _projected(min_depth_m=1.5, max_depth_m=3.0),
    "farther from the lines": lambda: _projected(occlusion_radius_px=40, occlusion_ratio=1.05),
}


# --- stated --------------------------------------------------------------------------------------


def everything() -> dict[str, dict[str, Values]]:
    """Compute all present values."""
    return {
        "fits": {f"{variant}, {condition}": reached(variant, condition)
                 for variant, condition in CASES},
        "memory": {name: case() for name, case in MEMORY.items()},
        "projection": {name: case() for name, case in PROJECTION.items()},
    }  # fmt: skip


@functools.cache
def stated() -> dict[str, dict[str, Values]]:
    """Read all values of tests/assets/golden_metrics.json."""
    found: dict[str, dict[str, Values]] = json.loads(STATED.read_text(encoding="utf-8"))
    return found


def _text(values: dict[str, dict[str, Values]]) -> str:
    def rounded(value: Any) -> Any:
        if isinstance(value, list):
            return [rounded(each) for each in value]
        return float(f"{value:.5g}") if isinstance(value, float) else value

    sections = []
    for section, cases in values.items():
        lines = [
            f"    {json.dumps(name)}: "
            + json.dumps({key: rounded(value) for key, value in case.items()})
            for name, case in cases.items()
        ]
        sections.append(f"  {json.dumps(section)}: {{\n" + ",\n".join(lines) + "\n  }")
    return "{\n" + ",\n".join(sections) + "\n}\n"


def _differences(now: dict[str, dict[str, Values]]) -> Iterator[str]:
    before = stated() if STATED.is_file() else {}
    for section, cases in now.items():
        for name in before.get(section, {}).keys() - cases.keys():
            yield f"{section}: {name}: is no more"
        for name, values in cases.items():
            old = before.get(section, {}).get(name, {})
            for key, value in values.items():
                was = np.atleast_1d(np.asarray(old.get(key, np.nan), np.float64))
                new = np.atleast_1d(np.asarray(value, np.float64))
                if was.shape != new.shape or not np.allclose(was, new, rtol=1e-3, equal_nan=True):
                    change = new / was - 1 if was.shape == new.shape else np.array([np.nan])
                    largest = change[np.argmax(np.abs(np.nan_to_num(change)))]
                    shown = [np.array2string(each, precision=4) for each in (was, new)]
                    yield f"{section}: {name}: {key}: {shown[0]} -> {shown[1]} ({largest:+.1%})"


def main(arguments: list[str]) -> int:
    """Print what differs; store it with --write. Return 1 if something differs and stays so."""
    now = everything()
    with np.errstate(all="ignore"):
        differences = list(_differences(now))
    print("\n".join(differences) or "nothing differs from the stated values")
    if "--write" in arguments:
        STATED.write_text(_text(now), encoding="utf-8")
        return 0
    return int(bool(differences))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
