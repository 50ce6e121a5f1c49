# SPDX-License-Identifier: Apache-2.0
"""Renamed settings: old names are refused with the new name; old checkpoints still open."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from depth_node import config

T = TypeVar("T")

# Old dotted name -> new one. No old name has different meanings in two recipes.
RENAMED = {
    "loop.panels_every": "loop.images_every",
    "images.second_share": "images.second_probability",
    "loss.place": "loss.align_layer",  # depthmaster
    "loss.share": "loss.variance_focus",  # mesa
    "who": "teacher_choice",  # distill
    "assistant_share": "assistant_probability",
    "crop.kept": "crop.per_image",
    "primary.what": "primary.source",
    "assistant.what": "assistant.source",
    "tune.what": "tune.mode",  # westar
    "tune.share": "tune.merge_scale",
}
UNKNOWN = re.compile(r"unknown setting '([\w.]+)'.*", re.DOTALL)


def load(cls: type[T], path: str | Path, overrides: Sequence[str] = ()) -> T:
    """Return a validated instance of `cls`, as depth_node.config.load does.

    Raises ConfigError as it does; for a renamed setting the sentence gives the new name.
    """
    try:
        return config.load(cls, path, overrides)
    except config.ConfigError as error:
        match = UNKNOWN.search(str(error))
        if match is None or match[1] not in RENAMED:
            raise
        prefix = str(error)[: match.start()]
        raise config.ConfigError(
            f"{prefix}the setting {match[1]!r} was renamed: write {RENAMED[match[1]]!r}"
        ) from error


def upgraded(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the nested settings of a checkpoint with renamed settings under their new names."""
    tree: dict[str, Any] = copy.deepcopy(dict(settings))
    for old, new in RENAMED.items():
        *parents, last = old.split(".")
        section: Any = tree
        for parent in parents:
            section = section.get(parent) if isinstance(section, dict) else None
        if isinstance(section, dict) and last in section:
            section[new.rpartition(".")[2]] = section.pop(last)
    return tree
