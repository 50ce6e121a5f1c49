# SPDX-License-Identifier: Apache-2.0
"""Engines that run networks. A manifest describes a model file; an engine runs it."""

from __future__ import annotations

import os
import shutil


class EngineError(RuntimeError):
    """A model cannot be opened or run; the message is one sentence with cause and cure."""


class BackendError(EngineError):
    """This machine cannot use a back end, whatever the model."""


def depth_tools(arguments: str) -> str:
    """Return the command `depth_tools ARGUMENTS` as the user must type it on this machine.

    Error messages use it to name the cure. pip installs depth_tools on the PATH; colcon installs it
    where only `ros2 run` finds it.
    """
    prefixes = os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep)
    by_colcon = any(
        os.path.exists(os.path.join(prefix, "lib", "depth_node", "depth_tools"))
        for prefix in prefixes
        if prefix
    )
    run = "ros2 run depth_node " if by_colcon and shutil.which("depth_tools") is None else ""
    return f"{run}depth_tools {arguments}"
