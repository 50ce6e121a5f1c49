# SPDX-License-Identifier: Apache-2.0
"""`make gpu-check`: checks that need a CUDA machine, written to a JSON file and a Markdown row.

Compares the kernels with their NumPy twins, their times with the minimum time of moving their
bytes, the memory before and after ten openings; builds, checks and times an engine on every back
end of this machine, and the pipeline of the node around it, without ROS. It needs no network and
begins nothing new after a time limit; what is done is kept in the file from the first part on.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from depth_node.engine import BackendError, EngineError, gpu_kernels
from depth_node.engine.manifest import EMBEDDED
from depth_node.engine.opening import backends
from depth_node.engine.options import REFERENCE, ModelConfig
from depth_node.engine.preprocess import InputSpec, to_tensor
from depth_node.engine.protocol import ImageEngine
from depth_node.frame import FrameInput
from depth_node.geometry.sparse_depth import SparseDepth
from depth_node.inference import open_engine
from depth_node.pipeline import DepthPipeline, PipelineConfig
from depth_node.simulation.renderer import Scene
from depth_node.simulation.viewpoints import random_view

REPEATS = 200
LIMIT_S = 360.0  # a part that has begun may take two minutes more: eight minutes in all
CYCLES = 10
_WARM_UP = 10
_COPY_BYTES = 256_000_000
_LOST_BYTES = 1_000_000  # tolerance, because the driver may keep some memory

Report = dict[str, Any]


def run(
    model: str = EMBEDDED,
    manifest: str = "",
    repeats: int = REPEATS,
    limit_s: float = LIMIT_S,
    keep: Callable[[Report], None] = lambda report: None,
) -> Report:
    """Run all checks; call keep with the report after every part.

    No part begins later than limit_s after the start; the report names the parts left out, and a
    part that raises EngineError is a failure in it. Raises EngineError if there is no GPU.
    """
    from depth_node.engine import cuda

    start = time.monotonic()
    report: Report = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "failures": [],
        "left_out": [],
        "kernels": {},
        "engines": {},
        "pipelines": {},
        "engine_cycles": {},
    }

    def part(name: str, call: Callable[[], Any]) -> Any:
        if time.monotonic() - start > limit_s:
            report["left_out"].append(name)
            return None
        print(f"gpu-check: {name}, after {time.monotonic() - start:.0f} s", file=sys.stderr)
        result = None
        try:
            result = call()
        except EngineError as error:
            report["failures"].append(f"{name}: {error}")
        keep(report)
        return result

    with cuda.Gpu() as gpu:
        report |= {
            "gpu": gpu.name,
            "compute_capability": gpu.capability,
            "driver_cuda": gpu.driver,
            "runtime_cuda": gpu.runtime,
            "memory_mb": round(gpu.memory()[1] / 1e6),
        }
        report["bandwidth_gb_s"] = part("bandwidth", lambda: _bandwidth(gpu, repeats))
        if not report["failures"]:  # the minimum times of the kernels need the bandwidth
            kernels = part(
                "kernels", lambda: _kernels(cuda, gpu, report["bandwidth_gb_s"], repeats)
            )
            report["kernels"] = kernels or {}
    report["cycles"] = part("opening the device ten times", lambda: _cycles(cuda))
    for name, reason in backends().items():
        if reason:
            report["engines"][name] = {"not run": reason}
            continue
        engine = part(f"engine {name}", partial(_engine, cuda, name, model, manifest, repeats))
        if engine is None:
            continue
        report["engines"][name] = engine
        if "not run" in engine:
            continue
        if "failed" in engine:
            report["failures"].append(f"{name}: {engine['failed']}")
            continue
        report["pipelines"][name] = part(
            f"pipeline on {name}", partial(_pipeline, name, model, manifest, repeats)
        )
        if name != REFERENCE:
            report["engine_cycles"][name] = part(
                f"opening {name} ten times",
                partial(_engine_cycles, cuda, name, model, manifest),
            )
    for name, result in report["kernels"].items():
        if not result["agrees"]:
            report["failures"].append(f"kernel {name} is {result['difference']:.3g} off its twin")
    for name, result in {"the device": report["cycles"], **report["engine_cycles"]}.items():
        if result is not None and not result["agrees"]:
            report["failures"].append(
                f"{result['lost_bytes']} bytes are lost in ten openings of {name}"
            )
    report["took_s"] = round(time.monotonic() - start, 1)
    keep(report)
    return report


def markdown(report: Report) -> str:
    """Return a row of the table of GPUs in docs/benchmarks.md, in the order of :data:`HEAD`."""
    cells = [report["gpu"], report["compute_capability"], f"{report['bandwidth_gb_s'] or 0:.0f}"]
    for name in KERNELS:
        result = report["kernels"].get(name)
        cells.append(
            f"{result['ms'] * 1e3:.0f} µs ({result['times_floor']:.1f} x)" if result else "not run"
        )
    for name in ("tensorrt", "onnxruntime-cuda"):
        engine, pipeline = report["engines"].get(name, {}), report["pipelines"].get(name)
        if "p50_ms" in engine:
            times = f"{engine['version']}: {engine['p50_ms']:.2f} / {engine['p95_ms']:.2f} ms"
            cells.append(f"{times}; {engine['check']}; {engine['memory_mb']:.0f} MB")
        else:
            cells.append("not run")
        cells.append(
            f"{pipeline['p50_ms']:.1f} / {pipeline['p95_ms']:.1f} ms" if pipeline else "not run"
        )
    cells.append(report["date"][:10])
    return "| " + " | ".join(cells) + " |"


HEAD = (
    "GPU", "compute capability", "GB/s", "image VGA to 518x518 FP16 (x floor)",
    "image 1080p to 518x518 FP16", "regions applied, VGA", "field applied, VGA",
    "TensorRT: image to map, p50 / p95", "pipeline on it, p50 / p95",
    "ONNX Runtime CUDA: image to map", "pipeline on it", "date",
)  # fmt: skip
KERNELS = ("image_vga", "image_1080p", "regions", "field")


def _bandwidth(gpu: Any, repeats: int) -> float:
    """Measure the bandwidth of a copy on the device, GB/s, reading and writing both counted."""
    size = min(_COPY_BYTES, gpu.memory()[0] // 4)
    source, target = gpu.allocate(size, "the copy"), gpu.allocate(size, "the copy")
    try:
        gpu.milliseconds(lambda: gpu.copy(target, source, size), 3)
        took_ms = gpu.milliseconds(lambda: gpu.copy(target, source, size), max(repeats // 10, 1))
    finally:
        gpu.release(source)
        gpu.release(target)
    return 2 * size / took_ms / 1e6


def _kernels(cuda: Any, gpu: Any, bandwidth: float, repeats: int) -> dict[str, Report]:
    """Measure every kernel: its difference from the NumPy twin, its time on the device, and the
    minimum time in which `bandwidth` (GB/s) moves its bytes.
    """
    loaded = cuda.CompiledKernels(gpu)
    rng = np.random.default_rng(0)
    kernels: dict[str, Report] = {}

    def measure(
        name: str, output: npt.NDArray[Any], twin: npt.NDArray[Any], tolerance: float,
        max_fraction: float,
        launch: Callable[[], None], moved: int,
    ) -> None:  # fmt: skip
        gpu.milliseconds(launch, 5)
        took_ms = gpu.milliseconds(launch, repeats)
        floor_ms = moved / bandwidth / 1e6
        a, b = output.astype(np.float64), twin.astype(np.float64)
        same = (np.isnan(a) & np.isnan(b)) | (np.abs(a - b) <= tolerance)
        worst = float(np.nanmax(np.abs(a - b)))
        kernels[name] = {
            "agrees": bool((~same).mean() <= max_fraction),
            "difference": worst,
            "fraction_off": float((~same).mean()),
            "ms": took_ms,
            "floor_ms": floor_ms,
            "times_floor": took_ms / floor_ms,
        }

    spec = InputSpec(518, 518, dtype="float16", mean=(0.485, 0.456, 0.406), std=(0.229,) * 3)
    pinned = gpu.pinned(spec.shape, spec.dtype, "the tensor")
    address = gpu.allocate(pinned.nbytes, "the tensor")
    for name, size in (("image_vga", (480, 640)), ("image_1080p", (1080, 1920))):
        image = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
        resampling = gpu_kernels.Resampling.of(*size, spec)
        image_input = cuda.ImageInput(loaded, *size, resampling, address)
        image_input.enqueue(image)
        gpu.download(pinned, address)
        gpu.wait()
        # The tolerance is a quarter of a grey level: sums in another order round differently.
        level = float(resampling.gains.max())
        moved = image.nbytes + pinned.nbytes
        twin = gpu_kernels.image_to_tensor(image, resampling)
        measure(name, pinned, twin, level / 4, 2e-3, image_input.launch, moved)
        image_input.close()

    shape = (480, 640)
    values = rng.uniform(0.1, 3, shape).astype(np.float32)
    labels = rng.integers(0, 100, shape).astype(np.int32)
    table = np.column_stack([rng.uniform(0.5, 1.5, (100, 4)), np.full(100, 0.1), np.full(100, 50)])
    kernel = cuda.prepare_table(loaded, values, labels, table, 0.0)
    kernel.launch()
    twin = gpu_kernels.apply_table(values, labels, table, 0.0)
    measure("regions", kernel.result(), twin, 1e-4, 0.0, kernel.launch, 3 * values.nbytes)
    kernel.close()

    factor = np.exp(rng.normal(0, 0.2, (240, 320))).astype(np.float32)
    line = gpu_kernels.Line("disparity", 0.8, 0.05, 0.2, 40.0, 0.05, 100.0)
    kernel = cuda.prepare_grid(loaded, values, factor, line)
    kernel.launch()
    twin = gpu_kernels.apply_grid(values, factor, line)
    moved = 2 * values.nbytes + factor.nbytes
    measure("field", kernel.result(), twin, 1e-3, 0.0, kernel.launch, moved)
    kernel.close()
    return kernels


def _cycles(cuda: Any) -> Report:
    """Measure the memory lost in ten openings and closings of a device with its resources."""

    def once() -> None:
        with cuda.Gpu() as gpu:
            loaded = cuda.CompiledKernels(gpu)
            spec = InputSpec(518, 518)
            address = gpu.allocate(4 * 3 * 518 * 518, "the tensor")
            image_input = cuda.ImageInput(
                loaded, 480, 640, gpu_kernels.Resampling.of(480, 640, spec), address
            )
            image: npt.NDArray[np.uint8] = np.zeros((480, 640, 3), np.uint8)
            gpu.capture(lambda: image_input.enqueue(image))()
            gpu.wait()

    once()
    with cuda.Gpu() as gpu:
        before = gpu.memory()[0]
    for _ in range(CYCLES):
        once()
    with cuda.Gpu() as gpu:
        lost = before - gpu.memory()[0]
    return {"cycles": CYCLES, "lost_bytes": lost, "agrees": lost <= _LOST_BYTES}


def _engine_cycles(cuda: Any, name: str, model: str, manifest: str) -> Report:
    """Measure the memory lost in ten openings and closings of an engine."""

    def free() -> int:
        with cuda.Gpu() as gpu:
            return int(gpu.memory()[0])

    for _ in range(2):  # warm-up: libraries keep memory from their first use
        open_engine(model, manifest=manifest or None, backend=name).close()
    before = free()
    for _ in range(CYCLES):
        open_engine(model, manifest=manifest or None, backend=name).close()
    lost = before - free()
    return {"cycles": CYCLES, "lost_bytes": lost, "agrees": lost <= _LOST_BYTES}


def _engine(cuda: Any, name: str, model: str, manifest: str, repeats: int) -> Report:
    """Open a network on a back end; return its check and its times from a VGA image to the map."""
    with cuda.Gpu() as gpu:
        before = gpu.memory()[0]
    start = time.perf_counter()
    try:
        engine = open_engine(model, manifest=manifest or None, backend=name)
    except BackendError as error:  # the back end turns out unusable here: no check has failed
        return {"not run": str(error)}
    except EngineError as error:
        return {"failed": str(error)}
    opened_s = time.perf_counter() - start
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (480, 640, 3), dtype=np.uint8)

    def once() -> None:
        if isinstance(engine, ImageEngine):
            engine.run_image(image)
        else:
            engine.run(to_tensor(image, engine.manifest.input))

    try:
        with engine:
            times = _times(once, repeats)
            details = {key: str(value) for key, value in engine.details.items()}
            with cuda.Gpu() as gpu:
                used_mb = (before - gpu.memory()[0]) / 1e6
    except EngineError as error:
        return {"failed": str(error)}
    return {**details, "open_s": opened_s, "memory_mb": used_mb, **times}


def _pipeline(name: str, model: str, manifest: str, repeats: int) -> Report:
    """Time a whole frame of the node without ROS: a VGA image of a rendered room, 1000 points."""
    width, height = 640, 480
    rng = np.random.default_rng(0)
    scene = Scene.random(rng, "room", shadow_px=96)
    camera, pose = random_view(scene, rng, width, height)
    view = scene.render(camera, pose, antialias=False)
    rows, cols = np.divmod(rng.choice(height * width, 1000, replace=False), width)
    sparse = SparseDepth.from_arrays(rows, cols, view.depth[rows, cols])
    config = PipelineConfig(model=ModelConfig(model, manifest, backend=name))
    stages: dict[str, list[float]] = {}
    with DepthPipeline(config) as pipeline:
        stamp_ns = [0]

        def once() -> None:
            stamp_ns[0] += 100_000_000
            frame = FrameInput(view.image, camera, sparse=sparse, stamp_ns=stamp_ns[0])
            for stage, took_ms in pipeline.process(frame).stage_ms.items():
                stages.setdefault(stage, []).append(took_ms)

        times = _times(once, max(repeats // 4, 1))
    return {**times, "stages_ms": {key: float(np.median(ms)) for key, ms in stages.items()}}


def _times(once: Callable[[], None], repeats: int) -> Report:
    """Return p50, p95 and p99 of the calls' times, ms, after ten warm-up calls."""
    times = []
    for turn in range(repeats + _WARM_UP):
        start = time.perf_counter()
        once()
        if turn >= _WARM_UP:
            times.append((time.perf_counter() - start) * 1e3)
    p50, p95, p99 = (float(value) for value in np.percentile(times, [50, 95, 99]))
    return {"p50_ms": p50, "p95_ms": p95, "p99_ms": p99}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return exit status 1 if a check failed, 2 if nothing could be run."""
    parser = argparse.ArgumentParser(prog="gpu-check", description=__doc__)
    parser.add_argument("--model", default=EMBEDDED, metavar="FILE")
    parser.add_argument("--manifest", default="", metavar="FILE")
    parser.add_argument("--repeats", type=int, default=REPEATS, metavar="N")
    parser.add_argument(
        "--limit-s", type=float, default=LIMIT_S, metavar="S",
        help=f"begin no part after this time ({LIMIT_S:g})",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, default=Path("runs/gpu_check"), metavar="DIR")
    options = parser.parse_args(arguments)
    text = ""

    def keep(report: Report) -> None:
        nonlocal text
        options.out.mkdir(parents=True, exist_ok=True)
        text = json.dumps(report, indent=2, ensure_ascii=False) + "\n"
        (options.out / "gpu_check.json").write_text(text, encoding="utf-8")

    try:
        report = run(options.model, options.manifest, options.repeats, options.limit_s, keep)
    except ImportError as error:
        print(f"gpu-check: not run: {error}: pip install -r requirements-gpu.txt", file=sys.stderr)
        return 2
    except EngineError as error:
        print(f"gpu-check: not run: {error}", file=sys.stderr)
        return 2
    lines = ["| " + " | ".join(HEAD) + " |", "|---|" + "--:|" * (len(HEAD) - 1), markdown(report)]
    (options.out / "gpu_check.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(text + "\n".join(lines))
    for name in report["left_out"]:
        print(f"gpu-check: left out for lack of time: {name}", file=sys.stderr)
    for failure in report["failures"]:
        print(f"gpu-check: {failure}", file=sys.stderr)
    return 1 if report["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
