# SPDX-License-Identifier: Apache-2.0
"""Manifests edited as by hand, and the message with which a model is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from depth_node.engine import EngineError
from depth_node.engine.manifest import manifest_path
from depth_node.inference import open_engine

pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx", reason="onnx builds the models of these tests")


def rewrite(model: Path, **changes: Any) -> None:
    """Change entries of a model's manifest; `...` deletes one.

    The name of a nested entry joins its parts by "__", as input__height.
    """
    import yaml

    path = manifest_path(model)
    values = yaml.safe_load(path.read_text())
    for key, value in changes.items():
        *parents, leaf = key.split("__")
        target = values
        for parent in parents:
            target = target[parent]
        if value is ...:
            del target[leaf]
        else:
            target[leaf] = value
    path.write_text(yaml.safe_dump(values))


def refusal(model: Path | str, **options: Any) -> str:
    with pytest.raises(EngineError) as caught:
        open_engine(model, **options)
    sentence = str(caught.value)
    assert "\n" not in sentence
    return sentence
