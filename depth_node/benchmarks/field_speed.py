# SPDX-License-Identifier: Apache-2.0
"""Speed of method `field` against SSF, its own NumPy form and one pass over the image in memory."""

from __future__ import annotations

import mmap
import multiprocessing
import resource
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from depth_node import config as settings
from depth_node.benchmarks.speed import fit_problem, machine, one_core, take_turns
from depth_node.benchmarks.tables import Table
from depth_node.engine.refinement import refiner_for
from depth_node.fitting import FitConfig, FitResult, fit
from depth_node.fitting.field.base import fit_base
from depth_node.fitting.field.features import NUGGETS, FieldFeatures
from depth_node.fitting.field.kernels import FieldKernels, kernels
from depth_node.fitting.field.memory import FieldState
from depth_node.fitting.field.points import merge_points
from depth_node.fitting.field.settings import WHOLE_METHOD, FieldConfig
from depth_node.fitting.field.solve import solve
from depth_node.fitting.field.threads import usual_threads
from depth_node.geometry.sparse_depth import SparseDepth
from depth_node.prediction import Prediction

FIELD = FitConfig(method="field", threads=1)
SSF = FitConfig(method="ssf", mode="paper")
SIZES = ((480, 640), (720, 1280))
COUNTS = (50, 250, 1000, 2000, 10000)
DENSE = (375, 1242, 8000)  # rows, columns and points of a road recording with a full LiDAR turn
THREAD_PROBLEMS = [(*size, count) for size in SIZES for count in (1000, 10000)] + [DENSE]
QUIET = 10  # quantile of the times in %: the repeats that other processes disturbed least
APART = 3  # frames of each thread that shares nothing; several, so that its start counts little
GROWTH_FRAMES = (20, 220)


def speed(repeats: int = 0) -> list[Table]:
    """Return a table of the times of the field, SSF, the NumPy form and a pass over memory on one
    core, ms, and a table of what threads gain.
    """
    with multiprocessing.get_context("spawn").Pool(1) as fresh:
        first = fresh.apply(first_calls)
    _warm_up()
    prediction, _, labels = fit_problem()
    body, names = [], [""]
    problems = [(*size, count) for size in SIZES for count in COUNTS] + [DENSE]
    with one_core():
        for height, width, count in problems:
            problem = SpeedProblem.of(prediction, labels, height, width, count)
            medians = problem.medians(repeats or 30)
            names = [*medians, "faults"]
            cells = [f"{value:.1f}" for value in medians.values()]
            cells.append(f"{problem.page_faults():.0f}")
            body.append([f"{width}x{height}", str(count), *cells])
    notes = [
        "medians of processor time in ms on one core, one thread; faults: page faults of a fit with"
        " memory",
        f"a fresh process: warm-up {first[0]:.0f} ms, first fit after it {first[1]:.1f} ms, "
        f"median of the next {first[2]:.1f} ms (480x640, 1000 points)",
        f"memory of the process after {GROWTH_FRAMES[0]} frames {first[3]:.0f} MiB, after "
        f"{GROWTH_FRAMES[1]} {first[4]:.0f} MiB",
        machine(),
    ]
    one = Table("Speed of the field", ["image", "points", *names], body, notes)
    return [one, threads_table(prediction, labels, 3 * (repeats or 30))]


def _warm_up() -> None:
    """Load or compile the loops and run two frames, so that the first measured one is no slower."""
    rng = np.random.default_rng(0)
    height, width, count = 480, 640, 300
    values = rng.uniform(1, 2, (height, width)).astype(np.float32)
    rows, cols = np.divmod(rng.permutation(height * width)[:count], width)
    points = SparseDepth.from_arrays(rows, cols, values[rows, cols])
    image = rng.integers(0, 256, (height, width, 3), np.uint8)
    prediction, state = Prediction(values, "depth_affine_invariant"), FieldState()
    for stamp_ns in (100_000_000, 200_000_000):
        state.at(stamp_ns)
        solve(prediction, points, None, image, FieldConfig(), state)


def threads_table(
    prediction: Prediction, labels: NDArray[np.integer], repeats: int, threads: int = 0
) -> Table:
    """Compare the wall-clock times of one thread and of several.

    Three tasks: a fit; the neighbour search and kriging of all its nodes; and APART such frames for
    each thread, which share nothing, as the gain that this machine allows at present.

    labels: (H, W) of the prediction. threads: as fit.threads; 0 = the usual number.
    """
    threads = threads or usual_threads()
    body = []
    for height, width, count in THREAD_PROBLEMS:
        problem = SpeedProblem.of(prediction, labels, height, width, count)
        times = take_turns(problem.shared(threads), repeats)
        wall = {name: float(np.percentile(one.wall, QUIET)) for name, one in times.items()}
        cells, gains = [], {}
        for name in ("fit", "nodes", "apart"):
            alone, shared = wall[f"{name} alone"], wall[f"{name} shared"]
            gains[name] = alone / shared
            cells.append(f"{alone:.2f} / {shared:.2f} = {gains[name]:.2f}")
        share = gains["nodes"] / gains["apart"]
        body.append([f"{width}x{height}", str(count), *cells, f"{share:.2f}"])
    title = f"Speed of the field with {threads} threads"
    head = ["image", "points", "fit", "neighbours and kriging", "the same, apart", "share"]
    notes = [
        f"clock ms with 1 thread / with {threads} = gain; {QUIET} % quantiles, in turns",
        f"the same, apart: {threads} x {APART} frames in one thread / {APART} frames in each of"
        f" {threads} threads that share nothing; share: gain of neighbours and kriging over that",
    ]
    return Table(title, head, body, notes)


def first_calls() -> list[float]:
    """Return the times of the warm-up, of the first fit and the median of 20 more fits, ms; then
    the memory after each of GROWTH_FRAMES, MiB.
    """
    with one_core():
        begin = time.perf_counter()
        _warm_up()
        warm_ms = (time.perf_counter() - begin) * 1e3
        prediction, _, labels = fit_problem()
        problem = SpeedProblem.of(prediction, labels, 480, 640, 1000)
        times = []
        for _ in range(21):
            begin = time.perf_counter()
            problem.fit(FIELD)
            times.append((time.perf_counter() - begin) * 1e3)
        return [warm_ms, times[0], float(np.median(times[1:])), *problem.growth()]


class SpeedProblem:
    """A prediction with regions, and points from a smoothly distorted version of its depth.

    labels: (H, W). image: (H, W, 3) uint8 RGB.
    """

    def __init__(
        self,
        prediction: Prediction,
        labels: NDArray[np.integer],
        points: SparseDepth,
        image: NDArray[np.uint8],
    ) -> None:
        self.prediction, self.labels, self.points, self.image = prediction, labels, points, image

    @classmethod
    def of(
        cls,
        prediction: Prediction,
        labels: NDArray[np.integer],
        height: int,
        width: int,
        count: int,
    ) -> SpeedProblem:
        """Return a problem like speed.fit_problem's at another size and number of points.

        labels: (H, W) of the prediction.
        """
        size, nearest = (width, height), cv2.INTER_NEAREST
        values = np.asarray(cv2.resize(prediction.values, size, interpolation=nearest), np.float32)
        labels = np.asarray(cv2.resize(labels.astype(np.int32), size, interpolation=nearest))
        rng = np.random.default_rng(0)
        rows, cols = np.divmod(rng.permutation(height * width)[:count], width)
        resized = Prediction(values, prediction.kind)
        bend = np.exp(0.1 * np.sin(rows / height * 7) * np.cos(cols / width * 5))
        depth = resized.relative_depth()[rows, cols] * bend * 2 + 0.5
        colours = rng.integers(0, 256, (int(labels.max()) + 1, 3))
        grain = rng.normal(0, 5, (height, width, 1))
        image = np.clip(colours[labels] + grain, 0, 255).astype(np.uint8)
        return cls(resized, labels, SparseDepth.from_arrays(rows, cols, depth), image)

    def fit(self, config: FitConfig, state: FieldState | None = None) -> FitResult:
        """Fit one frame; with a state, the field remembers earlier frames."""
        labels = self.labels if config.method != "field" else None
        return fit(
            self.prediction,
            self.points,
            labels,
            image=self.image,
            config=config,
            state=state,
            refiner=refiner_for(config),
        )

    def medians(self, repeats: int) -> dict[str, float]:
        """Return the median processor time of every way to fit, ms; the ways take turns."""
        state, clock = FieldState(), iter(range(1, 1_000_000))

        def remembered() -> FitResult:
            state.at(next(clock) * 100_000_000)
            return self.fit(FIELD, state)

        plain = settings.replace(FIELD, {"field.compiler": "numpy"})
        values, image = self.prediction.values, self.image
        parts: dict[str, Callable[[], object]] = {
            "field": lambda: self.fit(FIELD),
            "with memory": remembered,
            "ssf": lambda: self.fit(SSF),
            "ssf robust": lambda: self.fit(FitConfig(method="ssf", mode="sensor")),
            # The least work of any method: read prediction and image, write depth and std.
            "memory floor": lambda: (values * 2.0, values + 1.0, image.max()),
        }
        times = take_turns(parts, repeats)
        times |= take_turns({"NumPy form": lambda: self.fit(plain)}, 3)
        return {name: float(np.median(one.cpu)) for name, one in times.items()}

    def shared(self, threads: int) -> dict[str, Callable[[], object]]:
        """Return the tasks of threads_table: by one thread (alone) and by several (shared)."""
        points, alone, together = self.points, kernels("numba", 1), kernels("numba", threads)
        merged, _ = merge_points(points, self.prediction.shape)
        base, age_s = fit_base(self.prediction, merged), FIELD.field.age_s
        features = FieldFeatures.of(base, merged, None, self.image, age_s, WHOLE_METHOD, alone)
        nothing = np.zeros(len(features))
        config = settings.replace(FIELD, {"threads": threads})
        pool = ThreadPoolExecutor(threads)

        def nodes(loops: FieldKernels) -> None:
            features.krige_nodes(nothing, NUGGETS[1], WHOLE_METHOD.neighbours, loops)

        def frames(count: int) -> None:
            for _ in range(count):
                nodes(alone)

        return {
            "fit alone": lambda: self.fit(FIELD),
            "fit shared": lambda: self.fit(config),
            "nodes alone": lambda: nodes(alone),
            "nodes shared": lambda: nodes(together),
            "apart alone": lambda: frames(APART * threads),
            "apart shared": lambda: list(pool.map(frames, [APART] * threads)),
        }

    def page_faults(self) -> float:
        """Return the mean number of minor page faults of a fit with memory, after a warm-up."""
        state = FieldState()
        frames, before = 10, 0
        for number in range(2 * frames):
            if number == frames:
                before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            state.at((number + 1) * 100_000_000)
            self.fit(FIELD, state)
        return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / frames

    def growth(self) -> list[float]:
        """Return the resident memory after each number of GROWTH_FRAMES, MiB; NaN without /proc."""
        state, memory_mib = FieldState(), []
        for number in range(max(GROWTH_FRAMES)):
            state.at((number + 1) * 100_000_000)
            self.fit(FIELD, state)
            if number + 1 in GROWTH_FRAMES:
                pages = Path("/proc/self/statm")
                resident = float(pages.read_text().split()[1]) if pages.is_file() else np.nan
                memory_mib.append(resident * mmap.PAGESIZE / 2**20)
        return memory_mib
