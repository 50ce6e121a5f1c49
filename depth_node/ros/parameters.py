# SPDX-License-Identifier: Apache-2.0
"""The ROS parameters of a node and their documentation, generated from a tree of settings."""

from __future__ import annotations

import array
import difflib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
from rclpy.node import Node
from rclpy.parameter import Parameter

from depth_node.config import ConfigError, Option, describe, replace
from depth_node.ros.messages import brief
from depth_node.ros.settings import ESSENTIAL, NEEDS_CLEANUP, NEEDS_DEACTIVATE, RENAMED, NodeConfig

# Topics of other code in this process, whose QoS a parameter file may override.
_FOREIGN_TOPICS = ("/clock", "/parameter_events", "/rosout", "/tf", "/tf_static")

_TYPES = {
    bool: (Parameter.Type.BOOL, Parameter.Type.BOOL_ARRAY),
    int: (Parameter.Type.INTEGER, Parameter.Type.INTEGER_ARRAY),
    float: (Parameter.Type.DOUBLE, Parameter.Type.DOUBLE_ARRAY),
    str: (Parameter.Type.STRING, Parameter.Type.STRING_ARRAY),
}
_LARGEST_FLOAT = float(np.finfo(np.float64).max)
_LARGEST_INT = 2**63 - 1
_OWN_SECTIONS = (
    "model.",
    "region_model.",
    "projection.",
    "segmentation.",
    "fit.",
    "publish.",
    "obstacles.",
    "qos_overrides.",
)
_NEAR = 0.8  # similarity above which a name is taken for a misspelt other
_MOST_COMPARED = 100  # unknown names that are compared with the known ones; comparing takes time
_MOST_TOLD = 5
_LONGEST_NAME = 200


def descriptor(item: Option) -> ParameterDescriptor:
    """Return the descriptor of an option, which `ros2 param describe` shows."""
    text = item.description + (f" [{item.unit}]" if item.unit else "")
    result = ParameterDescriptor(name=item.name, description=text, read_only=item.read_only)
    notes = [f"one of {', '.join(map(str, item.choices))}"] if item.choices else []
    if item.name.startswith(NEEDS_CLEANUP):
        notes.append("can be set while the node is unconfigured")
    if item.name in NEEDS_DEACTIVATE:
        notes.append("can be set while the node is not active")
    result.additional_constraints = "; ".join(notes)
    bounded = item.minimum is not None or item.maximum is not None
    if bounded and not item.is_list and item.type is float:
        low = -_LARGEST_FLOAT if item.minimum is None else float(item.minimum)
        high = _LARGEST_FLOAT if item.maximum is None else float(item.maximum)
        result.floating_point_range = [FloatingPointRange(from_value=low, to_value=high)]
    if bounded and not item.is_list and item.type is int:
        low_int = -_LARGEST_INT if item.minimum is None else int(item.minimum)
        high_int = _LARGEST_INT if item.maximum is None else int(item.maximum)
        result.integer_range = [IntegerRange(from_value=low_int, to_value=high_int)]
    return result


class NodeParameters:
    """The ROS parameters of a node, declared from a tree of settings and kept equal to a
    NodeConfig.

    `problems`: name -> sentence, for invalid values of the parameter file or the command line.
    Those parameters have their defaults until a valid value is set.
    """

    def __init__(self, node: Node) -> None:
        self._options = {item.name: item for item in describe(NodeConfig)}
        self._node = node
        self.problems: dict[str, str] = {}
        given: Mapping[str, Parameter] = node._parameter_overrides  # rclpy has no public access
        values: dict[str, Any] = {}
        for name, item in self._options.items():
            value = item.default
            if name in given:
                try:
                    value = values[name] = item.check(_plain(given[name].value, item))
                except ConfigError as error:
                    self.problems[name] = str(error)
            _declare(node, item, value)
        self.config = NodeConfig()
        try:
            self.config = replace(self.config, values)
        except ConfigError:  # values contradict each other: set them one by one, report the others
            for name, value in values.items():
                try:
                    self.config = replace(self.config, {name: value})
                except ConfigError as error:
                    self.problems[name] = str(error)

    def unknown(self, topics: Mapping[str, str]) -> tuple[list[str], str]:
        """Return sentences on parameters that are given to this node but that it does not have.

        The first list is about names that are meant for it: renamed ones, or similar to one of its
        own. The second is a warning about all others, which may belong to another node in a shared
        file, or "". topics: resolved name -> publisher or subscription, for
        `qos_overrides.<topic>...`.
        """
        wrong: list[str] = []
        foreign: list[str] = []
        overrides: list[str] = []  # names of this node's qos_overrides
        for topic, kind in topics.items():
            policies = ("history", "depth", "reliability")
            overrides += [f"qos_overrides.{topic}.{kind}.{policy}" for policy in policies]
        for name in self._node._parameter_overrides:
            if self._node.has_parameter(name) or name == "start_type_description_service":
                continue
            if name.startswith("qos_overrides."):
                topic, _, rest = name[len("qos_overrides.") :].partition(".")
                if topic in _FOREIGN_TOPICS or topics.get(topic, "") == rest.partition(".")[0]:
                    continue
            if name in RENAMED:
                now = RENAMED[name]
                wrong.append(
                    f"parameter {name} is now called {now}: use the new name"
                    if now in self._options
                    else f"parameter {name} no longer exists: {now}"
                )
                continue
            shown = brief(name)
            own = name.startswith(_OWN_SECTIONS)
            enough = (len(wrong) if own else len(foreign)) >= _MOST_COMPARED
            if enough or len(name) > _LONGEST_NAME:
                (wrong if own else foreign).append(f"unknown parameter {shown}" if own else shown)
                continue
            known = overrides if name.startswith("qos_overrides.") else self._options
            guess = _near_miss(name, known)
            if guess:
                wrong.append(f"unknown parameter {shown}: did you mean {guess}?")
            elif own:
                wrong.append(
                    f"unknown parameter {shown}: `ros2 param list` shows those the node has"
                )
            else:
                foreign.append(shown)
        warning = ""
        if foreign:
            names = ", ".join(foreign[:_MOST_TOLD])
            more = len(foreign) - _MOST_TOLD
            others = f" and {more} more" if more > 0 else ""
            warning = (
                f"unknown parameter {names}{others}: ignored, as another node's in a shared file;"
                " `ros2 param list` shows those this node has"
            )
        if len(wrong) > _MOST_TOLD:
            wrong = [*wrong[:_MOST_TOLD], f"and {len(wrong) - _MOST_TOLD} more unknown parameters"]
        return wrong, warning

    def unknown_name(self, name: str) -> str:
        """Return the sentence on one name that the node does not have."""
        guess = _near_miss(name, self._options) if len(name) <= _LONGEST_NAME else ""
        hint = f"did you mean {guess}?" if guess else "`ros2 param list` shows those the node has"
        return f"unknown parameter {brief(name)!r}: {hint}"

    def changes(self, parameters: list[Parameter]) -> list[Parameter]:
        """Return the parameters of a request that change a value, in their own types."""
        result = []
        for parameter in parameters:
            item = self._options.get(parameter.name)
            if item is not None and parameter.type_ != Parameter.Type.NOT_SET:
                value = _plain(parameter.value, item)
                try:
                    checked = item.check(value)
                except ConfigError:
                    pass  # changed() refuses it with the reason
                else:
                    parameter = _parameter(item, checked)
            if self._node.has_parameter(parameter.name):
                present = self._node.get_parameter(parameter.name)
                if present.type_ == parameter.type_ and _same(present.value, parameter.value):
                    self.problems.pop(parameter.name, None)
                    continue
            result.append(parameter)
        return result

    def changed(self, parameters: list[Parameter]) -> NodeConfig:
        """Return the settings after a set request, without applying them. Raises ConfigError."""
        changes = {
            p.name: _plain(p.value, self._options[p.name])
            for p in parameters
            if p.name in self._options
        }
        return replace(self.config, changes) if changes else self.config

    def accept(self, config: NodeConfig, parameters: list[Parameter]) -> None:
        """Apply the settings that `changed` returned."""
        self.config = config
        for parameter in parameters:
            self.problems.pop(parameter.name, None)


def _plain(value: Any, item: Option) -> Any:
    """Return a value from ROS in the type that the option means.

    The YAML of parameter files and of the command line turns yes and on into true, a word of digits
    into a number, a whole number written 640.0 into a float, and an empty list into nothing.
    """
    if isinstance(value, array.array):
        value = value.tolist()
    if item.is_list:
        return [] if value is None else value
    if item.type is str and isinstance(value, bool):
        words = {True: ("yes", "on", "true"), False: ("no", "off", "false")}[value]
        return next((word for word in words if word in item.choices), value)
    if item.type is str and isinstance(value, (int, float)) and not item.choices:
        return str(value)
    if item.type is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if item.type is bool and isinstance(value, int) and value in (0, 1):
        return bool(value)
    return value


def _same(present: Any, new: Any) -> bool:
    """Return whether two values of one type are equal; arrays come as several types of sequence."""
    if isinstance(present, (str, bytes)) or not hasattr(present, "__len__"):
        return bool(present == new)
    return list(present) == list(new)


def _near_miss(name: str, known: Iterable[str]) -> str:
    """Return the known name that `name` probably means, or "" if it resembles none closely.

    A name without a dot may be the last part of a known one.
    """
    names = list(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=_NEAR)
    if close or "." in name:
        return close[0] if close else ""
    leaves = {candidate.rpartition(".")[2]: candidate for candidate in reversed(names)}
    close = difflib.get_close_matches(name, leaves, n=1, cutoff=_NEAR)
    return leaves[close[0]] if close else ""


def _parameter(item: Option, value: Any) -> Parameter:
    kind = _TYPES[item.type][item.is_list]
    return Parameter(item.name, kind, list(value) if item.is_list else value)


def _declare(node: Node, item: Option, value: Any) -> None:
    parameter = _parameter(item, value)
    if item.is_list and not value:
        # An empty list has no type: declare the type first, then set the value.
        kind = parameter.type_
        node.declare_parameter(item.name, kind, descriptor(item), ignore_override=True)
        node.set_parameters([parameter])
    else:
        node.declare_parameter(item.name, parameter.value, descriptor(item), ignore_override=True)


def markdown() -> str:
    """Return docs/parameters.md: each parameter's type, default, range, unit and description."""
    options = {item.name: item for item in describe(NodeConfig)}
    return "\n".join(
        [
            "<!-- Written by `make docs` from the code; edit the code. -->",
            "# Parameters",
            "",
            "Set parameters in a YAML file (`--ros-args --params-file`, or `params_file:=` of the"
            " launch file), on the command line (`-p fit.method:=slf`) or at run time (`ros2 param"
            " set`). A wrong value or a misspelt name is refused with a sentence. A name that"
            " resembles none of these may be another node's and only gives a warning.",
            "",
            "Marks: **c** can be set only while the node is unconfigured, because configure opens"
            " the engines; **d** cannot be set while the node is active. All others take effect"
            " with the next frame.",
            "",
            "## What a user sets",
            "",
            *_table([options[name] for name in ESSENTIAL]),
            "",
            "## Everything else",
            "",
            *_table([item for name, item in options.items() if name not in ESSENTIAL]),
            "",
            "In addition: `use_sim_time`, and `qos_overrides.<topic>.<publisher or"
            " subscription>.<history, depth or reliability>` for every topic of the node.",
            "",
        ]
    )


def _table(options: list[Option]) -> list[str]:
    lines = ["| parameter | type | default | allowed | what it does |", "|---|---|---|---|---|"]
    for item in options:
        name = f"`{item.name}`"
        if item.name.startswith(NEEDS_CLEANUP):
            name += " **c**"
        elif item.name in NEEDS_DEACTIVATE:
            name += " **d**"
        default = list(item.default) if item.is_list else item.default
        unit = f" {item.unit}" if item.unit else ""
        cells = [name, item.type_name, f"`{default!r}`{unit}", _allowed(item), item.description]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return lines


def _allowed(item: Option) -> str:
    if item.choices:
        return ", ".join(f"`{choice}`" for choice in item.choices)
    low = "" if item.minimum is None else f"≥ {item.minimum:g}"
    high = "" if item.maximum is None else f"≤ {item.maximum:g}"
    return ", ".join(part for part in (low, high) if part)


if __name__ == "__main__":
    print(markdown(), end="")
