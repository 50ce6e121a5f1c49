# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the engine's tests: a tiny model, and a simulated and a real GPU."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from depth_node.engine.manifest_writer import write_manifest


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model of a few nodes with its manifest."""
    pytest.importorskip("onnx", reason="onnx builds the models of these tests")
    from tests.helpers.tiny_models import save_model

    path = save_model(tmp_path / "tiny.onnx")
    write_manifest(path, "disparity_affine_invariant", licence="Apache-2.0")
    return path


@pytest.fixture(params=["cpu", pytest.param("gpu", marks=pytest.mark.gpu)])
def cuda(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The module depth_node.engine.cuda on a simulated machine, and on a real GPU."""
    if request.param == "cpu":
        from tests.helpers.gpu_on_cpu import Machine

        Machine().install(monkeypatch)
        yield importlib.import_module("depth_node.engine.cuda")
        return
    try:
        module = importlib.import_module("depth_node.engine.cuda")
        reason = module.missing()
    except ImportError as error:
        reason = str(error)
    if reason and os.environ.get("REQUIRE_GPU") == "1":
        pytest.fail(f"no GPU: {reason} (REQUIRE_GPU=1 promises it)")
    if reason:
        pytest.skip(f"no GPU: {reason}")
    yield module
