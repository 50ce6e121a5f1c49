# SPDX-License-Identifier: Apache-2.0
"""Study of regions, their time and benefit: `python -m training study regions CASE [SOURCE...]`.

Cases
    prompts     time of a prompted network without its engines, on one core
    motion      methods that propagate regions to the next images, on rendered walks
    reuse       segmentation of every k-th image: accuracy and time, on rendered walks
    masks       real masks, the image's own regions, none: accuracy on recorded frames
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from depth_node.benchmarks.accuracy import DepthPredictor, predicted
from depth_node.benchmarks.speed import machine, one_core
from depth_node.benchmarks.tables import Means, Table
from depth_node.cli.console import print_tables, progress
from depth_node.engine.manifest import Manifest
from depth_node.engine.options import ModelConfig
from depth_node.engine.preprocess import InputSpec
from depth_node.engine.refinement import refiner_for
from depth_node.fitting import FitConfig, FitResult, fit
from depth_node.fitting.field.settings import WHOLE_METHOD, FieldAblation
from depth_node.geometry.camera import Camera
from depth_node.geometry.sparse_depth import SparseDepth
from depth_node.inference import DepthModel, PromptedRegionModel
from depth_node.metrics import evaluate
from depth_node.prediction import Prediction
from depth_node.recordings.frames import split_uniform
from depth_node.regions.label_maps import Labels
from depth_node.regions.prompted_masks import PromptConfig, point_grid
from depth_node.regions.propagation import RegionMemory, follow, small_grey
from depth_node.regions.segmentation import segment
from depth_node.regions.settings import SegmentationConfig
from depth_node.simulation.renderer import Rendered, Scene
from depth_node.simulation.viewpoints import camera_path, random_view
from training.studies import add_source_options

Case = Callable[[Sequence[Path], DepthPredictor, Sequence[int], Callable[[str], None]], list[Table]]
Flow = NDArray[np.float32]
Finder = Callable[[NDArray[np.uint8], NDArray[np.uint8], Any], Flow]

METHODS = {
    "ssf, paper": FitConfig(method="ssf", mode="paper"),
    "ssf, sensor": FitConfig(method="ssf", mode="sensor"),
    "slf, sensor": FitConfig(method="slf", mode="sensor"),
    "field": FitConfig(method="field"),
    "field with regions": FitConfig(method="field"),
}
ABLATIONS = {"field with regions": FieldAblation(regions=True)}
POINTS = (50, 250, 1000)
CAMERA = Camera(640, 480, 480.0, 480.0, 319.5, 239.5)
ROOMS, LOOP_FRAMES, WALK_FRAMES = (3, 10, 21), 200, 17  # 200 frames: a loop of 20 s at 10 Hz
STEPS = (1, 2, 4, 8, 16)
EVERY = {
    "every image": SegmentationConfig(),
    "every 2nd": SegmentationConfig(every=2),
    "every 4th": SegmentationConfig(every=4),
    "every 8th": SegmentationConfig(every=8),
    "when 5 % changed": SegmentationConfig(every=0, change=0.05),
    "when 15 % changed": SegmentationConfig(every=0, change=0.15),
    "once": SegmentationConfig(every=0, change=1.0),
}
REPEATS = 15
ENCODER_PX, MAP_PX, BATCH = 1024, 256, 64  # SAM's input and mask sizes; points per decoder run


# --- everything but the engines -------------------------------------------------------------------


class _Answers:
    """Replaces an engine: returns prepared outputs in turn, without computing."""

    backend = "none"

    def __init__(self, manifest: Manifest, answers: Sequence[dict[str, NDArray[Any]]]) -> None:
        self.manifest = manifest
        self.details: dict[str, Any] = {}
        self._answers = list(answers)
        self.next = 0

    def run(self, tensor: NDArray[Any]) -> NDArray[Any]:
        return self.run_named({})[self.manifest.output_name]

    def run_named(self, tensors: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        self.next += 1
        return self._answers[(self.next - 1) % len(self._answers)]

    def close(self) -> None:
        self._answers = []

    def __enter__(self) -> _Answers:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def prompted_model(labels: Labels, per_side: int) -> PromptedRegionModel:
    """Make a prompted network without engines that returns the exact regions (H, W) of an image.

    Like SAM it returns three masks per point: a part, the whole, and its surroundings, each with
    an IoU and a stability; about half of the masks pass the default limits.
    """
    spec = InputSpec(ENCODER_PX, ENCODER_PX, resize="corner")
    scale = MAP_PX / max(labels.shape)
    rows, cols = (round(size * scale) for size in labels.shape)
    small = cv2.resize(labels, (cols, rows), interpolation=cv2.INTER_NEAREST_EXACT)
    rng = np.random.default_rng(0)
    points = point_grid(per_side, rows, cols).astype(np.int64)
    maps: dict[str, list[Any]] = {"masks": [], "boxes": []}
    for col, row in points:
        whole = (small == small[row, col]).astype(np.uint8)
        part = cv2.erode(whole, np.ones((9, 9), np.uint8))
        around = cv2.dilate(whole, np.ones((25, 25), np.uint8))
        for mask in (part, whole, around):
            logits: NDArray[np.float32] = np.full((MAP_PX, MAP_PX), -12, np.float32)
            logits[:rows] = cv2.GaussianBlur(mask * np.float32(24) - 12, (0, 0), 1.5)
            left, top, width, height = cv2.boundingRect((logits > 0).astype(np.uint8))
            maps["masks"].append(logits)
            maps["boxes"].append([left, top, left + width - 1, top + height - 1])
    masks = np.stack(maps["masks"]).reshape(-1, BATCH, 3, MAP_PX, MAP_PX)
    boxes = np.array(maps["boxes"], np.float32).reshape(-1, BATCH, 3, 4)
    answers = [
        {
            "masks": mask,
            "boxes": box,
            "iou": rng.uniform(0.76, 1.0, (BATCH, 3)).astype(np.float32),
            "stability": rng.uniform(0.94, 1.0, (BATCH, 3)).astype(np.float32),
        }
        for mask, box in zip(masks, boxes, strict=True)
    ]
    encoder = Manifest(
        "encoder", "none", "", "image", spec, "embedding", "region_prompts", decoder="none"
    )
    inputs = {"points": (BATCH, 2), "extent": (2,), "embedding": (1,)}
    outputs = ("masks", "iou", "stability", "boxes")
    decoder = Manifest(
        "decoder", "none", "", "points", spec, "masks", "prompt_masks", inputs=inputs,
        outputs=outputs,
    )  # fmt: skip
    config = SegmentationConfig(prompts=PromptConfig(points_per_side=per_side))
    features: dict[str, NDArray[Any]] = {"embedding": np.zeros(1, np.float32)}
    half = _Answers(decoder, answers)
    model = PromptedRegionModel(_Answers(encoder, [features]), half, config)
    half.next = 0  # PromptedRegionModel ran the decoder once when it was made
    return model


def prompts(
    sources: Sequence[Path],
    predictor: DepthPredictor,
    seeds: Sequence[int],
    on_frame: Callable[[str], None],
) -> list[Table]:
    """Measure preprocessing, and selection and painting of the masks of a prompted network, ms."""
    rows = []
    with one_core():
        for height, width in ((480, 640), (720, 1280)):
            camera = Camera(width, height, 0.75 * width, 0.75 * width, width / 2, height / 2)
            scene = Scene.random(3)
            _, pose = random_view(scene, np.random.default_rng(3), width, height)
            view = scene.render(camera, pose, antialias=False)
            model = prompted_model(view.labels, 16)
            model.predict(view.image)  # warm-up: the first run allocates memory
            stages = ("preprocess", "postprocess", "processor")
            times: dict[str, list[float]] = {stage: [] for stage in stages}
            for _ in range(REPEATS):
                begin = time.process_time()
                labels = model.predict(view.image)
                spent_ms = (time.process_time() - begin) * 1e3
                for stage, value in zip(stages, (*_own_ms(model), spent_ms), strict=True):
                    times[stage].append(value)
            mask_count = len(model.masks(view.image))
            ms = {stage: f"{np.median(ms):.1f} ({min(ms):.1f})" for stage, ms in times.items()}
            cells = [f"{width}x{height}", str(3 * 256), str(mask_count), str(labels.max())]
            rows.append([*cells, *ms.values()])
            on_frame(f"{width}x{height}")
    head = ["image", "masks given", "masks kept", "regions", "to the tensor, ms"]
    head += ["answers to regions, ms", "all, ms of the processor"]
    notes = [
        f"256 points in batches of {BATCH}; median and (shortest) of {REPEATS} runs; aim: 20 ms at"
        " 640x480",
        machine(),
    ]
    return [Table("All but the engines of a prompted network, one core", head, rows, notes)]


def _own_ms(model: PromptedRegionModel) -> tuple[float, float]:
    return model.stage_ms["preprocess"], model.stage_ms["postprocess"]


# --- how regions are propagated -------------------------------------------------------------------


def _dis(preset: int) -> Finder:
    finder = cv2.DISOpticalFlow.create(preset)
    return lambda now, key, start: np.asarray(finder.calc(now, key, start), np.float32)


def _still(now: NDArray[np.uint8], key: NDArray[np.uint8], start: Any) -> Flow:
    return np.zeros((*now.shape, 2), np.float32)


def _phase(now: NDArray[np.uint8], key: NDArray[np.uint8], start: Any) -> Flow:
    shift, _ = cv2.phaseCorrelate(now.astype(np.float32), key.astype(np.float32))
    return np.broadcast_to(np.asarray(shift, np.float32), (*now.shape, 2)).copy()


def _farneback(now: NDArray[np.uint8], key: NDArray[np.uint8], start: Any) -> Flow:
    flow = cv2.calcOpticalFlowFarneback(now, key, np.empty(0), 0.5, 3, 15, 3, 5, 1.2, 0)
    return np.asarray(flow, np.float32)


# Name -> width of the small images, px; method; whether it starts from the previous flow.
WAYS: dict[str, tuple[int, Finder, bool]] = {
    "regions stay where they are": (160, _still, False),
    "phase correlation, 160 px": (160, _phase, False),
    "Farneback, 160 px": (160, _farneback, False),
    "DIS ultrafast, 160 px": (160, _dis(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST), True),
    "DIS fast, 160 px": (160, _dis(cv2.DISOPTICAL_FLOW_PRESET_FAST), True),
    "DIS ultrafast, 320 px, anew": (320, _dis(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST), False),
    "DIS ultrafast, 320 px (chosen)": (320, _dis(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST), True),
    "DIS fast, 320 px": (320, _dis(cv2.DISOPTICAL_FLOW_PRESET_FAST), True),
    "DIS ultrafast, 640 px": (640, _dis(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST), True),
}


def motion(
    sources: Sequence[Path],
    predictor: DepthPredictor,
    seeds: Sequence[int],
    on_frame: Callable[[str], None],
) -> list[Table]:
    """Measure the fraction of wrong pixels of propagated exact regions after STEPS images."""
    means = Means()
    times: dict[str, list[float]] = {name: [] for name in WAYS}
    with one_core():
        for room in ROOMS:
            views = _walk(room)
            for name, (width, find, begins) in WAYS.items():
                grey = [small_grey(view.image, width) for view in views]
                flow: Any = None
                for step in range(1, len(views)):
                    start = time.process_time()
                    flow = find(grey[step], grey[0], flow.copy() if begins and step > 1 else None)
                    times[name].append((time.process_time() - start) * 1e3)
                    if step in STEPS:
                        carried = follow(views[0].labels, flow)
                        wrong = (carried != views[step].labels).mean()
                        means.add(name, f"{step}", str(room), float(wrong))
            on_frame(f"room {room}")
    rows = [
        [
            name,
            *(f"{means(name, str(step)):.1%}" for step in STEPS),
            f"{np.median(times[name]):.2f}",
        ]
        for name in WAYS
    ]
    head = [
        "wrong pixels after images:",
        *(str(step) for step in STEPS),
        "flow, ms of the processor",
    ]
    notes = [
        f"{len(ROOMS)} rooms, 640x480, exact regions of the first image, 10 images a second",
        machine(),
    ]
    return [Table("Regions carried by image motion", head, rows, notes)]


# --- what reuse costs -----------------------------------------------------------------------------


def reuse(
    sources: Sequence[Path],
    predictor: DepthPredictor,
    seeds: Sequence[int],
    on_frame: Callable[[str], None],
) -> list[Table]:
    """Measure AbsRel and the time for regions, by how often the image is segmented."""
    makers = {"the image's own regions": _own, "exact regions": _exact}
    means = {title: Means() for title in makers}
    methods = [method for method in METHODS if method != "field"]
    with one_core():
        for room in ROOMS:
            views = _walk(room)
            predictions = [predictor.predict(view.image) for view in views]
            for (title, make), (name, config) in itertools.product(makers.items(), EVERY.items()):
                memory, scores = RegionMemory(), means[title]
                for step, (view, prediction) in enumerate(zip(views, predictions, strict=True)):
                    start = time.process_time()
                    labels = memory.carried(view.image, config)
                    anew = labels is None
                    if labels is None:
                        labels = make(view, prediction.values, config)
                        memory.keep(view.image, labels)
                    spent_ms = (time.process_time() - start) * 1e3
                    scores.add(name, "segmented", str(room), float(anew))
                    scores.add(name, "ms", str(room), spent_ms)
                    for method in methods:
                        error = _error(view, prediction, labels, method, 500, [room, step])
                        scores.add(name, method, str(room), error)
            on_frame(f"room {room}")
    head = ["segmented", "images segmented", *methods, "regions, ms of the processor an image"]
    notes = [
        f"AbsRel at 500 points; {len(ROOMS)} rooms, {WALK_FRAMES} images each, 640x480",
        "exact regions stand for a good network; their own time is not counted",
        machine(),
    ]
    return [
        Table(
            f"Reuse of regions on a walk: {title}",
            head,
            [
                [
                    name,
                    f"{scores(name, 'segmented'):.0%}",
                    *(f"{scores(name, method):.4f}" for method in methods),
                    f"{scores(name, 'ms'):.1f}",
                ]
                for name in EVERY
            ],
            notes,
        )
        for title, scores in means.items()
    ]


def _own(view: Rendered, values: NDArray[np.float32], config: SegmentationConfig) -> Labels:
    return segment(view.image, values, config)


def _exact(view: Rendered, values: NDArray[np.float32], config: SegmentationConfig) -> Labels:
    return view.labels


def _error(
    view: Rendered,
    prediction: Prediction,
    labels: Labels,
    method: str,
    points: int,
    seed: Sequence[int],
) -> float:
    """Return AbsRel of a fit to points of the exact depth, over all other pixels."""
    known = np.flatnonzero(np.isfinite(view.depth))
    chosen = np.sort(np.random.default_rng(seed).choice(known, points, replace=False))
    rows, cols = np.unravel_index(chosen, view.depth.shape)
    sparse = SparseDepth.from_arrays(rows, cols, view.depth[rows, cols])
    result = _fit(method, prediction, sparse, labels, view.image)
    truth = view.depth.copy()
    truth[rows, cols] = np.nan
    return float(evaluate(result.depth, truth).abs_rel)


def _fit(
    method: str,
    prediction: Prediction,
    points: SparseDepth,
    labels: Labels | None,
    image: NDArray[np.uint8],
) -> FitResult:
    """Fit with one of METHODS."""
    config, ablation = METHODS[method], ABLATIONS.get(method, WHOLE_METHOD)
    refiner = refiner_for(config)
    return fit(
        prediction, points, labels, refiner=refiner, image=image, config=config, ablation=ablation
    )


def _walk(room: int) -> list[Rendered]:
    """Render the first WALK_FRAMES views of a closed walk through a room."""
    scene = Scene.random(room)
    path = camera_path(scene, LOOP_FRAMES, room)[:WALK_FRAMES]
    return [scene.render(CAMERA, pose, antialias=False) for pose in path]


# --- real masks -----------------------------------------------------------------------------------


def masks(
    sources: Sequence[Path],
    predictor: DepthPredictor,
    seeds: Sequence[int],
    on_frame: Callable[[str], None],
) -> list[Table]:
    """Measure AbsRel with stored masks, with the image's own regions and without, at equal points.

    Raises ValueError if no frame has stored masks.
    """
    scores: dict[str, Means] = {}
    count: dict[str, int] = {}
    regions_of: dict[str, list[int]] = {}
    for frame, prediction in predicted(sources, predictor, on_frame):
        if frame.labels is None:
            continue
        kinds: dict[str, Labels | None] = {
            "stored masks": frame.labels,
            "own regions": segment(frame.image, prediction.values),
            "none": None,
        }
        means = scores.setdefault(frame.source, Means())
        count[frame.source] = count.get(frame.source, 0) + 1
        for kind, labels in kinds.items():
            number = 1 if labels is None else int(labels.max())
            regions_of.setdefault(f"{frame.source} {kind}", []).append(number)
        for points in POINTS:
            if points > 0.5 * np.isfinite(frame.truth).sum():
                continue
            for seed in seeds:
                split = split_uniform(frame, points, seed)
                truth = np.where(split.scored, frame.truth, np.float32(np.nan))
                for method in METHODS:
                    for kind, labels in kinds.items():
                        if method == "field" and kind != "none":
                            continue  # method field uses no regions
                        result = _fit(method, prediction, split.points, labels, frame.image)
                        error = float(evaluate(result.depth, truth).abs_rel)
                        means.add(f"{method} | {kind}", str(points), frame.name, error)
    if not scores:
        raise ValueError("no frame of these sources has stored masks (segmentation_*.png)")
    tables = []
    for source, means in scores.items():
        rows = [
            [*row.split(" | "), *(f"{means(row, column):.4f}" for column in means.columns())]
            for row in means.rows()
        ]
        notes = [
            f"{kind}: {np.mean(regions_of[f'{source} {kind}']):.0f} regions a frame"
            for kind in ("stored masks", "own regions")
        ]
        title = f"AbsRel with and without masks, {source} ({count[source]} frames)"
        tables.append(Table(title, ["method", "regions", *means.columns()], rows, notes))
    return tables


CASES: dict[str, Case] = {"prompts": prompts, "motion": motion, "reuse": reuse, "masks": masks}


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `python -m training study regions`."""
    parser.add_argument("case", choices=tuple(CASES))
    add_source_options(parser)


def command(args: argparse.Namespace, console: Console) -> None:
    """Run the case of args.case and print its tables."""
    with (
        DepthModel.open(ModelConfig(args.model, args.manifest)) as network,
        progress(console, args.case, None) as advance,
    ):
        tables = CASES[args.case](args.sources, network, args.seeds, advance)
    print_tables(console, tables, args.out)
