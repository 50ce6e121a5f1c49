# SPDX-License-Identifier: Apache-2.0
"""Networks behind one door: a manifest says what a model file is, open_engine() makes it run.

The manifest beside a model is the treaty between training and run time: input size, colour order,
normalisation and the meaning of the output stand there and nowhere else. A model without one is
refused.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
import numpy.typing as npt
import yaml

from depth_node.config import nearest
from depth_node.prediction import KINDS
from depth_node.preprocess import InputSpec

PROMPTS = "region_prompts"  # an encoder that needs its prompt decoder
PROMPT_DECODER = "prompt_masks"  # the second half of PROMPTS, opened by the first
REGION_MEANINGS = ("region_masks", "region_labels", "region_edges", PROMPTS)
MEANINGS = (*KINDS, *REGION_MEANINGS, PROMPT_DECODER)
EMBEDDED = "embedded"
_Self = TypeVar("_Self")
_EMBEDDED_FILE = Path(__file__).resolve().parent.parent / "models" / "embedded.onnx"


class EngineError(RuntimeError):
    """A model cannot be opened or run; the sentence names the cause and the cure."""


class BackendError(EngineError):
    """A back end that this machine cannot use, whatever the model."""


# --- the manifest --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Manifest:
    """What a model file is. Kept as YAML in ``<stem>.manifest.yaml`` beside the model.

    ``model`` is the file's name; ``sha256`` that of the file and of its external weights;
    ``meaning`` one of MEANINGS; ``patch_size`` of a transformer (0: none). Raises EngineError for
    values that cannot be used.

    A model with several outputs that belong together names them all in ``outputs``, the first of
    which is ``output_name``. A model that is fed with other tensors than one picture names them
    with their shapes in ``inputs`` (all float32, the first is ``input_name``); its ``input`` is
    then the picture that they come from. ``decoder`` is the file, beside an encoder of meaning
    "region_prompts", that makes masks of its outputs and of points in the picture.

    ``limits`` says how far an engine may be from ONNX Runtime on the CPU (engine/check.py) where
    the usual limits do not suit the model.
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
        """Every input tensor and its shape: the picture alone, or those of ``inputs``."""
        return dict(self.inputs) or {self.input_name: self.input.shape}

    @property
    def output_names(self) -> tuple[str, ...]:
        """Every output that is asked for."""
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
        """Write the manifest as YAML that load() reads back to an equal manifest."""
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
    """An instance of a dataclass, refusing unknown keys and naming missing ones."""
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
    """Where the manifest of a model file lies: model.onnx -> model.manifest.yaml."""
    model = Path(model)
    return model.with_name(f"{model.stem}.manifest.yaml")


def model_sha256(model: str | Path) -> str:
    """Hexadecimal SHA-256 of a model file and, if it has any, of its external weights.

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

    What the file cannot say is given: ``meaning``, the input options of InputSpec that are not
    their defaults (channel_order, scale, mean, std, resize, interpolation), ``output_name`` if
    there are several outputs, ``height`` and ``width`` if the file leaves them open, ``outputs``
    if several belong together, the ``decoder`` of region_prompts. A prompt decoder may have any
    inputs; ``height`` and ``width`` are those of its encoder's input. The manifest goes beside the
    model unless ``manifest`` names another place. Raises EngineError.
    """
    model = _existing(Path(model))
    from depth_node.engine import ort  # the probing is done by the back end that reads ONNX

    inputs, found_outputs = ort.probe(model)
    prompted = meaning == PROMPT_DECODER
    if len(inputs) != 1 and not prompted:
        raise EngineError(
            f"model {model} has {len(inputs)} inputs ({', '.join(item.name for item in inputs)}):"
            " only models with one input, the picture, can be used; export it so"
        )
    tensor = inputs[0]
    if not prompted and (len(tensor.shape) != 4 or tensor.shape[1] not in (3, None)):
        raise EngineError(
            f"model {model} has an input of shape {tensor.shape}: export it with one picture of"
            " shape (1, 3, height, width)"
        )
    for item in inputs if prompted else ():
        if None in item.shape or item.dtype != "float32":
            raise EngineError(
                f"prompt decoder {model} has an input {item.name} of shape {item.shape} and type"
                f" {item.dtype or 'unknown'}: export it with fixed shapes and float32"
            )
    names = [item.name for item in found_outputs]
    output_name = output_name or (outputs[0] if outputs else "")
    if not output_name and len(names) > 1:
        raise EngineError(
            f"model {model} has the outputs {', '.join(names)}: say which one is meant"
        )
    size = {}
    for key, given, found in (
        ("height", height, None if prompted else tensor.shape[2]),
        ("width", width, None if prompted else tensor.shape[3]),
    ):
        if not (given or found):
            raise EngineError(f"model {model} leaves the input's {key} open: say which one to use")
        size[key] = given or found
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
        inputs={item.name: _whole(item.shape) for item in inputs} if prompted else {},
        outputs=tuple(outputs),
    )
    with ort.OrtEngine(model, written):  # names, shape and type are checked as at run time
        written.save(manifest_path(model) if manifest is None else manifest)
    return written


def _whole(shape: tuple[int | None, ...]) -> tuple[int, ...]:
    return tuple(size or 0 for size in shape)


class Closing:
    """Something that is closed at the end of a `with` statement."""

    def close(self) -> None:
        """Free everything; safe to call twice."""
        raise NotImplementedError

    def __enter__(self: _Self) -> _Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


# --- engines -------------------------------------------------------------------------------------


class Engine(Protocol):
    """A network ready to run, whatever runs it. Not for use by several threads at once."""

    @property
    def manifest(self) -> Manifest:
        """What the model is."""

    @property
    def backend(self) -> str:
        """What runs it, such as "onnxruntime-cpu"."""

    @property
    def details(self) -> dict[str, Any]:
        """What an operator may want to know: versions, providers really used, threads."""

    def run(self, tensor: npt.NDArray) -> npt.NDArray:
        """Input tensor of the manifest's shape and type -> the output that the manifest names.

        The array belongs to the caller: the next run does not change it. Raises EngineError.
        """

    def run_named(self, tensors: Mapping[str, npt.NDArray]) -> dict[str, npt.NDArray]:
        """Every input of ``manifest.input_shapes`` -> every output of ``manifest.output_names``.

        As run(), for models of several inputs or outputs. Raises EngineError.
        """

    def close(self) -> None:
        """Free everything; run() then raises EngineError."""

    def __enter__(self) -> Engine: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...


@runtime_checkable
class PictureEngine(Engine, Protocol):
    """An engine that makes the input tensor itself, where the network runs."""

    def run_picture(self, image: npt.NDArray[np.uint8]) -> npt.NDArray:
        """(H, W, 3) uint8 RGB -> what run() gives for preprocess.to_tensor of it."""


Progress = Callable[[str, int, int], None]
"""Told of a build: what is being done, how many steps of it are done, of how many."""


def backends() -> dict[str, str]:
    """Every known back end -> "" if it can be used here, else what is missing and the cure."""
    from depth_node.engine import opening

    return opening.backends()


def open_engine(model: str | Path, *, manifest: str | Path | None = None, **options: Any) -> Engine:
    """Open a model file ("embedded": the network that comes with the package), verified and warm.

    ``manifest`` is looked for beside the model unless given. ``options`` are those of
    opening.ModelConfig: backend, threads, precision and so on. Takes seconds for a large model,
    minutes where an engine is built. Raises EngineError with the cause and the cure.
    """
    from depth_node.engine import opening

    return opening.open_model(opening.configured(model, manifest, options))


def build(
    model: str | Path,
    *,
    manifest: str | Path | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Build the TensorRT engine of a model ahead, into the cache, and check it.

    ``options`` as in open_engine. Returns the engine's details: key, file, check and so on; an
    engine that is there already is only checked. Raises EngineError.
    """
    from depth_node.engine import opening

    config = opening.configured(
        model, manifest, {"backend": "tensorrt", **options, "build_engines": True}
    )
    with opening.open_model(config, progress) as engine:
        return dict(engine.details)


def converted_path(model: str | Path, precision: str) -> Path:
    """Where the copy of a model in another precision lies: model.onnx -> model.fp16.onnx."""
    model = Path(model)
    return model.with_name(f"{model.stem}.{precision}.onnx")


def locate(model: str | Path, manifest: str | Path | None = None) -> tuple[Path, Manifest]:
    """The file of a model and its manifest. Raises EngineError if they differ.

    ``model`` is a path, "embedded", or the name of a network that was fetched (see zoo.py).
    """
    if str(model) == EMBEDDED:
        path = _EMBEDDED_FILE
        if not path.is_file():
            raise EngineError(
                f"the embedded network is missing ({path}): install the package again,"
                " or set the model to the path of an .onnx file"
            )
    else:
        from depth_node import zoo  # networks that were fetched are opened by their names

        path = zoo.resolve(str(model)) or _existing(Path(model).expanduser())
    facts = _manifest_of(path, manifest)
    found = model_sha256(path)
    if found != facts.sha256.lower():
        raise EngineError(
            f"model {path} is not the file its manifest describes (sha256 {found[:12]}… instead of"
            f" {facts.sha256[:12]}…): it is damaged or another version; fetch the right file, or"
            " write a new manifest with `depth_tools models manifest`"
        )
    return path, facts


def _existing(model: Path) -> Path:
    if model.is_dir():
        raise EngineError(f"model {model} is a folder: name the .onnx file in it")
    if not model.is_file():
        raise EngineError(
            f"model file {model} does not exist: check the path, or use `{EMBEDDED}`,"
            " the network that comes with the package"
        )
    return model


def _manifest_of(model: Path, manifest: str | Path | None) -> Manifest:
    if manifest is not None and str(manifest):
        return Manifest.load(Path(manifest).expanduser())
    beside = manifest_path(model)
    if not beside.is_file():
        raise EngineError(
            f"model {model} has no manifest ({beside.name} beside it), so nobody knows what it"
            f" wants and gives: write one with `depth_tools models manifest {model}"
            " --meaning MEANING`"
        )
    return Manifest.load(beside)


def check_tensor(tensor: npt.NDArray, manifest: Manifest) -> None:
    """EngineError unless the tensor has the shape and type that the manifest asks for."""
    if tensor.shape != manifest.input.shape or tensor.dtype != np.dtype(manifest.input.dtype):
        raise EngineError(
            f"tensor of shape {tensor.shape} and type {tensor.dtype} for model {manifest.name}:"
            f" its manifest asks for {manifest.input.shape} and {manifest.input.dtype};"
            " make it with preprocess.to_tensor"
        )


def check_tensors(tensors: Mapping[str, npt.NDArray], manifest: Manifest) -> None:
    """EngineError unless these are the inputs of the manifest, each of its shape."""
    wanted = manifest.input_shapes
    if set(tensors) != set(wanted):
        raise EngineError(
            f"model {manifest.name} takes {', '.join(wanted)}, not"
            f" {', '.join(tensors) or 'nothing'}: give the tensors that its manifest names"
        )
    dtype = np.dtype("float32" if manifest.inputs else manifest.input.dtype)
    for name, tensor in tensors.items():
        if tensor.shape != wanted[name] or tensor.dtype != dtype:
            raise EngineError(
                f"{name} of model {manifest.name} has shape {tensor.shape} and type {tensor.dtype},"
                f" its manifest asks for {wanted[name]} and {dtype}: give a model or a decoder that"
                " fits"
            )
