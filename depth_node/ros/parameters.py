# SPDX-License-Identifier: Apache-2.0
"""The node's settings, and how a config tree becomes ROS parameters and their documentation."""

from __future__ import annotations

import array
import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
from rclpy.node import Node
from rclpy.parameter import Parameter

from depth_node.config import (
    ConfigError,
    Option,
    describe,
    option,
    replace,
    section,
    validate,
)
from depth_node.geometry.rigid import check_rigid
from depth_node.obstacles import ObstacleConfig
from depth_node.pipeline import PipelineConfig
from depth_node.ros.messages import brief

NEEDS_CLEANUP = ("model.", "region_model.", "engine.")
"""Parameters that open an engine, which happens at configure."""

NEEDS_DEACTIVATE = ("image_transport", "lidar_sources", "bond")
"""Parameters that choose subscriptions, which are made at activate."""

RENAMED = {
    "max_width": "max_width_px",
    "max_scan_age": "max_scan_age_s",
    "scan_wait": "scan_wait_s",
    "scans_per_picture": "scans_per_image",
    "fit.min_depth_m": "projection.min_depth_m",
    "fit.max_depth_m": "projection.max_depth_m",
    **{
        f"{network}.{old}": f"engine.{new}"
        for network in ("model", "region_model")
        for old, new in (
            ("fallback", "fallback"),
            ("on_engine_failure", "on_failure"),
            ("build_engines", "build"),
            ("workspace_mb", "workspace_mb"),
            ("cache_dir", "cache_dir"),
            ("cache_mb", "cache_mb"),
        )
    },
    **{
        name: "what it set is fixed now; studies set it from Python"
        for name in (
            "fit.huber_threshold",
            "fit.huber_iterations",
            "fit.range_floor",
            "fit.polarity_guard",
            "segmentation.depth_weight",
            "segmentation.blur_cells",
            "segmentation.edge_gap_px",
            "fit.field.residual",
            "fit.field.detail",
            "fit.field.colour",
            "fit.field.regions",
            "fit.field.outliers",
            "fit.field.node_px",
            "fit.field.neighbours",
        )
    },
    "tf_tolerance": "tf_tolerance_s",
}
"""Former names of parameters -> the name now, or a sentence where there is none."""

ESSENTIAL = (
    "model.path",
    "fit.method",
    "T_camera_lidar",
    "world_frame",
    "max_scan_age_s",
    "image_transport",
    "image_rectified",
    "max_width_px",
    "depth_encoding",
)
"""What a user sets; everything else has a default that suits most robots."""

# Topics whose QoS other code in this process lets a parameter file override.
_FOREIGN_TOPICS = ("/clock", "/parameter_events", "/rosout", "/tf", "/tf_static")

_TYPES = {
    bool: (Parameter.Type.BOOL, Parameter.Type.BOOL_ARRAY),
    int: (Parameter.Type.INTEGER, Parameter.Type.INTEGER_ARRAY),
    float: (Parameter.Type.DOUBLE, Parameter.Type.DOUBLE_ARRAY),
    str: (Parameter.Type.STRING, Parameter.Type.STRING_ARRAY),
}
_LEAST_WIDTH_PX = 32  # narrower, an image shows a network nothing, and the answer looks like depth
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
_NEAR = 0.8  # likeness of names from which on one is taken for a misspelt other
_MOST_COMPARED = 100  # unknown names that are compared with the known ones, which takes time
_MOST_TOLD = 5
_LONGEST_NAME = 200


@dataclass(frozen=True)
class NodeConfig(PipelineConfig):
    """The settings of the node: those of the method and those of its place on the robot."""

    image_transport: str = option(
        "raw",
        "What comes on `image`: raw (sensor_msgs/Image) or compressed (CompressedImage).",
        choices=("raw", "compressed"),
    )
    image_rectified: str = option(
        "auto",
        "Whether the image is rectified: yes (P of camera_info holds, D is ignored), no (K and D"
        " hold), auto (yes if the topic is called image_rect..., or if D is zero, R the identity"
        " and P equal to K).",
        choices=("auto", "yes", "no"),
    )
    max_width_px: int = option(
        0,
        "Wider images are shrunk to this width, 32 or more, before anything else, and all output"
        " has the smaller size; 0 = as they come.",
        unit="px",
        minimum=0,
    )
    max_rate_hz: float = option(
        0.0,
        "At most so many images a second are worked on, the others are passed over; 0 = all.",
        unit="Hz",
        minimum=0.0,
        maximum=1000.0,
    )
    lidar_sources: tuple[str, ...] = option(
        ("points", "scan"),
        "Where measured points come from: points (PointCloud2), scan (LaserScan), landmarks"
        " (PointCloud2 of a sensor with much noise: radar, VIO, SLAM), depth (a sparse depth Image,"
        " registered to the camera), range (Range: ultrasound, infrared); one or several.",
        choices=("points", "scan", "landmarks", "depth", "range"),
    )
    landmarks_noise: float = option(
        0.05,
        "Standard deviation of the points on `landmarks`, as a share of their distance: they are"
        " weighed by it beside the others, and the interval is freed of it. A field std, stddev,"
        " range_std or rangeSTD (m) of a cloud says it for each point and wins.",
        minimum=0.001,
        maximum=1.0,
    )
    depth_noise: float = option(
        0.02,
        "Standard deviation of the depth images on `depth`, as a share of the distance; see"
        " landmarks_noise. Data sheets give some 0.02 for stereo at 2 m and 0.01 for time of"
        " flight.",
        minimum=0.001,
        maximum=1.0,
    )
    range_noise: float = option(
        0.1,
        "Standard deviation of the distances on `range`, as a share of them; see landmarks_noise.",
        minimum=0.001,
        maximum=1.0,
    )
    T_camera_lidar: tuple[float, ...] = option(
        (),
        "Maps LiDAR coordinates into the camera's optical frame: the 16 numbers of a 4x4 matrix,"
        " row by row. Empty: TF is asked. If it is given, it holds for every LiDAR message.",
    )
    world_frame: str = option(
        "",
        "A TF frame that stands still, such as odom. If it is given, what is remembered of earlier"
        " images and LiDAR scans of another time move with the camera. Empty: TF is not asked.",
    )
    camera_readout_time_s: float = option(
        0.0,
        "Of a rolling shutter: from the exposure of the image's first row, at its stamp, to that of"
        " its last (15 to 30 ms in many cameras). With world_frame each point is seen at the time"
        " of the row that it lands in. 0 = all rows at once.",
        unit="s",
        minimum=0.0,
        maximum=1.0,
    )
    tf_tolerance_s: float = option(
        0.1,
        "A moving transform that TF has not for the image's stamp yet may be this much older.",
        unit="s",
        minimum=0.0,
        maximum=10.0,
    )
    max_scan_age_s: float = option(
        0.3,
        "LiDAR scans count for an image if their stamps are at most this far apart.",
        unit="s",
        minimum=0.001,
        maximum=60.0,
    )
    lidar_time_offset_s: float = option(
        0.0,
        "Added to the stamps of LiDAR messages: -37 for a LiDAR whose clock is 37 s ahead (TAI"
        " against UTC).",
        unit="s",
        minimum=-4e9,
        maximum=4e9,
    )
    scans_per_image: int = option(
        0,
        "How many scans of each LiDAR accumulate, those nearest in time first. 0 = all within"
        " max_scan_age_s if world_frame tells how the robot moved between them, else one turn, also"
        " if the LiDAR sends it in pieces. More than that without world_frame smears while the"
        " robot moves.",
        minimum=0,
    )
    scan_wait_s: float = option(
        0.0,
        "How long an image waits for a scan that is not older than itself. For a LiDAR that is"
        " triggered with the camera; adds to the latency.",
        unit="s",
        minimum=0.0,
        maximum=1.0,
    )
    depth_encoding: str = option(
        "32FC1",
        "Depth as 32FC1 (metres, NaN unknown) or 16UC1 (millimetres, 0 unknown, up to 65.5 m).",
        choices=("32FC1", "16UC1"),
    )
    points_decimation: int = option(
        2, "Every n-th row and column of the depth goes to `~/points`.", minimum=1, maximum=64
    )

    extrinsics_cpu_share: float = option(
        0.03,
        "Of the node's own CPU time, how much may be spent on judging where the LiDARs sit and"
        " when: `~/extrinsics` and /diagnostics say what was found, nothing is corrected. 0 = off.",
        minimum=0.0,
        maximum=1.0,
    )
    obstacles: ObstacleConfig = section(ObstacleConfig, "where the ground is and what stands on it")

    bond: bool = option(
        True,
        "Whether an active node offers the bond by which a lifecycle manager (Nav2's) notices that"
        " it died. Needs bondpy; without it the manager's bond_timeout must be 0.0.",
    )

    def __post_init__(self) -> None:
        validate(self)
        self.fixed_extrinsics()
        if not self.lidar_sources:
            raise ConfigError(
                "lidar_sources is empty: name points, scan, landmarks, depth, range or several"
            )
        if 0 < self.max_width_px < _LEAST_WIDTH_PX:
            raise ConfigError(
                f"max_width_px is {self.max_width_px}, and an image that narrow shows nothing: give"
                f" {_LEAST_WIDTH_PX} or more, or 0 for images as they come"
            )
        if self.camera_readout_time_s > 0 and not self.world_frame:
            raise ConfigError(
                "camera_readout_time_s does nothing without the camera's motion: set world_frame, a"
                " TF frame that stands still, or leave it 0"
            )

    def relative_noise(self) -> dict[str, float]:
        """Topic -> declared noise of its points, as a share of their distance."""
        return {
            "landmarks": self.landmarks_noise,
            "depth": self.depth_noise,
            "range": self.range_noise,
        }

    def fixed_extrinsics(self) -> npt.NDArray[np.float64] | None:
        """T_camera_lidar (4, 4), or None where TF is to be asked."""
        if set(self.lidar_sources) == {"depth"}:  # in the camera's own frame
            return np.eye(4)
        if not self.T_camera_lidar:
            return None
        try:
            return check_rigid(self.T_camera_lidar, "T_camera_lidar")
        except ValueError as error:
            raise ConfigError(str(error)) from error


def descriptor(item: Option) -> ParameterDescriptor:
    """What `ros2 param describe` shows of an option."""
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
    """The ROS parameters of a node, declared from a config tree and kept equal to a NodeConfig.

    `problems` holds what the parameter file or the command line says that cannot be: name ->
    sentence. Those parameters have their defaults meanwhile; setting one rightly clears it.
    """

    def __init__(self, node: Node) -> None:
        self._options = {item.name: item for item in describe(NodeConfig)}
        self._node = node
        self.problems: dict[str, str] = {}
        given: Mapping[str, Parameter] = node._parameter_overrides  # there is no public way
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
        except ConfigError:  # a contradiction: take what can be taken one by one, tell the rest
            for name, value in values.items():
                try:
                    self.config = replace(self.config, {name: value})
                except ConfigError as error:
                    self.problems[name] = str(error)

    def unknown(self, topics: Mapping[str, str]) -> tuple[list[str], str]:
        """Sentences on parameters given to this node that it does not have.

        The first are of names that are meant for it: renamed, or near one of its own. The second
        is a warning about all others, which may be another node's in a shared file, or "".
        topics: resolved name -> publisher or subscription, for `qos_overrides.<topic>...`.
        """
        wrong: list[str] = []
        foreign: list[str] = []
        overrides: list[str] = []  # names of qos_overrides that this node has
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
        """The sentence on one name that the node does not have."""
        guess = _near_miss(name, self._options) if len(name) <= _LONGEST_NAME else ""
        hint = f"did you mean {guess}?" if guess else "`ros2 param list` shows those the node has"
        return f"unknown parameter {brief(name)!r}: {hint}"

    def changes(self, parameters: list[Parameter]) -> list[Parameter]:
        """The parameters of a set request in their own types, without those that have the value."""
        result = []
        for parameter in parameters:
            item = self._options.get(parameter.name)
            if item is not None and parameter.type_ != Parameter.Type.NOT_SET:
                value = _plain(parameter.value, item)
                try:
                    checked = item.check(value)
                except ConfigError:
                    pass  # refused later, with the reason
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
        """The config after a set request. Raises ConfigError; nothing is changed yet."""
        changes = {
            p.name: _plain(p.value, self._options[p.name])
            for p in parameters
            if p.name in self._options
        }
        return replace(self.config, changes) if changes else self.config

    def accept(self, config: NodeConfig, parameters: list[Parameter]) -> None:
        """Take over what `changed` gave."""
        self.config = config
        for parameter in parameters:
            self.problems.pop(parameter.name, None)


def _plain(value: Any, item: Option) -> Any:
    """A value as ROS hands it over, as the option means it.

    The YAML of parameter files and of the command line makes true of yes and on, a whole number of
    1 and of 640.0 a broken one, and nothing of an empty list.
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
    """Whether two values of one type are equal; arrays come as several kinds of sequence."""
    if isinstance(present, (str, bytes)) or not hasattr(present, "__len__"):
        return bool(present == new)
    return list(present) == list(new)


def _near_miss(name: str, known: Iterable[str]) -> str:
    """The known name that is meant by `name`, or "" where it resembles none closely.

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
        # An empty list has no type of its own: declare the type, then set the value.
        kind = parameter.type_
        node.declare_parameter(item.name, kind, descriptor(item), ignore_override=True)
        node.set_parameters([parameter])
    else:
        node.declare_parameter(item.name, parameter.value, descriptor(item), ignore_override=True)


def markdown() -> str:
    """docs/parameters.md: every parameter with type, default, range, unit and description."""
    options = {item.name: item for item in describe(NodeConfig)}
    return "\n".join(
        [
            "<!-- Written by `make docs` from the code; edit the code. -->",
            "# Parameters",
            "",
            "All of them can be given in a YAML file (`--ros-args --params-file`, or"
            " `params_file:=` of the launch file), on the command line (`-p fit.method:=slf`) and"
            " at run time (`ros2 param set`). A wrong value or a misspelt name is refused with a"
            " sentence; a name that resembles none of these may be another node's: a warning."
            " Marks: **c** can be set only while the node is unconfigured, since an engine is"
            " opened at configure; **d** not while it is active; all others take effect with the"
            " next frame.",
            "",
            "## What a user sets",
            "",
            *_table([options[name] for name in ESSENTIAL]),
            "",
            "## Everything else",
            "",
            *_table([item for name, item in options.items() if name not in ESSENTIAL]),
            "",
            "Besides these: `use_sim_time`, and `qos_overrides.<topic>.<publisher or"
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
