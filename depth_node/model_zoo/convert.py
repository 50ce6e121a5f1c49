# SPDX-License-Identifier: Apache-2.0
"""Conversion of model files to FP16; a copy is written only if its outputs agree with FP32.

fp16.py decides which nodes stay FP32, from the graph and from value ranges that are measured here.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import os
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from depth_node import __version__
from depth_node.engine.manifest import (
    Manifest,
    converted_path,
    manifest_path,
    model_files,
    model_sha256,
)
from depth_node.engine.model_file import fault_of, reader_fault
from depth_node.engine.protocol import Engine
from depth_node.model_zoo.compare import (
    ComparisonImages,
    Image,
    ModelComparison,
    compare,
    tensors_of,
)
from depth_node.model_zoo.fp16 import Fp16Model, Measured, to_fp16, with_losses
from depth_node.model_zoo.onnx_graph import (
    ConvertError,
    inferred,
    live_bytes,
    onnx_package,
    prepared,
    rounded,
    tensor_types,
    with_ranges,
)
from depth_node.model_zoo.registry import locate

if TYPE_CHECKING:
    import onnx

RANGE_IMAGES = 4  # images on which value ranges are measured
FEW_NODES = 4  # the search for delicate nodes ends at a range of this length
_MEMORY = Path("/proc/meminfo")
_ENGINES_TENSORS, _ENGINES_WEIGHTS = 3, 5  # memory per byte of live tensors and weights, measured
_MAX_FILE_BYTES = 2_000_000_000  # protobuf files end at 2^31 bytes


@dataclass(frozen=True)
class Converted:
    """A model file in FP16 with its manifest, and the measurements made before it was written.

    The graph of ``fp16`` is empty to save memory; it is in the file. ``bytes``: sizes of the FP32
    and of the FP16 file.
    """

    path: Path
    manifest: Manifest
    fp16: Fp16Model
    comparison: ModelComparison
    bytes: tuple[int, int]


def convert(
    model: str | Path,
    images: ComparisonImages,
    *,
    manifest: str | Path | None = None,
    out: Path | None = None,
    fp16_input: bool = False,
    keep: Collection[str] = (),
    on_step: Callable[[str], None] = lambda name: None,
) -> Converted:
    """Write a model's FP16 copy, ``NAME.fp16.onnx`` unless `out` names it, and its manifest.

    They are written only if the copy's outputs on the images, with every FP16 tensor rounded
    (:func:`rounded`), agree with those of the FP32 file within the manifest's limits. If a relative
    error is above half of its limit, the few nodes that lose most precision are searched for and
    stay FP32 (:func:`delicate_part`). ``keep``: operators to keep in FP32. ``on_step``: called with
    the name of each step. Raises EngineError, and writes nothing, if the outputs do not agree or
    the model cannot be converted.
    """
    onnx = onnx_package()
    source, description = locate(model, manifest)
    target = out or converted_path(source, "fp16")
    if target.resolve() == source.resolve():
        raise ConvertError(f"{target} is the model itself: give another --out")
    if manifest_path(target).resolve() == manifest_path(source).resolve():
        raise ConvertError(
            f"the manifest of {target} would replace the model's, {manifest_path(source)}: give"
            " another --out, such as one that ends in .fp16.onnx"
        )
    if fp16_input and (description.inputs or description.input.dtype != "float32"):
        raise ConvertError(
            f"{description.name} takes no float32 image, so its input stays as it is: leave"
            " --fp16-input out"
        )
    loaded = _loaded(source)
    ready = prepared(loaded, description.input_shapes)
    if onnx.TensorProto.FLOAT16 in tensor_types(inferred(ready)).values():
        raise ConvertError(f"{source} is in FP16 already: use it, or convert the FP32 file")
    _check_memory(source, ready)
    with _scratch(target) as folder:
        on_step("measuring ranges")
        measured = measure(ready, description, itertools.islice(images, RANGE_IMAGES), folder)
        conversion = _Conversion(
            source, description, folder / target.name, len(ready.graph.node), measured,
            fp16_input, keep, on_step,
        )  # fmt: skip
        onnx.save(ready, str(conversion.whole))
        # Both graphs are in files now, and the engines of a large network need the memory.
        for proto in (loaded, ready):
            proto.Clear()
        converted, comparison = conversion.nearest(images)
        fp16_manifest = conversion.manifest()
        # The graph with rounded tensors agrees; the file itself must run and agree too.
        comparison.differences += conversion.run_once(fp16_manifest, images).differences
        if comparison.failures:
            raise ConvertError(
                f"{description.name} in FP16 is not near enough to FP32 on {images}"
                f" ({'; '.join(comparison.failures)}), so nothing was written: keep more in FP32"
                " with --keep OPERATOR, or use the FP32 file"
            )
        try:
            os.replace(conversion.path, target)
            fp16_manifest.save(manifest_path(target))
        except OSError as error:
            raise ConvertError(
                f"{target} cannot be written ({error.strerror}): make room, or name another --out"
            ) from error
    return Converted(target, fp16_manifest, converted, comparison, (_size(source), _size(target)))


@dataclass(frozen=True)
class _Conversion:
    """A conversion in progress. Its temporary files are beside `path`, where the copy is made.

    source, description: the FP32 file and its manifest. nodes: number of nodes of its prepared
    graph (the file `whole`). measured: its value ranges. The others are arguments of convert().
    """

    source: Path
    description: Manifest
    path: Path
    nodes: int
    measured: Measured
    fp16_input: bool
    keep: Collection[str]
    on_step: Callable[[str], None]

    @property
    def whole(self) -> Path:
        """Path of the prepared FP32 graph."""
        return self.path.parent / "whole.onnx"

    def nearest(self, images: ComparisonImages) -> tuple[Fp16Model, ModelComparison]:
        """Return the FP16 copy and its comparison with FP32.

        If the copy is not near enough, the few nodes that lose most precision stay FP32.
        """
        converted, comparison = self._attempt(images)
        limits = comparison.limits
        # Half of the limit, because other images and GPUs that sum in another order must agree too.
        sure = dataclasses.replace(limits, relative_error=limits.relative_error / 2)
        if not comparison.worst.failures(sure):
            return converted, comparison
        few = dataclasses.replace(images, count=min(images.count, RANGE_IMAGES))
        self.on_step("looking for the nodes that lose most")

        def agrees(part: range) -> bool:
            return not self._attempt(few, part, write=False)[1].worst.failures(sure)

        delicate = delicate_part(self.nodes, agrees)
        return self._attempt(images, delicate) if delicate else (converted, comparison)

    def _attempt(
        self, images: ComparisonImages, delicate: Collection[int] = (), write: bool = True
    ) -> tuple[Fp16Model, ModelComparison]:
        """Convert all but the delicate nodes, and compare with every FP16 tensor rounded."""
        from depth_node.engine import ort

        onnx, simulated = onnx_package(), self.path.parent / "rounded.onnx"
        made = to_fp16(
            onnx.load(str(self.whole)), self.measured, self.fp16_input, self.keep, delicate
        )
        if write:
            onnx.save(made.model, str(self.path))
        onnx.save(rounded(made.model), str(simulated))
        made.model.Clear()
        with (
            ort.OrtEngine(self.source, self.description, frugal=True) as reference,
            ort.OrtEngine(simulated, self.description, frugal=True) as rounding,
        ):
            return made, compare(reference, rounding, images, self.on_step)

    def manifest(self) -> Manifest:
        """Return the manifest of the copy."""
        of_fp32 = self.description
        dtype = "float16" if self.fp16_input else of_fp32.input.dtype
        return dataclasses.replace(
            of_fp32,
            model=self.path.name,
            sha256=model_sha256(self.path),
            input=dataclasses.replace(of_fp32.input, dtype=dtype),
            source=f"{of_fp32.source + ', ' if of_fp32.source else ''}"
            f"FP16 made from sha256 {of_fp32.sha256[:12]} by depth_node {__version__}",
        )

    def run_once(self, manifest: Manifest, images: ComparisonImages) -> ModelComparison:
        """Compare the copy, as it is in its file, with FP32 on one image."""
        from depth_node.engine import ort

        with (
            ort.OrtEngine(self.source, self.description, frugal=True) as reference,
            ort.OrtEngine(self.path, manifest, frugal=True) as written,
        ):
            return compare(reference, written, dataclasses.replace(images, count=1))


def delicate_part(nodes: int, agrees: Callable[[range], bool]) -> range:
    """Find a short range of nodes that must stay FP32 so that the outputs agree with FP32.

    nodes: number of nodes. agrees: returns whether the outputs agree if the nodes of a range stay
    FP32. The range is halved as long as one half is enough, down to FEW_NODES. The result is empty
    if more than a quarter of the nodes would have to stay FP32.
    """
    part = range(nodes)
    while len(part) > FEW_NODES:
        middle = part.start + len(part) // 2
        halves = (range(part.start, middle), range(middle, part.stop))
        enough = next((half for half in halves if agrees(half)), None)
        if enough is None:
            break
        part = enough
    return part if len(part) <= nodes / 4 else range(0)


# --- engines for measurements --------------------------------------------------------------------


def measure(
    ready: onnx.ModelProto, manifest: Manifest, images: Iterable[Image], folder: Path
) -> Measured:
    """Measure the largest magnitude of every FP32 tensor, and the change by FP16 scores, on images.

    A value that is not finite counts as infinite. ONNX Runtime runs the FP32 graph, for which a
    temporary file is made in `folder`. Raises EngineError if it cannot.
    """
    from depth_node.engine import ort

    measuring, peaks = with_ranges(ready)
    measuring, losses = with_losses(ready, measuring)
    path = folder / "ranges.onnx"
    onnx_package().save(measuring, str(path))
    measuring.Clear()
    names = (*peaks, *losses)
    measured_manifest = dataclasses.replace(
        manifest, output_name=names[0], outputs=names, limits={}, roles={}, levels={}
    )
    largest = dict.fromkeys(names, 0.0)
    with ort.OrtEngine(path, measured_manifest, frugal=True) as engine:
        for number, image in enumerate(images):
            for name, value in engine.run_named(tensors_of(manifest, image, number)).items():
                size = abs(float(value))
                largest[name] = max(largest[name], size if math.isfinite(size) else math.inf)
    path.unlink()
    ranges: dict[str, float] = {}
    for peak, name in peaks.items():
        ranges[name] = max(ranges.get(name, 0.0), largest[peak])
    return Measured(ranges, {name: largest[loss] for loss, name in losses.items()})


def rounding_engine(model: Path, manifest: Manifest, folder: Path) -> Engine | None:
    """Return an engine on the CPU that rounds FP16 as a GPU does (:func:`rounded`).

    None for files without FP16. A file for the engine is made in `folder`. Raises ConvertError if
    the graph cannot be prepared, and EngineError if it cannot be run.
    """
    from depth_node.engine import ort

    ready = prepared(_loaded(model), manifest.input_shapes)
    if onnx_package().TensorProto.FLOAT16 not in tensor_types(inferred(ready)).values():
        return None
    path = folder / "rounded.onnx"
    onnx_package().save(rounded(ready), str(path))
    spec = manifest.input
    if spec.dtype == "float16":
        spec = dataclasses.replace(spec, dtype="float32")  # rounded by the graph
    return ort.OrtEngine(path, dataclasses.replace(manifest, input=spec))


# --- files ---------------------------------------------------------------------------------------


def _loaded(model: Path) -> onnx.ModelProto:
    """Load an ONNX file with its external weights. Raises ConvertError if that is impossible."""
    onnx = onnx_package()
    if _size(model) > _MAX_FILE_BYTES:
        raise ConvertError(
            f"{model} has {_size(model) / 1e9:.1f} GB of weights, and one ONNX file holds 2 GB:"
            " take a smaller network"
        )
    fault = fault_of(model)
    if fault:
        raise ConvertError(fault)
    try:
        return onnx.load(str(model))
    except Exception as error:  # protobuf's errors share no base class
        raise ConvertError(reader_fault(model, f"onnx {onnx.__version__}", error)) from error


def _check_memory(model: Path, ready: onnx.ModelProto) -> None:
    """Raise ConvertError if too little memory is free, because Linux would end the process later.

    Two engines are open at once, and one of them holds a rounded copy of every tensor in use.
    """
    need = _ENGINES_TENSORS * live_bytes(ready) + _ENGINES_WEIGHTS * _size(model)
    try:
        text = _MEMORY.read_text()
        free = next(
            int(line.split()[1]) * 1024 for line in text.splitlines() if "Available" in line
        )
    except (OSError, StopIteration, ValueError):
        return  # not Linux
    if need > free:
        raise ConvertError(
            f"converting {model} needs about {need / 1e9:.1f} GB of memory and {free / 1e9:.1f} GB"
            " are free: convert it on a larger machine and copy the file, or export it smaller"
            " (a decoder for fewer points at once: --batch)"
        )


@contextlib.contextmanager
def _scratch(target: Path) -> Iterator[Path]:
    """Make a temporary folder beside the target, on the same disk, so that a rename can move files.

    Raises ConvertError if it cannot be made.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        folder = tempfile.TemporaryDirectory(dir=target.parent, prefix=".convert-")
    except OSError as error:
        raise ConvertError(
            f"nothing can be written in {target.parent} ({error.strerror}): name a place with --out"
        ) from error
    with folder as name:
        yield Path(name)


def _size(model: Path) -> int:
    """Return the bytes of a model file and its external weights."""
    return sum(part.stat().st_size for part in model_files(model))
