# SPDX-License-Identifier: Apache-2.0
"""The settings of a model."""

from __future__ import annotations

from pathlib import Path

import pytest

from depth_node import config
from depth_node.engine import EngineError
from depth_node.engine.options import ModelConfig, configured

pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx", reason="onnx builds the models of these tests")
from tests.helpers.manifests import refusal


def test_threads_below_zero(model: Path) -> None:
    assert "threads must be at least 0, got -1" in refusal(model, threads=-1)


def test_every_setting_is_described_in_a_sentence() -> None:
    for item in config.describe(ModelConfig):
        assert item.description[0].isupper() and item.description.endswith("."), item.name


def test_an_unknown_option_is_an_error_of_the_engine() -> None:
    model, engine = configured("net.onnx", None, {"threads": 2, "cache_mb": 7})
    assert (model.threads, engine.cache_mb) == (2, 7)
    with pytest.raises(EngineError, match="precision must be one of file, fp16"):
        configured("net.onnx", None, {"precision": "fp8"})
    with pytest.raises(EngineError, match="cores"):
        configured("net.onnx", None, {"cores": 2})
