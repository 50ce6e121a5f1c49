# SPDX-License-Identifier: Apache-2.0
"""The registry of networks that are known by name, and the model file of each name.

models/registry.yaml lists the networks. This module downloads nothing (fetch.py does, by explicit
command): opening a network only checks whether its file exists.
"""

from __future__ import annotations

import math
import os
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from depth_node.config import MAX_YAML_BYTES, parse_yaml, read_text
from depth_node.engine import EngineError, depth_tools
from depth_node.engine.manifest import (
    MEANINGS,
    PACKAGED,
    ROLES,
    Manifest,
    converted_path,
    existing_model,
    verified_manifest,
)
from depth_node.engine.preprocess import InputSpec
from depth_node.sentences import nearest, one_line, quoted

_MODELS = Path(__file__).resolve().parent.parent / "models"
REGISTRY = _MODELS / "registry.yaml"
FORMATS = ("onnx", "weights")
HUB = "https://huggingface.co"
_NAME = r"[A-Za-z0-9][A-Za-z0-9._+-]*"


class FetchError(EngineError):
    """A network cannot be fetched or its file is wrong; the message gives cause and cure."""


@dataclass(frozen=True)
class RegistryEntry:
    """A network of the registry; the head of registry.yaml explains the keys.

    ``files`` maps paths in the repository to hexadecimal SHA-256, "" if unknown; the first file is
    the network itself. ``size`` is (height, width) in pixels, ``parameters`` the number of
    parameters in millions. Raises EngineError or ValueError for values that cannot be used.
    """

    name: str
    repo: str
    revision: str
    files: Mapping[str, str]
    format: str
    maker: str
    parameters: float
    licence: str
    meaning: str
    size: tuple[int, int]
    input: Mapping[str, Any]
    patch_size: int = 0
    output_name: str = ""
    non_commercial: bool = False
    export: str = ""
    note: str = ""
    roles: Mapping[str, str] = field(default_factory=dict)
    focal_px: float = 0.0

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not re.fullmatch(_NAME, self.name):
            raise EngineError(
                f"registry: {quoted(self.name)} is no name of a network: use letters, digits, . _"
                " + and -, for it names a folder"
            )
        for key in ("repo", "revision", "maker", "licence", "output_name", "export", "note"):
            text = getattr(self, key)
            if not isinstance(text, str) or not text.isprintable():
                raise EngineError(
                    f"registry: {key} of {self.name} is {quoted(text)}: it must be text in one line"
                )
        for key, kind in (("patch_size", int), ("non_commercial", bool)):
            if type(getattr(self, key)) is not kind:
                raise EngineError(
                    f"registry: {key} of {self.name} is {quoted(getattr(self, key))}: it must be"
                    f" {kind.__name__}"
                )
        if type(self.parameters) not in (int, float) or not 0 < self.parameters < math.inf:
            raise EngineError(
                f"registry: parameters of {self.name} is {quoted(self.parameters)}: give millions"
            )
        if self.format not in FORMATS or self.meaning not in MEANINGS:
            raise EngineError(
                f"registry: {self.name} has format {quoted(self.format)} and meaning"
                f" {quoted(self.meaning)}:"
                f" use {' or '.join(FORMATS)} and one of {', '.join(MEANINGS)}"
            )
        if (
            not isinstance(self.files, Mapping)
            or not self.files
            or not all(re.fullmatch("[0-9a-f]{64}|", str(digest)) for digest in self.files.values())
        ):
            raise EngineError(
                f"registry: files of {self.name} must map paths to a SHA-256 of 64 digits, or to"
                ' "" where it is not known'
            )
        for path in self.files:
            if (
                not isinstance(path, str)
                or not path.isprintable()
                or not re.fullmatch(_NAME, PurePosixPath(path).name.replace(" ", "_"))
            ):
                raise EngineError(
                    f"registry: {self.name} has a file {quoted(path)}: give a path in the"
                    " repository whose last part can be a file name"
                )
        if not isinstance(self.roles, Mapping) or not set(self.roles) <= set(ROLES):
            raise EngineError(
                f"registry: roles of {self.name} are {quoted(self.roles)}: use {', '.join(ROLES)}"
            )
        if (self.meaning == "depth_metric_focal") != (self.focal_px > 0):
            raise EngineError(
                f"registry: focal_px of {self.name} is {quoted(self.focal_px)}: depth_metric_focal,"
                " and only it, needs one"
            )
        object.__setattr__(self, "size", tuple(self.size))
        # Only to check the values now, not after the download.
        InputSpec(*self.size, **self.input)
        _ = self.export_command

    @property
    def main(self) -> str:
        """File name of the network itself."""
        return PurePosixPath(next(iter(self.files))).name

    @property
    def folder(self) -> Path:
        """Folder of its fetched files."""
        return models_folder() / self.name

    @property
    def onnx(self) -> Path:
        """Path of the ONNX file, which is fetched or must be exported from the weights."""
        return self.folder / (self.main if self.format == "onnx" else f"{self.name}.onnx")

    @property
    def export_command(self) -> str:
        """Command that exports the weights to the ONNX file; "" if this package cannot do it."""
        words = {
            "folder": self.folder, "onnx": self.onnx, "name": self.name, "licence": self.licence
        }  # fmt: skip
        return self.export.format(**{key: shlex.quote(str(word)) for key, word in words.items()})

    @property
    def manifest_command(self) -> str:
        """Command that writes the manifest of an ONNX file exported with the authors' package."""
        words = ["models manifest", shlex.quote(str(self.onnx)), "--meaning", self.meaning]
        if self.output_name:
            words += ["--output-name", shlex.quote(self.output_name)]
        if self.focal_px:
            words += ["--focal-px", f"{self.focal_px:g}"]
        for role, name in self.roles.items():
            words += [f"--{role}-output", shlex.quote(name)]
        for key, value in self.input.items():
            given = value if isinstance(value, (list, tuple)) else [value]
            words += [f"--{key.replace('_', '-')}", *(f"{item}" for item in given)]
        return depth_tools(" ".join(words))

    @property
    def page(self) -> str:
        """Web page of the network and its licence."""
        return f"{HUB}/{self.repo}"


def registry() -> dict[str, RegistryEntry]:
    """Return all networks of the registry by name. Raises EngineError if the file is damaged."""
    try:
        text = read_text(REGISTRY, MAX_YAML_BYTES, "the registry")
        values = parse_yaml(text)
        return {name: RegistryEntry(name=name, **fields) for name, fields in values.items()}
    except EngineError as error:
        raise EngineError(one_line(error, 600)) from error
    except Exception as error:  # ConfigError, and any exception that an unexpected value causes
        raise EngineError(
            f"the registry of networks {REGISTRY} cannot be read ({one_line(error, 400)}):"
            " install the package again"
        ) from error


def find(name: str) -> RegistryEntry:
    """Return a network by its name. Raises FetchError, with the most similar name, if unknown."""
    known = registry()
    if name not in known:
        guess = nearest(name, known)
        hint = f" (did you mean {guess}?)" if guess else ""
        raise FetchError(
            f"no network is called {quoted(name)}{hint}: `{depth_tools('models list')}` shows all"
        )
    return known[name]


def models_folder() -> Path:
    """Return the folder of fetched networks: ``$XDG_DATA_HOME/depth_node/models``.

    Without an absolute XDG_DATA_HOME its default, ~/.local/share, is used.
    """
    home = os.environ.get("XDG_DATA_HOME", "")
    base = Path(home) if os.path.isabs(home) else Path.home() / ".local" / "share"
    return base / "depth_node" / "models"


def resolve(name: str) -> Path | None:
    """Return the ONNX file of a registered name; None if the name is not registered.

    ``name.fp16`` is the copy made by `depth_tools models convert`. Raises EngineError with the
    command to run if the file does not exist yet.
    """
    entry = _named(name)
    if entry is None:
        return None
    variant = name[len(entry.name) + 1 :]
    path = entry.onnx if not variant else converted_path(entry.onnx, variant)
    if path.is_file():
        return path
    command = depth_tools(f"models fetch {entry.name}")
    if variant:
        command = depth_tools(f"models convert {entry.name} --precision {variant}")
    elif (entry.folder / entry.main).is_file():  # the weights are fetched
        command = entry.export_command
        if not command:
            raise EngineError(
                f"{entry.name} is here as weights, which do not run: export them with their"
                f" maker's package and put the file at {path}"
            )
    raise EngineError(f"network {name} is not on this machine: run `{command}`")


def _named(name: str) -> RegistryEntry | None:
    """Return the entry of ``name`` or ``name.variant``; None for paths and unknown names."""
    if os.sep in name or name.endswith(".onnx"):
        return None
    known = registry()
    if name in known:
        return known[name]
    stem, dot, variant = name.rpartition(".")
    return known.get(stem) if dot and variant else None


def locate(model: str | Path, manifest: str | Path | None = None) -> tuple[Path, Manifest]:
    """Return the file of a model and its verified manifest.

    ``model`` is a path, one of PACKAGED, or the name of a fetched network. ``manifest`` is a path;
    None: the manifest beside the model. Raises EngineError if a file or manifest is missing or they
    do not belong together.
    """
    if str(model) in PACKAGED:
        path = _MODELS / f"{model}.onnx"
        if not path.is_file():
            raise EngineError(
                f"the embedded network is missing ({path}): install the package again,"
                " or set the model to the path of an .onnx file"
            )
    else:
        path = resolve(str(model)) or existing_model(Path(os.path.expanduser(model)))
    return path, verified_manifest(path, manifest)
