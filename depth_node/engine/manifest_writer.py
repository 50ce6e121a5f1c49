# SPDX-License-Identifier: Apache-2.0
"""Writing the manifest of an ONNX file; names, sizes and types are read from the file itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from depth_node.engine import EngineError, depth_tools
from depth_node.engine.manifest import (
    PROMPT_DECODER,
    Manifest,
    SparseSpec,
    existing_model,
    manifest_path,
    model_sha256,
)
from depth_node.engine.preprocess import InputSpec
from depth_node.engine.protocol import Engine, warn_if_slow

if TYPE_CHECKING:
    from depth_node.engine.ort import TensorInfo


def write_manifest(
    model: str | Path,
    meaning: str,
    *,
    manifest: str | Path | None = None,
    name: str = "",
    output_name: str = "",
    height: int = 0,
    width: int = 0,
    patch_size: int = 0,
    licence: str = "",
    source: str = "",
    training: Mapping[str, Any] | None = None,
    decoder: str = "",
    outputs: Sequence[str] = (),
    roles: Mapping[str, str] | None = None,
    levels: Mapping[str, float] | None = None,
    focal_px: float = 0.0,
    sparse: SparseSpec | None = None,
    run: bool = True,
    judge: Callable[[Engine], None] | None = None,
    **input_options: Any,
) -> Manifest:
    """Write and return the manifest of an ONNX file; names, size and type come from the file.

    The caller gives what the file does not contain: ``meaning``; fields of InputSpec that differ
    from their defaults (channel_order, scale, mean, std, resize, interpolation); ``output_name`` if
    there are several outputs; ``height`` and ``width`` (pixels) if the file leaves them open;
    ``outputs`` if several belong together; the ``decoder`` of region_prompts; ``roles``,
    ``levels``, ``focal_px`` and ``sparse`` as in Manifest. The inputs of a completion network must
    be one image of three channels and those that ``sparse`` names. A prompt decoder may have any
    inputs; ``height`` and ``width`` are then those of its encoder's input.

    The manifest is written beside the model unless ``manifest`` is a path. Before that the network
    runs once, and ``judge`` can reject the outputs by raising EngineError; with ``run`` false only
    names, shapes and types are compared. Raises EngineError if the file or a value cannot be used
    or the manifest cannot be written.
    """
    model = existing_model(Path(model))
    from depth_node.engine import ort  # optional package; only this back end reads ONNX files

    inputs, file_outputs = ort.probe(model)
    inputs = _usable_inputs(model, inputs, meaning, sparse)
    spec = _input_spec(model, inputs[0], meaning, {"height": height, "width": width}, input_options)
    names = [item.name for item in file_outputs]
    output_name = output_name or (outputs[0] if outputs else "")
    if not output_name and len(names) > 1:
        raise EngineError(
            f"model {model} has the outputs {', '.join(names)}: say which one is meant"
        )
    several = meaning == PROMPT_DECODER or sparse is not None
    written = Manifest(
        name=name or model.stem,
        model=model.name,
        sha256=model_sha256(model),
        input_name=inputs[0].name,
        input=spec,
        output_name=output_name or names[0],
        meaning=meaning,
        patch_size=patch_size,
        licence=licence,
        source=source,
        training=dict(training or {}),
        decoder=decoder,
        inputs=_input_shapes(inputs, spec) if several else {},
        outputs=tuple(outputs),
        roles=dict(roles or {}),
        levels=dict(levels or {}),
        focal_px=focal_px,
        sparse=sparse,
    )
    place = manifest_path(model) if manifest is None else manifest
    if not run:
        ort.check_manifest(model, written)
        _save(written, place)
        return written
    # Opening the model checks names, shape and type as the node does at run time.
    with warn_if_slow(f"running model {model} once"), ort.OrtEngine(model, written) as engine:
        if judge is not None:
            judge(engine)
        _save(written, place)
    return written


def _save(manifest: Manifest, place: str | Path) -> None:
    try:
        manifest.save(place)
    except OSError as error:
        raise EngineError(
            f"the manifest {place} cannot be written ({error.strerror}): make room, or name another"
            f" place (`{depth_tools('models manifest --out')}`)"
        ) from error


def _usable_inputs(
    model: Path, inputs: list[TensorInfo], meaning: str, sparse: SparseSpec | None
) -> list[TensorInfo]:
    """Return the inputs, the image first if there is one. EngineError if they cannot be used."""
    prompted = meaning == PROMPT_DECODER
    if sparse is not None:
        inputs = _image_first(model, inputs, sparse)
    elif len(inputs) != 1 and not prompted:
        raise EngineError(
            f"model {model} has {len(inputs)} inputs ({', '.join(item.name for item in inputs)}):"
            " only models with one input, the image, can be used, or completion networks, whose"
            " input of measured points is named (--sparse-depth); export it so"
        )
    if not inputs:
        raise EngineError(f"model {model} has no inputs: export it with those of a prompt decoder")
    shape = inputs[0].shape
    if not prompted and (len(shape) != 4 or shape[1] not in (3, None)):
        raise EngineError(
            f"model {model} has an input of shape {shape}: export it with one image of shape"
            " (1, 3, height, width)"
        )
    for item in inputs if prompted else ():
        if None in item.shape or item.dtype != "float32":
            raise EngineError(
                f"prompt decoder {model} has an input {item.name} of shape {item.shape} and type"
                f" {item.dtype or 'unknown'}: export it with fixed shapes and float32"
            )
    return inputs


def _input_spec(
    model: Path,
    tensor: TensorInfo,
    meaning: str,
    given: Mapping[str, int],
    options: Mapping[str, Any],
) -> InputSpec:
    """Return the InputSpec: how an image becomes the tensor. EngineError for unusable values.

    given: height and width that the caller gives; 0: take the size from the file.
    """
    in_file = (0, 0) if meaning == PROMPT_DECODER else tensor.shape[2:]  # a decoder has no image
    size = {}
    for (key, asked), fixed in zip(given.items(), in_file, strict=True):
        if not (asked or fixed):
            raise EngineError(f"model {model} leaves the input's {key} open: give --{key}")
        size[key] = asked or fixed
    try:
        return InputSpec(**{**size, "dtype": tensor.dtype, **options})
    except (ValueError, TypeError) as error:
        raise EngineError(f"manifest of {model}: {error}") from error


def _image_first(model: Path, inputs: Sequence[TensorInfo], sparse: SparseSpec) -> list[TensorInfo]:
    """Return the inputs of a completion network, the image first.

    Raises EngineError if they are not one image and the inputs that ``sparse`` names.
    """
    named = {sparse.depth, sparse.mask} - {""}
    images = [item for item in inputs if item.name not in named]
    known = {item.name for item in inputs}
    if len(images) != 1 or not named <= known:
        raise EngineError(
            f"model {model} has the inputs {', '.join(sorted(known))}: a completion network has one"
            f" image beside {', '.join(sorted(named))}; correct --sparse-depth and --sparse-mask,"
            " or export it so"
        )
    for item in inputs:
        if item.name in named and len(item.shape) != 4:
            raise EngineError(
                f"model {model} has an input {item.name} of shape {item.shape}: export it with"
                " (1, 1, height, width)"
            )
    return [images[0], *(item for item in inputs if item.name in named)]


def _input_shapes(inputs: Sequence[TensorInfo], spec: InputSpec) -> dict[str, tuple[int, ...]]:
    """Return the inputs' shapes by name; sizes that the file leaves open become the image's."""
    of_maps = (1, 1, spec.height, spec.width)
    shapes = {}
    for number, item in enumerate(inputs):
        of_image = spec.shape if number == 0 else of_maps  # the image is the first input
        shapes[item.name] = tuple(size or of_image[axis] for axis, size in enumerate(item.shape))
    return shapes
