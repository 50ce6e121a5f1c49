# SPDX-License-Identifier: Apache-2.0
"""The self-check: comparison of an engine with ONNX Runtime on the CPU before it is used.

An engine can give wrong outputs without an error: TensorRT 10.3 does so for transformers that
predict depth, and FP16 overflows in attention and normalisation. So every engine except the
reference itself runs a test pattern when it is opened, and its outputs are compared with the
reference's, which are stored on disk.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from depth_node.engine import EngineError
from depth_node.engine.cache import REFERENCE_ENDING, make_private, write_private
from depth_node.engine.manifest import Manifest
from depth_node.engine.preprocess import to_tensor
from depth_node.engine.protocol import Engine, ImageEngine
from depth_node.engine.sparse_input import pattern_tensors
from depth_node.prediction import DEPTH_MEANINGS, INVERSE_FLOOR_RATIO, KINDS
from depth_node.regular_files import read_bytes
from depth_node.sentences import nearest, one_line, quoted

Tensors = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Limits:
    """Limits of the difference between an engine and the reference.

    finite: minimum fraction of finite values. correlation: minimum. relative_error: maximum mean.
    The defaults suit converted depth networks; a manifest may set others in ``limits``.
    """

    finite: float = 1.0
    correlation: float = 0.9995
    relative_error: float = 0.005

    @classmethod
    def of(cls, manifest: Manifest) -> Limits:
        """Return the limits of a model. Raises EngineError for unusable keys or values."""
        # Mask scores cross zero, so their relative error is larger for equally good masks.
        defaults = cls() if manifest.meaning in DEPTH_MEANINGS else cls(relative_error=0.02)
        known = [item.name for item in dataclasses.fields(cls)]
        for key, value in manifest.limits.items():
            if key not in known:
                guess = nearest(str(key), known)
                raise EngineError(
                    f"manifest of {manifest.name}: unknown key limits.{one_line(key)}"
                    + (f"; did you mean limits.{guess}?" if guess else f"; use {', '.join(known)}")
                )
            if not isinstance(value, (int, float)) or isinstance(value, bool) or not value >= 0:
                raise EngineError(
                    f"manifest of {manifest.name}: limits.{key} is {quoted(value)}: give a"
                    " number from 0"
                )
        return dataclasses.replace(defaults, **manifest.limits)


@dataclass(frozen=True)
class OutputDifference:
    """Difference between outputs and the reference; for several outputs or images the worst.

    finite: fraction of the values that are finite, where the reference is finite. correlation:
    correlation coefficient of the values. relative_error: mean relative difference (see
    :func:`output_difference`).
    """

    finite: float
    correlation: float
    relative_error: float

    def __str__(self) -> str:
        return (
            f"finite {self.finite:.2%}, correlation {self.correlation:.6f},"
            f" relative error {self.relative_error:.3%}"
        )

    def worse(self, other: OutputDifference) -> OutputDifference:
        """Return the worse of two differences, each figure by itself."""
        return OutputDifference(
            min(self.finite, other.finite),
            min(self.correlation, other.correlation),
            max(self.relative_error, other.relative_error),
        )

    def failures(self, limits: Limits) -> list[str]:
        """Describe every figure that is beyond its limit; empty if there is none."""
        failures = []
        if not self.finite >= limits.finite:
            failures.append(f"only {self.finite:.2%} of the values are finite")
        if not self.correlation >= limits.correlation:
            failures.append(f"correlation {self.correlation:.5f} is below {limits.correlation:g}")
        if not self.relative_error <= limits.relative_error:
            failures.append(
                f"relative error {self.relative_error:.2%} is above {limits.relative_error:.2%}"
            )
        return failures


def output_difference(
    output: npt.NDArray[Any], reference: npt.NDArray[Any], meaning: str = ""
) -> OutputDifference:
    """Compare an output with the reference's; both are arrays of one shape, such as (1, h, w).

    Outputs whose meaning leaves scale and shift open are first aligned to the reference by scale
    and shift (least squares). Errors of depth and disparity are relative to the magnitude of the
    reference, of which small values are raised to a fraction of the median (INVERSE_FLOOR_RATIO);
    errors of logarithms are absolute; all others are relative to the mean magnitude. Values at
    which the reference is not finite are ignored. Raises EngineError if the shapes differ.
    """
    if output.shape != reference.shape:
        raise EngineError(
            f"an output has shape {output.shape}, the reference's {reference.shape}: they are not"
            " of one model"
        )
    compared = np.isfinite(reference)
    a, r = output[compared].astype(np.float64), reference[compared].astype(np.float64)
    known = np.isfinite(a)
    finite = float(known.mean()) if len(a) else 1.0
    a, r = a[known], r[known]
    if len(a) == 0:
        return OutputDifference(finite, 0.0, float("inf"))
    step_a, step_r = a - a.mean(), r - r.mean()
    spread_a, spread_r = float(step_a @ step_a), float(step_r @ step_r)
    if spread_a > 0 and spread_r > 0:
        correlation = float(step_a @ step_r) / float(np.sqrt(spread_a) * np.sqrt(spread_r))
    else:
        correlation = 1.0 if spread_a == spread_r else 0.0  # both are constant, or only one is
    if meaning.endswith("affine_invariant") and spread_a > 0:
        a = r.mean() + float(step_a @ step_r) / spread_a * step_a
    error = np.abs(a - r)
    size = np.abs(r)
    if meaning.startswith("log"):
        size = np.ones(1)
    elif meaning in (*KINDS, "depth_metric_focal") and size.any():
        size = np.maximum(size, INVERSE_FLOOR_RATIO * np.median(size[size > 0]))
    else:
        size = np.full(1, size.mean() or 1.0)
    return OutputDifference(finite, correlation, float((error / size).mean()))


def role_difference(
    manifest: Manifest, name: str, output: npt.NDArray[Any], reference: npt.NDArray[Any]
) -> OutputDifference:
    """Compare one output of a model, such as (1, h, w), in the way that its role needs.

    The node only compares an output that has a level (such as a sky mask) with this level. So the
    relative error of such an output is the fraction of its pixels that lie on different sides of
    the level in output and reference. Raises EngineError as output_difference does.
    """
    role = next((role for role, of in manifest.roles.items() if of == name), "")
    level = manifest.level(role) if role else None
    if level is None or output.shape != reference.shape:
        return output_difference(output, reference, "" if role else manifest.meaning)
    known = np.isfinite(reference)
    finite = float(np.isfinite(output)[known].mean()) if known.any() else 1.0
    differ = (output >= level) != (reference >= level)
    return OutputDifference(finite, 1.0, float(differ.mean()))


def reference_inputs(manifest: Manifest) -> tuple[npt.NDArray[np.uint8], Tensors]:
    """Return the reference image, (H, W, 3) uint8 RGB, and the input tensors made from it.

    A model without an image input (a prompt decoder) gets random numbers from a fixed seed and a
    black image.
    """
    height, width = manifest.input.height, manifest.input.width
    if manifest.sparse is not None:
        image = _test_pattern(height + height // 8, width + width // 8)
        return image, pattern_tensors(manifest, image, 7)
    if manifest.inputs:
        rng = np.random.default_rng(7)
        shapes = manifest.input_shapes.items()
        return np.zeros((height, width, 3), np.uint8), {
            name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes
        }
    # A little larger than the tensor, so that the check covers the engine's own resizing too.
    image = _test_pattern(height + height // 8, width + width // 8)
    return image, {manifest.input_name: to_tensor(image, manifest.input)}


@functools.lru_cache(maxsize=4)
def _test_pattern(height: int, width: int) -> npt.NDArray[np.uint8]:
    """Return an (H, W, 3) uint8 RGB image of a tiled corridor in perspective, always the same.

    It has depth, edges, shading and fine texture, so it exercises every layer of a network, and
    needs no renderer at run time.
    """
    rows, cols = np.mgrid[0:height, 0:width]
    x, y = (cols - 0.45 * width) / height, (rows - 0.4 * height) / height
    # The ray (x, y, 1) ends at the nearest of the floor, the ceiling, two walls and the far end.
    with np.errstate(divide="ignore"):
        surfaces = np.stack([0.5 / y, -0.6 / y, 0.8 / x, -0.7 / x, np.full_like(x, 6.0)])
    surfaces[surfaces <= 0] = np.inf
    surface, depth = surfaces.argmin(axis=0), surfaces.min(axis=0)
    tile = np.floor(2 * x * depth) + np.floor(2 * y * depth) + np.floor(2 * depth)
    shade = (0.55 + 0.45 * (tile % 2)) / (1 + 0.2 * depth)
    shade += 0.05 * np.random.default_rng(7).standard_normal((height, width))
    colours = np.array(
        [[150, 110, 80], [230, 230, 220], [180, 60, 50], [60, 90, 170], [90, 160, 90]]
    )
    image = np.clip(colours[surface] * shade[..., None], 0, 255).astype(np.uint8)
    image.flags.writeable = False
    return image


@dataclass(frozen=True)
class Reference:
    """An image (H, W, 3), its input tensors, and the outputs of the reference by name."""

    image: npt.NDArray[np.uint8]
    inputs: Tensors
    outputs: Tensors

    @classmethod
    def of(cls, model: Path, manifest: Manifest, folder: Path | None = None) -> Reference:
        """Return the stored outputs from `folder`; without them run ONNX Runtime on the CPU.

        New outputs are stored in `folder`. Raises EngineError if the model cannot be run.
        """
        image, inputs = reference_inputs(manifest)
        path = None
        if folder is not None:
            digest = hashlib.sha256(repr((manifest.sha256, manifest.output_names)).encode())
            for name in sorted(inputs):
                digest.update(inputs[name].tobytes())
            path = folder / f"{digest.hexdigest()[:32]}{REFERENCE_ENDING}"
            stored = _read(path, manifest)
            if stored is not None:
                return cls(image, inputs, stored)
        from depth_node.engine import ort

        with ort.OrtEngine(model, manifest) as engine:
            outputs = engine.run_named(inputs)
        if path is not None:
            _write(path, outputs)
        return cls(image, inputs, outputs)

    def compare(self, engine: Engine) -> OutputDifference:
        """Run an engine on the input tensors and compare. Raises EngineError if it cannot run."""
        manifest = engine.manifest
        # A copy in another precision can need another type and have other tensor names.
        dtype = np.dtype("float32" if manifest.inputs else manifest.input.dtype)
        tensors = [tensor.astype(dtype, copy=False) for tensor in self.inputs.values()]
        outputs = engine.run_named(dict(zip(manifest.input_shapes, tensors, strict=True)))
        worst = OutputDifference(1.0, 1.0, 0.0)
        for name, reference in zip(manifest.output_names, self.outputs.values(), strict=True):
            worst = worst.worse(role_difference(manifest, name, outputs[name], reference))
        return worst

    def compare_image(self, engine: ImageEngine) -> OutputDifference:
        """Run an engine that resizes images itself on the image and compare.

        Raises EngineError if it cannot run.
        """
        manifest, outputs = engine.manifest, engine.run_image_named(self.image)
        worst = OutputDifference(1.0, 1.0, 0.0)
        for name, reference in zip(manifest.output_names, self.outputs.values(), strict=True):
            worst = worst.worse(role_difference(manifest, name, outputs[name], reference))
        return worst


def check(engine: Engine, reference: Reference, limits: Limits) -> None:
    """Compare an engine with the reference and store the figures in its details.

    Raises EngineError if they are beyond the limits. The resizing of an engine that resizes images
    itself may differ by one grey level at some pixels, so the limits of correlation and relative
    error are four times as wide for images.
    """
    difference = reference.compare(engine)
    engine.details["check"] = str(difference)
    failures = difference.failures(limits)
    if isinstance(engine, ImageEngine) and not engine.manifest.inputs:
        difference = reference.compare_image(engine)
        engine.details["check of images"] = str(difference)
        wide = Limits(limits.finite, 1 - 4 * (1 - limits.correlation), 4 * limits.relative_error)
        failures += [f"with its own resizing {text}" for text in difference.failures(wide)]
    if failures:
        raise EngineError(
            f"the engine of model {engine.manifest.name} on {engine.backend} does not answer as"
            f" ONNX Runtime on the CPU does ({'; '.join(failures)}): use the model file itself"
            " (model.precision: file), another version of the back end or the CPU"
            " (model.backend: onnxruntime-cpu), or let engine.on_failure choose"
        )


def _read(path: Path, manifest: Manifest) -> Tensors | None:
    try:
        with np.load(io.BytesIO(read_bytes(path))) as stored:
            outputs = {name: stored[name] for name in stored.files}
        with contextlib.suppress(OSError):
            os.utime(path)  # the cache deletes the least recently used file first
    except Exception:  # missing or damaged in any way: the reference is run again
        return None
    names = manifest.output_names
    return {name: outputs[name] for name in names} if set(outputs) == set(names) else None


def _write(path: Path, outputs: Tensors) -> None:
    """Store the outputs for the next start. A failure is ignored: the next start takes longer."""
    try:
        make_private(path.parent)
        content = io.BytesIO()
        savez: Any = np.savez  # the stubs of NumPy 2 name allow_pickle, which NumPy 1.26 lacks
        savez(content, **outputs)
        write_private(path, content.getvalue())
    except OSError:
        return
