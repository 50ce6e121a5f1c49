# SPDX-License-Identifier: Apache-2.0
"""Options that several commands share, and their conversion to settings."""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from depth_node.cli.console import UsageError
from depth_node.config import ConfigError, load, override
from depth_node.engine.manifest import EMBEDDED
from depth_node.fitting import METHODS, NETWORK
from depth_node.pipeline import PipelineConfig
from depth_node.sentences import quoted

ROS_CURE = (
    "source your ROS 2 (`source /opt/ros/jazzy/setup.bash`), or in a virtual environment"
    " `pip install ros-jazzy-rclpy ros-jazzy-rmw-fastrtps-cpp ros-jazzy-rmw-implementation"
    " ros-jazzy-common-interfaces ros-jazzy-rcl-interfaces`"
)


def add_method_options(parser: argparse.ArgumentParser) -> None:
    """Add --model, --manifest, --method, --config and --set."""
    parser.add_argument(
        "--model",
        default="",
        metavar="FILE",
        help=f'ONNX file, fetched network, or "{EMBEDDED}" (default)',
    )
    parser.add_argument(
        "--manifest",
        default="",
        metavar="FILE",
        help="manifest of the model (default: the file beside it)",
    )
    parser.add_argument(
        "--method", default="", help=f"fit method: {', '.join((*METHODS, NETWORK))}"
    )
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="YAML file with settings of the pipeline"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="one setting of the pipeline, as a parameter of the node; repeatable",
    )


def pipeline_config(options: argparse.Namespace) -> PipelineConfig:
    """Return the settings of --config, --set, --model, --manifest and --method.

    Raises ConfigError.
    """
    config = load(PipelineConfig, options.config) if options.config else PipelineConfig()
    shortcuts = {
        "model.path": options.model,
        "model.manifest": options.manifest,
        "fit.method": options.method,
    }
    changes = [f"{key}={value}" for key, value in shortcuts.items() if value]
    config = override(config, [*options.set, *changes])
    if not config.model.path:
        raise ConfigError(f"model.path is empty: name an .onnx file, or {EMBEDDED}")
    return config


def need_ros() -> None:
    """Raise UsageError if ROS 2 is not installed."""
    if importlib.util.find_spec("rclpy") is None:
        raise UsageError(f"this needs ROS 2, which is not here: {ROS_CURE}")


def matrix(text: str, option: str = "--t-camera-lidar") -> npt.NDArray[Any] | None:
    """Return the matrix (4, 4) of 16 numbers, row by row, or None for an empty text.

    Raises UsageError, which names the option.
    """
    if not text:
        return None
    try:
        values = np.array([float(part) for part in text.replace(",", " ").split()])
    except ValueError:
        values = np.empty(0)
    if values.size != 16:
        raise UsageError(f"{option} needs the 16 numbers of a 4x4 matrix, row by row")
    return values.reshape(4, 4)


def words(text: str) -> list[str]:
    """Split a text at commas into words."""
    return [word.strip() for word in text.split(",") if word.strip()]


def integers(name: str, text: str) -> list[int]:
    """Split a text at commas into whole numbers. Raises UsageError, which names the option."""
    try:
        return [int(word) for word in words(text)]
    except ValueError:
        raise UsageError(f"{name} {quoted(text)} must be whole numbers like 50,250") from None


def random_seeds(text: str | int, usual: Sequence[int] = ()) -> list[int]:
    """Return the numbers of --seed, or `usual` if none is given. Raises UsageError."""
    numbers = integers("--seed", str(text)) or list(usual)
    for number in numbers:
        if number < 0:
            raise UsageError(f"--seed {number}: give numbers from 0")
    if not numbers:
        raise UsageError("--seed names no number: give numbers from 0")
    return numbers
