# SPDX-License-Identifier: Apache-2.0
"""Write the manifest of an ONNX file; names, sizes and types are read from the file itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from depth_node.engine import EngineError
from depth_node.engine.manifest import (
    PROMPT_DECODER,
    Manifest,
    existing_model,
    manifest_path,
    model_sha256,
)
from depth_node.engine.preprocess import InputSpec
from depth_node.engine.protocol import warn_if_slow


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
    **input_options: Any,
) -> Manifest:
    """Write the manifest of an ONNX file; names, size and type are read from the file itself.

    The caller gives what the file does not contain: ``meaning``; fields of InputSpec that differ
    from their defaults (channel_order, scale, mean, std, resize, interpolation); ``output_name`` if
    there are several outputs; ``height`` and ``width`` (pixels) if the file leaves them open;
    ``outputs`` if several belong together; the ``decoder`` of region_prompts. A prompt decoder may
    have any inputs; ``height`` and ``width`` are then those of its encoder's input. The manifest is
    written beside the model unless ``manifest`` is a path. Raises EngineError if the file or a
    value cannot be used.
    """
    model = existing_model(Path(model))
    from depth_node.engine import ort  # optional package; only this back end reads ONNX files

    inputs, file_outputs = ort.probe(model)
    prompted = meaning == PROMPT_DECODER
    if len(inputs) != 1 and not prompted:
        raise EngineError(
            f"model {model} has {len(inputs)} inputs ({', '.join(item.name for item in inputs)}):"
            " only models with one input, the image, can be used; export it so"
        )
    tensor = inputs[0]
    if not prompted and (len(tensor.shape) != 4 or tensor.shape[1] not in (3, None)):
        raise EngineError(
            f"model {model} has an input of shape {tensor.shape}: export it with one image of"
            " shape (1, 3, height, width)"
        )
    for item in inputs if prompted else ():
        if None in item.shape or item.dtype != "float32":
            raise EngineError(
                f"prompt decoder {model} has an input {item.name} of shape {item.shape} and type"
                f" {item.dtype or 'unknown'}: export it with fixed shapes and float32"
            )
    names = [item.name for item in file_outputs]
    output_name = output_name or (outputs[0] if outputs else "")
    if not output_name and len(names) > 1:
        raise EngineError(
            f"model {model} has the outputs {', '.join(names)}: say which one is meant"
        )
    size = {}
    for key, given, in_file in (
        ("height", height, None if prompted else tensor.shape[2]),
        ("width", width, None if prompted else tensor.shape[3]),
    ):
        if not (given or in_file):
            raise EngineError(f"model {model} leaves the input's {key} open: say which one to use")
        size[key] = given or in_file
    try:
        spec = InputSpec(**{**size, "dtype": tensor.dtype, **input_options})
    except (ValueError, TypeError) as error:
        raise EngineError(f"manifest of {model}: {error}") from error
    written = Manifest(
        name=name or model.stem,
        model=model.name,
        sha256=model_sha256(model),
        input_name=tensor.name,
        input=spec,
        output_name=output_name or names[0],
        meaning=meaning,
        patch_size=patch_size,
        licence=licence,
        source=source,
        training=dict(training or {}),
        decoder=decoder,
        inputs={item.name: _fixed_shape(item.shape) for item in inputs} if prompted else {},
        outputs=tuple(outputs),
    )
    # Opening it checks names, shape and type as at run time.
    with warn_if_slow(f"running model {model} once"), ort.OrtEngine(model, written):
        written.save(manifest_path(model) if manifest is None else manifest)
    return written


def _fixed_shape(shape: tuple[int | None, ...]) -> tuple[int, ...]:
    """A shape of which no size is open, which the caller has checked."""
    return tuple(size or 0 for size in shape)
