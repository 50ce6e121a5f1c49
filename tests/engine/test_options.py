# SPDX-License-Identifier: Apache-2.0
"""The settings of a model."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx", reason="onnx builds the models of these tests")
from tests.helpers.manifests import refusal


def test_threads_below_zero(model: Path) -> None:
    assert "threads must be at least 0, got -1" in refusal(model, threads=-1)
