# SPDX-License-Identifier: Apache-2.0
"""A registry with one network, and a model to fetch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from depth_node.model_zoo import registry

pytest.importorskip("onnxruntime")
pytest.importorskip("rich", reason="rich is not installed")
onnx = pytest.importorskip("onnx", reason="onnx builds the models of these tests")
from tests.helpers.tiny_models import save_model

IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "interpolation": "cubic"}


def model_bytes(folder: Path, **options: Any) -> bytes:
    return save_model(folder / "source.onnx", **options).read_bytes()


def entry_facts(**changes: Any) -> dict[str, Any]:
    facts = {
        "repo": "somebody/net",
        "revision": "main",
        "files": {"onnx/model.onnx": ""},
        "format": "onnx",
        "maker": "somebody",
        "parameters": 1,
        "licence": "Apache-2.0",
        "meaning": "disparity_affine_invariant",
        "size": [28, 42],
        "input": IMAGENET,
        "patch_size": 14,
    }
    return {**facts, **changes}


def install(
    entries: dict[str, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "registry.yaml"
    path.write_text(yaml.safe_dump(entries))
    monkeypatch.setattr(registry, "REGISTRY", path)
