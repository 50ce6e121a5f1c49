# SPDX-License-Identifier: Apache-2.0
"""The manifest of a model: the contract between training and run time.

Only the manifest holds the input's size, colour order and normalisation and the meaning of the
output. A model without a manifest is refused.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from depth_node.config import MAX_YAML_BYTES, ConfigError, parse_yaml, read_text
from depth_node.engine import EngineError, depth_tools
from depth_node.engine.model_file import external_weights, fault_of, is_beside
from depth_node.engine.preprocess import InputSpec
from depth_node.prediction import DEPTH_MEANINGS
from depth_node.sentences import nearest, one_line, quoted

PROMPTS = "region_prompts"  # an image encoder that needs its prompt decoder
PROMPT_DECODER = "prompt_masks"  # the decoder of a PROMPTS encoder, opened together with it
REGION_MEANINGS = ("region_masks", "region_labels", "region_edges", PROMPTS)
MEANINGS = (*DEPTH_MEANINGS, *REGION_MEANINGS, PROMPT_DECODER)
ROLES = ("sky", "mask", "confidence", "scale")
LEVELS = {"sky": 0.3, "mask": 0.5}  # default levels: from here a pixel is sky, or has a depth
EMBEDDED = "embedded"
EMBEDDED_SMALL = "embedded-small"  # input of 96x128: takes a quarter of the time, has no edges
PACKAGED = (EMBEDDED, EMBEDDED_SMALL)
_MAX_PIXELS = 1 << 25  # of the image input: 33 million, an 8K image; its tensor has 400 MB
_MAX_ELEMENTS = 1 << 27  # of any other input tensor: 512 MB
_MAX_TEXT = 2000


UNITS = {"m": "metres", "mm": "millimetres", "1/m": "1/metres", "log m": "log metres"}


@dataclass(frozen=True)
class SparseSpec:
    """The inputs of a completion network for measured points, each of shape (1, 1, height, width).

    depth: name of the input with the depth of the pixels that have a point, in ``unit`` (one of
    UNITS); all other pixels hold ``empty``. mask: name of the input that is 1 where there is a
    point and 0 elsewhere; "" if there is none. min_points: lowest number of pixels with a point for
    which the network's output is usable. The size of the inputs may differ from the image's; of
    several points in a pixel the nearest one is used. Raises EngineError for values that cannot be
    used.
    """

    depth: str
    mask: str = ""
    unit: str = "m"
    empty: float = 0.0
    min_points: int = 16

    def __post_init__(self) -> None:
        for key in ("depth", "mask"):
            if not isinstance(getattr(self, key), str):
                raise EngineError(f"sparse.{key} is {quoted(getattr(self, key))}: give a name")
            _check_text(f"sparse.{key}", getattr(self, key))
        if not self.depth or self.depth == self.mask:
            raise EngineError("sparse.depth must name an input, and sparse.mask another one")
        if not isinstance(self.unit, str) or self.unit not in UNITS:
            raise EngineError(f"sparse.unit is {quoted(self.unit)}: use one of {', '.join(UNITS)}")
        if type(self.empty) not in (int, float) or not math.isfinite(self.empty):
            raise EngineError(f"sparse.empty is {quoted(self.empty)}: give a finite number")
        if type(self.min_points) is not int or self.min_points < 1:
            raise EngineError(f"sparse.min_points is {quoted(self.min_points)}: give 1 or more")


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

    A depth network can have outputs besides depth; ``roles`` gives the name of the output of each
    role: "sky" (a pixel is sky if the value is at least ``levels.sky``), "mask" (a pixel has a
    depth if the value is at least ``levels.mask``), "confidence" (likewise, if
    ``levels.confidence`` is given) and "scale" (one factor to metres).

    ``focal_px``: focal length of the input, px, at which an output of meaning "depth_metric_focal"
    is in metres. ``sparse``: the inputs of a completion network for points (:class:`SparseSpec`),
    which ``inputs`` also lists.
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
    roles: Mapping[str, str] = field(default_factory=dict)
    levels: Mapping[str, float] = field(default_factory=dict)
    focal_px: float = 0.0
    sparse: SparseSpec | None = None

    def __post_init__(self) -> None:
        names = ("name", "model", "sha256", "input_name", "output_name", "decoder")
        for key in (*names, "licence", "source"):
            text = getattr(self, key)
            if not isinstance(text, str):
                raise EngineError(f"{key} is {quoted(text)}: it must be text; put it in quotes")
            _check_text(key, text, lines=key not in names)
        for key in ("model", "decoder"):
            if getattr(self, key) in (".", "..") or set(getattr(self, key)) & {"/", "\\"}:
                raise EngineError(
                    f"{key} is {quoted(getattr(self, key))}: give the name of a file beside the"
                    " manifest, without a folder"
                )
        if self.meaning not in MEANINGS:
            guess = nearest(str(self.meaning), MEANINGS)
            hint = f" (did you mean {guess}?)" if guess else ""
            raise EngineError(
                f"meaning {quoted(self.meaning)} is not known{hint}: use one of"
                f" {', '.join(MEANINGS)}"
            )
        patch = self.patch_size
        if not isinstance(patch, int) or isinstance(patch, bool) or patch < 0:
            raise EngineError(
                f"patch_size is {quoted(patch)}: give a whole number, 0 for no patches"
            )
        if self.input.height * self.input.width > _MAX_PIXELS:
            raise EngineError(
                f"input {quoted(self.input.width)}x{quoted(self.input.height)} has more than"
                f" {_MAX_PIXELS // 10**6} million pixels: correct input.height and input.width"
            )
        if patch and (self.input.height % patch or self.input.width % patch):
            raise EngineError(
                f"input {self.input.width}x{self.input.height} is no multiple of patch_size"
                f" {patch}: export the model at a multiple of it"
            )
        if not isinstance(self.training, Mapping):
            raise EngineError("training must be a mapping of keys to values")
        if not isinstance(self.limits, Mapping):
            raise EngineError("limits must be a mapping of keys to numbers")
        for key, value in self.limits.items():
            if type(value) not in (int, float) or not 0 <= value < math.inf:
                raise EngineError(
                    f"limits.{one_line(key)} is {quoted(value)}: give a number from 0, not infinite"
                )
        if (self.meaning == PROMPTS) != bool(self.decoder):
            raise EngineError(
                f"meaning {self.meaning} with decoder {quoted(self.decoder)}: region_prompts, and"
                " only it, needs the file name of its prompt decoder; export both halves together"
            )
        self._check_tensors()
        self._check_roles()
        if self.sparse is not None:
            self._check_sparse(self.sparse)

    def _check_roles(self) -> None:
        checks: tuple[tuple[str, Mapping[str, Any], tuple[type, ...], str], ...] = (
            ("roles", self.roles, (str,), "the name of an output"),
            ("levels", self.levels, (int, float), "a finite number"),
        )
        for key, values, kinds, what in checks:
            if not isinstance(values, Mapping):
                raise EngineError(f"{key} must be a mapping with keys of {', '.join(ROLES)}")
            for role, value in values.items():
                if role not in ROLES:
                    raise EngineError(
                        f"unknown key {key}.{one_line(role)}: use one of {', '.join(ROLES)}"
                    )
                endless = isinstance(value, float) and not math.isfinite(value)
                if type(value) not in kinds or endless:
                    raise EngineError(f"{key}.{role} is {quoted(value)}: give {what}")
        for name in self.roles.values():
            _check_text("a name of roles", name)
        if self.roles and self.meaning not in DEPTH_MEANINGS:
            raise EngineError(
                f"roles belong to networks that give depth, not {self.meaning}: leave them out"
            )
        focal = self.focal_px
        if type(focal) not in (int, float) or not 0 <= focal < math.inf:
            raise EngineError(f"focal_px is {quoted(focal)}: give a number of pixels above 0")
        if (self.meaning == "depth_metric_focal") != (focal > 0):
            raise EngineError(
                f"meaning {self.meaning} with focal_px {focal:g}: depth_metric_focal, and only it,"
                " needs the focal length of the input at which its output is in metres (Depth"
                " Anything 3: 300)"
            )

    def _check_sparse(self, sparse: SparseSpec) -> None:
        if self.meaning not in ("depth_metric", "disparity_metric"):
            raise EngineError(
                f"a completion network gives metres, not {self.meaning}: use meaning depth_metric"
                " or disparity_metric, or leave sparse out"
            )
        needed = {self.input_name, sparse.depth, sparse.mask} - {""}
        if set(self.inputs) != needed or self.input.dtype != "float32":
            raise EngineError(
                f"inputs are {one_line(', '.join(self.inputs))} of {self.input.dtype}, and the"
                f" image and sparse name {one_line(', '.join(sorted(needed)))}: a completion"
                " network takes these and no others, in float32"
            )
        maps = {self.inputs[name] for name in needed - {self.input_name}}
        shape = next(iter(maps))
        if len(maps) != 1 or len(shape) != 4 or shape[:2] != (1, 1):
            raise EngineError(
                "the sparse inputs have the shapes"
                f" {', '.join(map(str, sorted(maps)))}: export them as (1, 1, height, width), alike"
            )
        if self.inputs[self.input_name] != self.input.shape:
            raise EngineError(
                f"the image has shape {self.inputs[self.input_name]} in inputs and"
                f" {self.input.shape} in input: correct one of them"
            )
        if self.input.resize == "crop":
            raise EngineError("a completion network cannot crop its image: use another resize")

    def level(self, role: str) -> float | None:
        """Return the lowest value of a role's output for which the role holds; None: no level."""
        return self.levels.get(role, LEVELS.get(role))

    def _check_tensors(self) -> None:
        if not isinstance(self.inputs, Mapping) or not all(
            isinstance(name, str)
            and isinstance(shape, (list, tuple))
            and shape
            and all(type(n) is int and n > 0 for n in shape)
            and math.prod(shape) <= _MAX_ELEMENTS
            for name, shape in self.inputs.items()
        ):
            raise EngineError(
                "inputs must map names of tensors to shapes like [64, 2], of at most"
                f" {_MAX_ELEMENTS // 10**6} million elements"
            )
        object.__setattr__(self, "inputs", {key: tuple(n) for key, n in self.inputs.items()})
        if not isinstance(self.outputs, (list, tuple)) or not all(
            isinstance(name, str) for name in self.outputs
        ):
            raise EngineError("outputs must be a list of names")
        object.__setattr__(self, "outputs", tuple(self.outputs))
        for name in (*self.inputs, *self.outputs):
            _check_text("a name of inputs and outputs", name)
        for key, names in (("input_name", (*self.inputs,)), ("output_name", self.outputs)):
            if names and getattr(self, key) != names[0]:
                raise EngineError(
                    f"{key} is {quoted(getattr(self, key))} and not the first of"
                    f" {one_line(', '.join(names))}:"
                    " correct one of them"
                )

    @property
    def input_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every input tensor by name: of the image alone, or those of ``inputs``."""
        return dict(self.inputs) or {self.input_name: self.input.shape}

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the outputs that an engine computes."""
        return (*dict.fromkeys((*(self.outputs or (self.output_name,)), *self.roles.values())),)

    @classmethod
    def load(cls, path: str | Path) -> Manifest:
        """Read a manifest. Raises EngineError if it is missing, unreadable or incomplete."""
        path = Path(path)
        if not path.exists():
            raise EngineError(f"manifest {path} does not exist: check the path")
        try:
            # The file can come from anywhere. YAML aliases, which a manifest never needs, could
            # expand a small file without limit, so they are refused.
            values = parse_yaml(read_text(path, MAX_YAML_BYTES, "manifest"), aliases=False)
        except ConfigError as error:
            raise EngineError(
                f"manifest {path} cannot be read as YAML ({one_line(error, 400)}): correct it or"
                f" write it anew with `{depth_tools('models manifest')}`"
            ) from error
        try:
            parts = {"input": _from_mapping(InputSpec, _mapping(values).get("input"), "input.")}
            if _mapping(values).get("sparse") is not None:
                parts["sparse"] = _from_mapping(SparseSpec, values["sparse"], "sparse.")
            return _from_mapping(cls, {**_mapping(values), **parts}, "")
        except Exception as error:  # any fault of the file must become one sentence
            raise EngineError(f"manifest {path}: {one_line(error, 600)}") from error

    def save(self, path: str | Path) -> None:
        """Write the manifest as YAML; load() of that file gives an equal manifest."""
        values = dataclasses.asdict(self)
        for key in ("mean", "std"):
            values["input"][key] = list(values["input"][key])
        values["training"] = dict(self.training)
        values["inputs"] = {key: list(shape) for key, shape in self.inputs.items()}
        values["outputs"] = list(self.outputs)
        values["limits"] = dict(self.limits)
        for key in ("roles", "levels"):
            values[key] = dict(getattr(self, key))
        rare = ("decoder", "inputs", "outputs", "limits", "roles", "levels", "focal_px", "sparse")
        for key in rare:  # most models have none
            if not values[key]:
                del values[key]
        text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
        Path(path).write_text(text, encoding="utf-8")


def _mapping(values: Any) -> Mapping[str, Any]:
    if not isinstance(values, Mapping):
        raise EngineError(f"found {quoted(values)} where keys and values should be")
    return values


def _check_text(key: str, text: str, lines: bool = False) -> None:
    """Raise EngineError for texts that are too long for a log or contain control characters.

    lines: allow line breaks.
    """
    allowed = text.replace("\n", "") if lines else text
    if len(text) > _MAX_TEXT or not allowed.isprintable():
        raise EngineError(
            f"{key} is {quoted(text)}: give a text of printable characters, at most {_MAX_TEXT}"
        )


def _from_mapping(cls: type, values: Any, prefix: str) -> Any:
    """Make an instance of a dataclass. Raises EngineError for an unknown or a missing key.

    prefix: put before the keys in error messages, such as "input.".
    """
    fields = {item.name: item for item in dataclasses.fields(cls)}
    for key in _mapping(values):
        if key not in fields:
            guess = nearest(key, fields) if isinstance(key, str) else ""
            raise EngineError(
                f"unknown key {prefix}{one_line(key)}"
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
    """Return the path of the manifest of a model file: model.onnx -> model.manifest.yaml."""
    model = Path(model)
    return model.with_name(f"{model.stem}.manifest.yaml")


def model_files(model: Path) -> list[Path]:
    """Return a model file and the existing files of its external weights, if it has any.

    Exporters put the weights of large models into ``model.onnx.data`` or ``model.onnx_data``; files
    of other names from which the model takes weights come after these, sorted by name.
    """
    usual = [model.name + ending for ending in (".data", "_data")]
    others = sorted(name for name in external_weights(model) if is_beside(name))
    parts = dict.fromkeys(model.parent / name for name in (*usual, *others))
    return [model, *(path for path in parts if path.is_file())]


def model_sha256(model: str | Path) -> str:
    """Return the hexadecimal SHA-256 of a model file and of its external weights, if it has any.

    The files are hashed one after the other in the order of :func:`model_files`.
    """
    digest = hashlib.sha256()
    for part in model_files(Path(model)):
        with part.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def converted_path(model: str | Path, precision: str) -> Path:
    """Return the path of a model's copy in another precision: model.onnx -> model.fp16.onnx."""
    model = Path(model)
    return model.with_name(f"{model.stem}.{precision}.onnx")


def existing_model(model: Path) -> Path:
    """Return the path unchanged. Raises EngineError if it is not a regular file."""
    if model.is_dir():
        raise EngineError(f"model {model} is a folder: name the .onnx file in it")
    if model.exists() and not model.is_file():
        raise EngineError(f"model {model} is no regular file: name the .onnx file itself")
    if not model.is_file():
        raise EngineError(
            f"model file {model} does not exist: check the path, or use `{EMBEDDED}`,"
            " the network that comes with the package"
        )
    return model


def verified_manifest(model: Path, manifest: str | Path | None = None) -> Manifest:
    """Load the manifest of a model file, from beside it unless a path is given.

    Raises EngineError if there is no manifest, if it cannot be used, or if the model file is not
    the one that it describes.
    """
    description = _manifest_of(model, manifest)
    fault = fault_of(model)  # before the hash, whose message would hide the cure for this fault
    if fault:
        raise EngineError(fault)
    digest = model_sha256(model)
    if digest != description.sha256.lower():
        raise EngineError(
            f"model {model} is not the file its manifest describes (sha256 {digest[:12]}… instead"
            f" of {description.sha256[:12]}…): it is damaged or another version; fetch the right"
            f" file, or write a new manifest with `{depth_tools('models manifest')}`"
        )
    return description


def _manifest_of(model: Path, manifest: str | Path | None) -> Manifest:
    if manifest is not None and str(manifest):
        return Manifest.load(os.path.expanduser(manifest))
    beside = manifest_path(model)
    if not beside.is_file():
        raise EngineError(
            f"model {model} has no manifest ({beside.name} beside it), so its input and"
            " output are unknown: write one with"
            f" `{depth_tools(f'models manifest {model} --meaning MEANING')}`"
        )
    return Manifest.load(beside)
