# SPDX-License-Identifier: Apache-2.0
"""`make gpu-check`: what a CUDA machine alone can show, into one JSON file and a markdown row.

The kernels against their NumPy twins, their times against the least time that moving their bytes
takes, memory after ten openings, and where TensorRT is installed a checked and timed engine.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from depth_node.engine import EngineError, gpu_kernels
from depth_node.engine.manifest import EMBEDDED
from depth_node.engine.opening import backends
from depth_node.engine.preprocess import InputSpec, to_tensor
from depth_node.engine.protocol import ImageEngine
from depth_node.inference import open_engine

REPEATS = 200
CYCLES = 10
_COPY_BYTES = 256_000_000
_LOST_BYTES = 1_000_000  # the driver's own bookkeeping may keep some

Facts = dict[str, Any]


def run(model: str = EMBEDDED, manifest: str = "", repeats: int = REPEATS) -> Facts:
    """Everything that can be checked here. Raises EngineError where there is no GPU."""
    from depth_node.engine import cuda

    facts: Facts = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "failures": [],
    }
    with cuda.Gpu() as gpu:
        facts |= {
            "gpu": gpu.name,
            "compute_capability": gpu.capability,
            "driver_cuda": gpu.driver,
            "runtime_cuda": gpu.runtime,
            "memory_mb": round(gpu.memory()[1] / 1e6),
        }
        facts["bandwidth_gb_s"] = _bandwidth(gpu, repeats)
        facts["kernels"] = _kernels(cuda, gpu, facts["bandwidth_gb_s"], repeats)
    facts["cycles"] = _cycles(cuda)
    facts["engines"] = {
        name: _engine(name, model, manifest, repeats) if not why else {"not run": why}
        for name, why in backends().items()
    }
    for name, found in facts["kernels"].items():
        if not found["agrees"]:
            facts["failures"].append(f"kernel {name} is {found['difference']:.3g} off its twin")
    if not facts["cycles"]["agrees"]:
        facts["failures"].append(f"{facts['cycles']['lost_bytes']} bytes are lost in ten openings")
    for name, found in facts["engines"].items():
        if "failed" in found:
            facts["failures"].append(f"{name}: {found['failed']}")
    return facts


def markdown(facts: Facts) -> str:
    """A row for the table of GPUs in docs/benchmarks.md, in the order of :data:`HEAD`."""
    cells = [facts["gpu"], facts["compute_capability"], f"{facts['bandwidth_gb_s']:.0f}"]
    cells += [
        f"{found['ms'] * 1e3:.0f} µs ({found['times_floor']:.1f} x)"
        for found in facts["kernels"].values()
    ]
    engine = facts["engines"]["tensorrt"]
    if "p50_ms" in engine:
        cells.append(f"{engine['version']}: {engine['p50_ms']:.2f} ms; {engine['check']}")
    else:
        cells.append("not run")
    cells.append(facts["date"][:10])
    return "| " + " | ".join(cells) + " |"


HEAD = (
    "GPU", "compute capability", "GB/s", "image VGA to 518x518 FP16 (x floor)",
    "image 1080p to 518x518 FP16", "regions applied, VGA", "field applied, VGA",
    "TensorRT: image to map", "date",
)  # fmt: skip


def _bandwidth(gpu: Any, repeats: int) -> float:
    """GB/s of a copy on the device, reading and writing counted."""
    size = min(_COPY_BYTES, gpu.memory()[0] // 4)
    source, target = gpu.allocate(size, "the copy"), gpu.allocate(size, "the copy")
    try:
        gpu.milliseconds(lambda: gpu.copy(target, source, size), 3)
        took_ms = gpu.milliseconds(lambda: gpu.copy(target, source, size), max(repeats // 10, 1))
    finally:
        gpu.release(source)
        gpu.release(target)
    return 2 * size / took_ms / 1e6


def _kernels(cuda: Any, gpu: Any, bandwidth: float, repeats: int) -> dict[str, Facts]:
    """Every kernel: how far off its twin, its time on the device, and the floor of its bytes."""
    loaded = cuda.CompiledKernels(gpu)
    rng = np.random.default_rng(0)
    found: dict[str, Facts] = {}

    def note(
        name: str, answer: npt.NDArray, twin: npt.NDArray, near: float, few: float,
        launch: Callable[[], None], moved: int,
    ) -> None:  # fmt: skip
        gpu.milliseconds(launch, 5)
        took_ms = gpu.milliseconds(launch, repeats)
        floor_ms = moved / bandwidth / 1e6
        a, b = answer.astype(np.float64), twin.astype(np.float64)
        same = (np.isnan(a) & np.isnan(b)) | (np.abs(a - b) <= near)
        worst = float(np.nanmax(np.abs(a - b)))
        found[name] = {
            "agrees": bool((~same).mean() <= few),
            "difference": worst,
            "share_off": float((~same).mean()),
            "ms": took_ms,
            "floor_ms": floor_ms,
            "times_floor": took_ms / floor_ms,
        }

    spec = InputSpec(518, 518, dtype="float16", mean=(0.485, 0.456, 0.406), std=(0.229,) * 3)
    pinned = gpu.pinned(spec.shape, spec.dtype, "the tensor")
    place = gpu.allocate(pinned.nbytes, "the tensor")
    for name, size in (("image_vga", (480, 640)), ("image_1080p", (1080, 1920))):
        image = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
        how = gpu_kernels.Resampling.of(*size, spec)
        entry = cuda.ImageInput(loaded, *size, how, place)
        entry.enqueue(image)
        gpu.download(pinned, place)
        gpu.wait()
        # One grey level, where sums in another order round otherwise.
        level = float(how.gains.max())
        moved = image.nbytes + pinned.nbytes
        twin = gpu_kernels.image_to_tensor(image, how)
        note(name, pinned, twin, level / 4, 2e-3, entry.launch, moved)
        entry.close()

    shape = (480, 640)
    values = rng.uniform(0.1, 3, shape).astype(np.float32)
    labels = rng.integers(0, 100, shape).astype(np.int32)
    table = np.column_stack([rng.uniform(0.5, 1.5, (100, 4)), np.full(100, 0.1), np.full(100, 50)])
    applied = cuda.table_applied(loaded, values, labels, table, 0.0)
    applied.launch()
    twin = gpu_kernels.apply_table(values, labels, table, 0.0)
    note("regions", applied.result(), twin, 1e-4, 0.0, applied.launch, 3 * values.nbytes)
    applied.close()

    factor = np.exp(rng.normal(0, 0.2, (240, 320))).astype(np.float32)
    line = gpu_kernels.Line("disparity", 0.8, 0.05, 0.2, 40.0, 0.05, 100.0)
    applied = cuda.grid_applied(loaded, values, factor, line)
    applied.launch()
    twin = gpu_kernels.apply_grid(values, factor, line)
    moved = 2 * values.nbytes + factor.nbytes
    note("field", applied.result(), twin, 1e-3, 0.0, applied.launch, moved)
    applied.close()
    return found


def _cycles(cuda: Any) -> Facts:
    """Free memory before and after ten openings and closings of a device with all that it holds."""

    def once() -> None:
        with cuda.Gpu() as gpu:
            loaded = cuda.CompiledKernels(gpu)
            spec = InputSpec(518, 518)
            place = gpu.allocate(4 * 3 * 518 * 518, "the tensor")
            entry = cuda.ImageInput(
                loaded, 480, 640, gpu_kernels.Resampling.of(480, 640, spec), place
            )
            image: npt.NDArray[np.uint8] = np.zeros((480, 640, 3), np.uint8)
            gpu.capture(lambda: entry.enqueue(image))()
            gpu.wait()

    once()
    with cuda.Gpu() as gpu:
        before = gpu.memory()[0]
    for _ in range(CYCLES):
        once()
    with cuda.Gpu() as gpu:
        lost = before - gpu.memory()[0]
    return {"cycles": CYCLES, "lost_bytes": lost, "agrees": lost <= _LOST_BYTES}


def _engine(name: str, model: str, manifest: str, repeats: int) -> Facts:
    """A network on a back end: its check, and times from a VGA image to the map."""
    start = time.perf_counter()
    try:
        engine = open_engine(model, manifest=manifest or None, backend=name)
    except EngineError as error:
        return {"failed": str(error)}
    with engine:
        opened_s = time.perf_counter() - start
        rng = np.random.default_rng(0)
        image = rng.integers(0, 256, (480, 640, 3), dtype=np.uint8)
        times = []
        for turn in range(repeats + 10):
            start = time.perf_counter()
            if isinstance(engine, ImageEngine):
                engine.run_image(image)
            else:
                engine.run(to_tensor(image, engine.manifest.input))
            if turn >= 10:
                times.append((time.perf_counter() - start) * 1e3)
        p50, p99 = (float(value) for value in np.percentile(times, [50, 99]))
        details = {key: str(value) for key, value in engine.details.items()}
    return {**details, "open_s": opened_s, "p50_ms": p50, "p99_ms": p99}


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; exit status 1 where a check failed, 2 where nothing could be run."""
    parser = argparse.ArgumentParser(prog="gpu-check", description=__doc__)
    parser.add_argument("--model", default=EMBEDDED, metavar="FILE")
    parser.add_argument("--manifest", default="", metavar="FILE")
    parser.add_argument("--repeats", type=int, default=REPEATS, metavar="N")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu_check"), metavar="DIR")
    options = parser.parse_args(arguments)
    try:
        facts = run(options.model, options.manifest, options.repeats)
    except ImportError as error:
        print(f"gpu-check: {error}: pip install -r requirements-gpu.txt", file=sys.stderr)
        return 2
    except EngineError as error:
        print(f"gpu-check: {error}", file=sys.stderr)
        return 2
    options.out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(facts, indent=2, ensure_ascii=False) + "\n"
    (options.out / "gpu_check.json").write_text(text, encoding="utf-8")
    lines = ["| " + " | ".join(HEAD) + " |", "|---|" + "--:|" * (len(HEAD) - 1), markdown(facts)]
    (options.out / "gpu_check.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(text + "\n".join(lines))
    for failure in facts["failures"]:
        print(f"gpu-check: {failure}", file=sys.stderr)
    return 1 if facts["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
