# SPDX-License-Identifier: Apache-2.0
"""The manifest of a model: the contract between training and run time.

It alone holds the input's size, colour order and normalisation and the meaning of the output. A
model without a manifest is refused.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from depth_node.config import nearest
from depth_node.engine import EngineError
from depth_node.engine.preprocess import InputSpec
from depth_node.prediction import KINDS

PROMPTS = "region_prompts"  # an image encoder that needs its prompt decoder
PROMPT_DECODER = "prompt_masks"  # the decoder of a PROMPTS encoder, opened together with it
REGION_MEANINGS = ("region_masks", "region_labels", "region_edges", PROMPTS)
MEANINGS = (*KINDS, *REGION_MEANINGS, PROMPT_DECODER)
EMBEDDED = "embedded"


@dataclass(frozen=True)
class Manifest:
    """Description of a model file, stored as YAML in ``<stem>.manifest.yaml`` beside the model.

    ``model`` is the file's name; ``sha256`` covers the file and its external weights; ``meaning``
    is one of MEANINGS; ``patch_size`` is that of a transformer (0: none). Raises EngineError for
    values that cannot be used.

    A model with several outputs that belong together names them all in ``outputs``; the first is
    ``output_name``. A model whose inputs are not one image names them with their shapes in
    ``inputs`` (all float32, the first is ``input_name``); ``input`` then describes the image from
    which they are computed. ``decoder`` is the file name of the prompt decoder of an encoder of
    meaning "region_prompts"; the decoder turns the encoder's outputs and image points into masks.

    ``limits`` replaces limits of the self-check (engine/self_check.py) that do not suit the model.
    """

    name: str
    model: str
    sha256: str
    input_name: str
    input: InputSpec
    output_name: str
    meaning: str
    patch_size: int = 0
    licence: str = ""
    source: str = ""
    training: Mapping[str, Any] = field(default_factory=dict)
    decoder: str = ""
    inputs: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    outputs: tuple[str, ...] = ()
    limits: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        texts = ("name", "model", "sha256", "input_name", "output_name", "licence", "source")
        for key in (*texts, "decoder"):
            if not isinstance(getattr(self, key), str):
                raise EngineError(
                    f"{key} is {getattr(self, key)!r}: it must be text; put it in quotes"
                )
        if self.meaning not in MEANINGS:
            guess = nearest(str(self.meaning), MEANINGS)
            hint = f" (did you mean {guess}?)" if guess else ""
            raise EngineError(
                f"meaning {self.meaning!r} is not known{hint}: use one of {', '.join(MEANINGS)}"
            )
        patch = self.patch_size
        if not isinstance(patch, int) or isinstance(patch, bool) or patch < 0:
            raise EngineError(f"patch_size is {patch!r}: give a whole number, 0 for no patches")
        if patch and (self.input.height % patch or self.input.width % patch):
            raise EngineError(
                f"input {self.input.width}x{self.input.height} is no multiple of patch_size"
                f" {patch}: export the model at a multiple of it"
            )
        if not isinstance(self.training, Mapping):
            raise EngineError("training must be a mapping of keys to values")
        if not isinstance(self.limits, Mapping):
            raise EngineError("limits must be a mapping of keys to numbers")
        if (self.meaning == PROMPTS) != bool(self.decoder):
            raise EngineError(
                f"meaning {self.meaning} with decoder {self.decoder!r}: region_prompts, and only"
                " it, needs the file name of its prompt decoder; export both halves together"
            )
        self._check_tensors()

    def _check_tensors(self) -> None:
        if not isinstance(self.inputs, Mapping) or not all(
            isinstance(shape, (list, tuple))
            and shape
            and all(type(n) is int and n > 0 for n in shape)
            for shape in self.inputs.values()
        ):
            raise EngineError("inputs must map names of tensors to shapes like [64, 2]")
        object.__setattr__(self, "inputs", {key: tuple(n) for key, n in self.inputs.items()})
        if isinstance(self.outputs, str) or not all(isinstance(name, str) for name in self.outputs):
            raise EngineError("outputs must be a list of names")
        object.__setattr__(self, "outputs", tuple(self.outputs))
        for key, names in (("input_name", (*self.inputs,)), ("output_name", self.outputs)):
            if names and getattr(self, key) != names[0]:
                raise EngineError(
                    f"{key} is {getattr(self, key)!r} and not the first of {', '.join(names)}:"
                    " correct one of them"
                )

    @property
    def input_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every input tensor by name: the image alone, or those of ``inputs``."""
        return dict(self.inputs) or {self.input_name: self.input.shape}

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the outputs that an engine computes."""
        return self.outputs or (self.output_name,)

    @classmethod
    def load(cls, path: str | Path) -> Manifest:
        """Read a manifest. Raises EngineError if it is missing, unreadable or incomplete."""
        path = Path(path)
        try:
            values = yaml.safe_load(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise EngineError(f"manifest {path} does not exist: check the path") from None
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            reason = " ".join(str(error).split())
            raise EngineError(
                f"manifest {path} cannot be read as YAML ({reason}):"
                " correct it or write it anew with `depth_tools models manifest`"
            ) from error
        try:
            spec = _from_mapping(InputSpec, _mapping(values).get("input"), "input.")
            return _from_mapping(cls, {**_mapping(values), "input": spec}, "")
        except (EngineError, ValueError) as error:
            raise EngineError(f"manifest {path}: {error}") from error

    def save(self, path: str | Path) -> None:
        """Write the manifest as YAML; load() of that file gives an equal manifest."""
        values = dataclasses.asdict(self)
        for key in ("mean", "std"):
            values["input"][key] = list(values["input"][key])
        values["training"] = dict(self.training)
        values["inputs"] = {key: list(shape) for key, shape in self.inputs.items()}
        values["outputs"] = list(self.outputs)
        values["limits"] = dict(self.limits)
        for key in ("decoder", "inputs", "outputs", "limits"):  # most models have none
            if not values[key]:
                del values[key]
        text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
        Path(path).write_text(text, encoding="utf-8")


def _mapping(values: Any) -> Mapping[str, Any]:
    if not isinstance(values, Mapping):
        raise EngineError(f"found {values!r} where keys and values should be")
    return values


def _from_mapping(cls: type, values: Any, prefix: str) -> Any:
    """Make an instance of a dataclass. EngineError for an unknown or a missing key."""
    fields = {item.name: item for item in dataclasses.fields(cls)}
    for key in _mapping(values):
        if key not in fields:
            guess = nearest(str(key), fields)
            raise EngineError(
                f"unknown key {prefix}{key}"
                + (f"; did you mean {prefix}{guess}?" if guess else f"; known: {', '.join(fields)}")
            )
    for name, item in fields.items():
        optional = (
            item.default is not dataclasses.MISSING
            or item.default_factory is not dataclasses.MISSING
        )
        if name not in values and not optional:
            raise EngineError(f"the key {prefix}{name} is missing: add it")
    return cls(**values)


def manifest_path(model: str | Path) -> Path:
    """Path of the manifest of a model file: model.onnx -> model.manifest.yaml."""
    model = Path(model)
    return model.with_name(f"{model.stem}.manifest.yaml")


def model_sha256(model: str | Path) -> str:
    """Hexadecimal SHA-256 of a model file and of its external weights, if there are any.

    Exporters put the weights of large models into ``model.onnx.data`` or ``model.onnx_data``.
    """
    model = Path(model)
    digest = hashlib.sha256()
    externals = [model.with_name(model.name + ending) for ending in (".data", "_data")]
    for part in [model, *(path for path in externals if path.is_file())]:
        with part.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def converted_path(model: str | Path, precision: str) -> Path:
    """Path of a model's copy in another precision: model.onnx -> model.fp16.onnx."""
    model = Path(model)
    return model.with_name(f"{model.stem}.{precision}.onnx")


def existing_model(model: Path) -> Path:
    """Return the path. Raises EngineError if it is not a file."""
    if model.is_dir():
        raise EngineError(f"model {model} is a folder: name the .onnx file in it")
    if not model.is_file():
        raise EngineError(
            f"model file {model} does not exist: check the path, or use `{EMBEDDED}`,"
            " the network that comes with the package"
        )
    return model


def verified_manifest(model: Path, manifest: str | Path | None = None) -> Manifest:
    """Load the manifest of a model file, from beside it unless a path is given.

    Raises EngineError if there is none or the file is not the one that it describes.
    """
    description = _manifest_of(model, manifest)
    digest = model_sha256(model)
    if digest != description.sha256.lower():
        raise EngineError(
            f"model {model} is not the file its manifest describes (sha256 {digest[:12]}… instead"
            f" of {description.sha256[:12]}…): it is damaged or another version; fetch the right"
            " file, or write a new manifest with `depth_tools models manifest`"
        )
    return description


def _manifest_of(model: Path, manifest: str | Path | None) -> Manifest:
    if manifest is not None and str(manifest):
        return Manifest.load(Path(manifest).expanduser())
    beside = manifest_path(model)
    if not beside.is_file():
        raise EngineError(
            f"model {model} has no manifest ({beside.name} beside it), so its input and"
            f" output are unknown: write one with `depth_tools models manifest {model}"
            " --meaning MEANING`"
        )
    return Manifest.load(beside)
