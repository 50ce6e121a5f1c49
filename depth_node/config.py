# SPDX-License-Identifier: Apache-2.0
"""Settings: a tree of frozen dataclasses, read from YAML, `a.b=3` overrides and ROS parameters.

Every module defines its settings beside the code that uses them::

    @dataclass(frozen=True)
    class FitConfig:
        method: str = option("ssf", "How the relative depth becomes metres.", choices=METHODS)
        min_points: int = option(0, "Fewest points of a region; 0 = what the mode says.", minimum=0)

        def __post_init__(self) -> None:
            config.validate(self)

    @dataclass(frozen=True)
    class PipelineConfig:
        fit: FitConfig = section(FitConfig, "The fit of metres to the relative depth.")

Default, meaning, unit and range of a setting are defined only in its option. `build`, `load` and
`replace` refuse a wrong value with one sentence that names the dotted key, and an unknown key with
the nearest known one. Leaves are bool, int, float, str and tuples of these, the types that YAML and
ROS parameters share; there is no None (use "" or 0 and say so in the description).
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
import typing
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import yaml

from depth_node.regular_files import read_bytes
from depth_node.sentences import nearest, one_line, quoted

_OPTION = "depth_node.option"
_SECTION = "depth_node.section"
_SCALARS: tuple[type, ...] = (bool, int, float, str)
# Settings, manifests and the registry are a few kB; 256 kB of YAML take PyYAML seconds.
MAX_YAML_BYTES = 256_000
_MAX_YAML_VALUES = 20_000  # after aliases are written out
_MAX_YAML_DEPTH = 40

T = TypeVar("T")


class ConfigError(ValueError):
    """A setting cannot be used; the message names the key, the fault and the allowed values."""


@dataclass(frozen=True)
class _Rule:
    """The arguments of `option` of one field."""

    description: str
    unit: str
    minimum: float | None
    maximum: float | None
    choices: tuple[Any, ...]
    read_only: bool


@dataclass(frozen=True)
class Option:
    """One leaf of a config tree, for documentation and ROS descriptors.

    type is bool, int, float or str; for tuples it is the type of the elements, `is_list` is True
    and `length` the fixed number of elements (0 = any).
    """

    name: str
    type: type
    default: Any
    description: str
    unit: str = ""
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[Any, ...] = ()
    read_only: bool = False
    is_list: bool = False
    length: int = 0

    @property
    def type_name(self) -> str:
        """The type as text: `float`, `str`, `list of 3 float`."""
        if not self.is_list:
            return self.type.__name__
        return (
            f"list of {self.length} {self.type.__name__}"
            if self.length
            else f"list of {self.type.__name__}"
        )

    def check(self, value: Any) -> Any:
        """Return the value in its exact type (list to tuple, int to float). Raises ConfigError."""
        if not self.is_list:
            return self._check_scalar(value)
        unordered = isinstance(value, (str, bytes, Mapping, Set))
        if unordered or not isinstance(value, Iterable):
            raise ConfigError(f"{self.name} must be a {self.type_name}, got {quoted(value)}")
        items = tuple(value)
        if self.length and len(items) != self.length:
            raise ConfigError(f"{self.name} must be a {self.type_name}, got {len(items)} elements")
        return tuple(self._check_scalar(item) for item in items)

    def _check_scalar(self, value: Any) -> Any:
        if hasattr(value, "item") and getattr(value, "ndim", None) == 0:  # a NumPy scalar
            value = value.item()
        wrong = type(value) is not self.type and not (self.type is float and type(value) is int)
        if not wrong and self.type is float:
            try:
                value = float(value)
            except OverflowError:  # an integer of 400 digits
                wrong = True
        if wrong or (self.type is float and math.isnan(value)):
            raise ConfigError(f"{self.name} must be {self.type_name}, got {quoted(value)}")
        if self.type is int and not -(2**63) <= value < 2**63:  # the range of ROS parameters
            raise ConfigError(f"{self.name} must be an integer of 64 bits, got {quoted(value)}")
        if self.choices and value not in self.choices:
            allowed = ", ".join(str(choice) for choice in self.choices)
            guess = nearest(str(value), [str(choice) for choice in self.choices])
            raise ConfigError(
                f"{self.name} must be one of {allowed}; got {quoted(value)}{_did_you_mean(guess)}"
            )
        too_small = self.minimum is not None and value < self.minimum
        too_large = self.maximum is not None and value > self.maximum
        if too_small or too_large:
            unit = f" {self.unit}" if self.unit else ""
            allowed = f"{_range_text(self.minimum, self.maximum)}{unit}"
            raise ConfigError(f"{self.name} must be {allowed}, got {quoted(value)}")
        return value


def option(
    default: Any,
    description: str,
    *,
    unit: str = "",
    minimum: float | None = None,
    maximum: float | None = None,
    choices: Sequence[Any] = (),
    read_only: bool = False,
) -> Any:
    """Define a leaf of a config dataclass.

    Bounds are inclusive and apply to every element of a tuple. read_only: a running node cannot
    change the value; it is fixed when the node is created.
    """
    rule = _Rule(description, unit, minimum, maximum, tuple(choices), read_only)
    return dataclasses.field(default=default, metadata={_OPTION: rule})


def section(cls: type, description: str, **defaults: Any) -> Any:
    """Define a nested config dataclass; `defaults` replace those of `cls` in this section."""
    factory = functools.partial(cls, **defaults)
    return dataclasses.field(default_factory=factory, metadata={_SECTION: (cls, description)})


def build(cls: type[T], values: Mapping[str, Any]) -> T:
    """Create a validated instance of `cls` from nested mappings; missing keys keep their defaults.

    Raises ConfigError for an unknown key or a value that cannot be used.
    """
    return _build(cls, values, "", cls())


def load(cls: type[T], path: str | Path, overrides: Sequence[str] = ()) -> T:
    """Create a validated `cls` from a YAML file and `a.b=3` overrides (the last one wins).

    Raises ConfigError if the file cannot be read or a key or value cannot be used.
    """
    path = Path(path)
    text = read_text(path, MAX_YAML_BYTES, "the config file")
    try:
        values = parse_yaml(text)
        if values is None:
            values = {}
        if not isinstance(values, Mapping):
            raise ConfigError(f"must be a mapping of keys to values, got {type(values).__name__}")
        if any(isinstance(part, Mapping) and "ros__parameters" in part for part in values.values()):
            raise ConfigError(
                "this is a parameter file of ROS: give a file with what stands below"
                " ros__parameters, without the node's own settings"
            )
        return override(build(cls, values), overrides)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def read_text(path: Path, limit: int, noun: str = "the file") -> str:
    """Return the UTF-8 text of a regular file of at most `limit` bytes.

    Raises ConfigError, which names the file, for anything else: a pipe, which would never end, a
    device, a folder, another encoding, a larger file. noun: names the file in the sentence.
    """
    shown = one_line(path, 1000)
    try:
        content = read_bytes(path, limit)
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"cannot read {noun} {shown}: byte {error.start} is no UTF-8; save it as UTF-8 text"
        ) from error
    except OSError as error:
        raise ConfigError(
            f"cannot read {noun} {shown}: {error.strerror or one_line(error)}; check the path"
        ) from error
    except ValueError as error:  # a path with a NUL
        raise ConfigError(f"cannot read {noun} {shown}: {one_line(error)}") from error


def override(config: T, overrides: Sequence[str]) -> T:
    """Return the config changed by `a.b=3` texts; values are YAML, a str option takes the text.

    Raises ConfigError if a text has no `=` or a key or value cannot be used.
    """
    types = {item.name: item for item in describe(type(config))}
    changes: dict[str, Any] = {}
    for text in overrides:
        name, equals, raw = text.partition("=")
        name = name.strip()
        if not equals or not name:
            raise ConfigError(f"override {quoted(text)} must look like key=value")
        try:
            value = parse_yaml(raw)
        except ConfigError as error:
            raise ConfigError(f"{one_line(name)}: {error}") from error
        known = types.get(name)
        if (
            known is not None
            and known.type is str
            and not known.is_list
            and not isinstance(value, str)
        ):
            value = raw.strip()
        changes[name] = value
    return replace(config, changes)


def replace(config: T, changes: Mapping[str, Any]) -> T:
    """Return a validated copy with dotted keys changed: replace(c, {"fit.method": "slf"}).

    Raises ConfigError for an unknown key or a value that cannot be used.
    """
    known = flatten(config)
    nested = to_dict(config)
    for name, value in changes.items():
        if name not in known:
            guess = nearest(str(name), known)
            raise ConfigError(f"unknown setting {quoted(name)}{_did_you_mean(guess)}")
        *parents, leaf = name.split(".")
        target = nested
        for parent in parents:
            target = target[parent]
        target[leaf] = value
    return build(type(config), nested)


def validate(config: Any) -> None:
    """Check every option of an instance and convert it to its exact type; for `__post_init__`.

    Raises ConfigError for a value that cannot be used.
    """
    for field, item in _leaves(config.__class__):
        object.__setattr__(config, field.name, item.check(getattr(config, field.name)))
    for field, cls, _ in _sections(type(config)):
        if not isinstance(getattr(config, field.name), cls):
            value = quoted(getattr(config, field.name))
            raise ConfigError(f"{field.name} must be a {cls.__name__}, got {value}")


def to_dict(config: Any) -> dict[str, Any]:
    """Return a nested dict of plain values (tuples as lists), in field order."""
    result: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if _SECTION in field.metadata:
            result[field.name] = to_dict(value)
        else:
            result[field.name] = list(value) if isinstance(value, tuple) else value
    return result


def dump(config: Any) -> str:
    """Return YAML text from which `load` makes an equal config."""
    return yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True)


def flatten(config: Any) -> dict[str, Any]:
    """Return dotted name -> value (tuples stay tuples), in field order."""
    result: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if _SECTION in field.metadata:
            result.update({f"{field.name}.{name}": leaf for name, leaf in flatten(value).items()})
        else:
            result[field.name] = value
    return result


def describe(cls: type) -> list[Option]:
    """Return every leaf below `cls` with its dotted name and its default in this tree."""
    defaults = flatten(cls())
    return [dataclasses.replace(item, default=defaults[item.name]) for item in _describe(cls)]


def _did_you_mean(guess: str) -> str:
    return f"; did you mean {guess!r}?" if guess else ""


def _range_text(minimum: float | None, maximum: float | None) -> str:
    if minimum is not None and maximum is not None:
        return f"between {minimum:g} and {maximum:g}"
    return f"at least {minimum:g}" if minimum is not None else f"at most {maximum:g}"


def _build(cls: type[T], values: Mapping[str, Any], prefix: str, defaults: Any) -> T:
    if not isinstance(values, Mapping):
        raise ConfigError(
            f"{prefix.rstrip('.')} must be a mapping of keys to values, got {quoted(values)}"
        )
    known = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
    for key in values:
        if key not in known:
            guess = nearest(key, known) if isinstance(key, str) else ""
            hint = (
                _did_you_mean(f"{prefix}{guess}") if guess else f"; known here: {', '.join(known)}"
            )
            shown = quoted(f"{prefix}{key}") if isinstance(key, str) else prefix + quoted(key)
            raise ConfigError(f"unknown setting {shown}{hint}")
    arguments = {name: getattr(defaults, name) for name in known}
    for field, item in _leaves(cast(Any, cls)):
        if field.name in values:
            named = dataclasses.replace(item, name=f"{prefix}{item.name}")
            arguments[field.name] = named.check(values[field.name])
    for field, section_cls, _ in _sections(cls):
        if field.name in values:
            name = f"{prefix}{field.name}."
            arguments[field.name] = _build(
                section_cls, values[field.name], name, arguments[field.name]
            )
    try:
        return cls(**arguments)
    except ConfigError as error:  # two options contradict each other (__post_init__)
        raise ConfigError(f"{prefix.rstrip('.')}: {error}" if prefix else str(error)) from error


def _describe(cls: type) -> list[Option]:
    leaves = {field.name: [item] for field, item in _leaves(cls)}
    for field, section_cls, _ in _sections(cls):
        leaves[field.name] = [
            dataclasses.replace(item, name=f"{field.name}.{item.name}")
            for item in _describe(section_cls)
        ]
    return [item for field in dataclasses.fields(cls) for item in leaves[field.name]]


@functools.cache
def _leaves(cls: type) -> tuple[tuple[dataclasses.Field[Any], Option], ...]:
    hints = typing.get_type_hints(cls)
    result = []
    for field in dataclasses.fields(cls):
        if _SECTION in field.metadata:
            continue
        rule = field.metadata.get(_OPTION)
        if rule is None:
            raise TypeError(
                f"{cls.__name__}.{field.name} needs config.option(...) or config.section(...)"
            )
        kind, is_list, length = _leaf_type(hints[field.name], f"{cls.__name__}.{field.name}")
        item = Option(
            field.name,
            kind,
            field.default,
            rule.description,
            rule.unit,
            rule.minimum,
            rule.maximum,
            rule.choices,
            rule.read_only,
            is_list,
            length,
        )
        result.append((field, item))
    return tuple(result)


def _sections(cls: type) -> list[tuple[dataclasses.Field[Any], type, str]]:
    fields = dataclasses.fields(cls)
    return [(field, *field.metadata[_SECTION]) for field in fields if _SECTION in field.metadata]


def _leaf_type(hint: Any, where: str) -> tuple[type, bool, int]:
    """Return (scalar type, whether it is a tuple, fixed length or 0) of an annotation."""
    if hint in _SCALARS:
        return hint, False, 0
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is tuple and arguments and arguments[0] in _SCALARS:
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return arguments[0], True, 0
        if all(argument is arguments[0] for argument in arguments):
            return arguments[0], True, len(arguments)
    raise TypeError(
        f"{where}: {hint} is no type of a setting; use bool, int, float, str or a tuple of one"
    )


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads 1e-3 as a number (YAML 1.1: a text) and refuses duplicate keys.

    For the limit on the number of values an alias counts as all that it stands for: nine lines of
    aliases can expand to a gigabyte. If `aliases` is False, they are refused.
    """

    aliases = True

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._sizes: dict[int, int] = {}
        self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Compose a node as PyYAML does, but of bounded size and depth. Raises ConfigError."""
        line = self.peek_event().start_mark.line + 1
        is_alias = self.check_event(yaml.AliasEvent)
        if is_alias and not self.aliases:
            raise ConfigError(f"an alias (*name, line {line}) is not used here: write it out")
        self._depth += 1
        if self._depth > _MAX_YAML_DEPTH:
            raise ConfigError(f"too many brackets within each other (line {line})")
        node = super().compose_node(parent, index)
        self._depth -= 1
        if node is None or id(node) in self._sizes:
            return node
        if is_alias:  # its node is not complete: it contains the alias
            raise ConfigError(f"an alias stands for itself (line {line}): write it out")
        children: list[Any] = []
        if isinstance(node, yaml.SequenceNode):
            children = node.value
        elif isinstance(node, yaml.MappingNode):
            self._check_keys(node)
            children = [part for pair in node.value for part in pair]
        size = 1 + sum(self._sizes[id(child)] for child in children)
        if size > _MAX_YAML_VALUES:
            raise ConfigError(
                f"more than {_MAX_YAML_VALUES} values (line {line}): that is no settings file"
            )
        self._sizes[id(node)] = size
        return node

    def _check_keys(self, node: yaml.MappingNode) -> None:
        """Raise ConfigError for a key that is not a scalar, or that is given twice.

        Checked before `<<` is merged, because a mapping's own keys may replace merged ones.
        """
        keys: set[Any] = set()
        for key_node, _ in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                raise ConfigError(f"a key is a list or a mapping (line {line}): give a word")
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node)
            if key in keys:
                raise ConfigError(f"the key {quoted(key)} is given twice (line {line}); remove one")
            keys.add(key)


class _PlainLoader(_Loader):
    """A loader for untrusted files, such as those that come with a model."""

    aliases = False


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def parse_yaml(text: str, *, aliases: bool = True) -> Any:
    """Return the value of a YAML text: plain values only, bounded in size.

    aliases: whether `*name` may stand for what was written before; use False for untrusted files.
    Raises ConfigError, one sentence, for every text that cannot be read.
    """
    try:
        loader = (_Loader if aliases else _PlainLoader)(text)
        try:  # a SafeLoader, which creates no Python objects
            return loader.get_single_data()
        finally:
            loader.dispose()
    except ConfigError:
        raise
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        position = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or error
        raise ConfigError(f"not valid YAML{position}: {one_line(problem)}") from error
    except RecursionError as error:
        raise ConfigError("not valid YAML: too many brackets within each other") from error
    except Exception as error:  # constructors fail on 2001-99-99, !!int x, 5000 digits
        raise ConfigError(
            f"not valid YAML: a value cannot be read ({one_line(error)}); put a text in quotes"
        ) from error
