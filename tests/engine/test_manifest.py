# SPDX-License-Identifier: Apache-2.0
"""Manifests: what a model file is, and every sentence of a refusal."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from depth_node.engine import EngineError
from depth_node.engine.manifest import Manifest, manifest_path, model_sha256
from depth_node.inference import open_engine

pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx", reason="onnx builds the models of these tests")
from tests.helpers.manifests import refusal, rewrite


def test_manifest_elsewhere_and_manifest_round_trip(model: Path, tmp_path: Path) -> None:
    read = Manifest.load(manifest_path(model))
    elsewhere = tmp_path / "other" / "facts.yaml"
    elsewhere.parent.mkdir()
    changed = dataclasses.replace(read, training={"steps": 10, "data": ["rooms"]}, patch_size=4)
    changed.save(elsewhere)
    manifest_path(model).unlink()
    with open_engine(model, manifest=elsewhere) as engine:
        assert engine.manifest == changed
    assert Manifest.load(elsewhere) == changed


def test_external_weights_count_in_the_hash(model: Path) -> None:
    before = model_sha256(model)
    model.with_name("tiny.onnx.data").write_bytes(b"weights")
    assert model_sha256(model) != before
    with pytest.raises(EngineError, match="sha256"):
        open_engine(model)


def test_missing_manifest(model: Path) -> None:
    manifest_path(model).unlink()
    sentence = refusal(model)
    assert "tiny.manifest.yaml" in sentence
    assert f"depth_tools models manifest {model}" in sentence
    assert "check the path" in refusal(model, manifest=model.with_name("gone.yaml"))


def test_damaged_model_is_told_by_its_hash(model: Path) -> None:
    whole = model.read_bytes()
    model.write_bytes(whole[: len(whole) // 2])
    sentence = refusal(model)
    assert "sha256" in sentence
    assert "damaged or another version" in sentence


def test_wrong_hash(model: Path) -> None:
    rewrite(model, sha256="0" * 64)
    assert "write a new manifest" in refusal(model)
    rewrite(model, sha256=model_sha256(model).upper())
    open_engine(model).close()


@pytest.mark.parametrize(
    ("changes", "pattern"),
    [
        ({"input_name": "pixels"}, r"has the input image, its manifest says pixels"),
        ({"output_name": "disparity"}, r"has the outputs depth, its manifest says disparity"),
        ({"input__height": 16}, r"takes an input of shape \(1, 3, 8, 12\).*\(1, 3, 16, 12\)"),
        ({"input__dtype": "float16"}, r"takes tensor\(float\).*float16.*input.dtype"),
        ({"meaning": "depth_metrik"}, r"did you mean depth_metric\?"),
        ({"meaning": 3}, r"meaning 3 is not known"),
        ({"meaning": ...}, r"key meaning is missing"),
        ({"input__height": ...}, r"key input.height is missing"),
        ({"input__heigth": 8}, r"unknown key input.heigth; did you mean input.height"),
        ({"colour": "rgb"}, r"unknown key colour"),
        ({"input": 3}, r"found 3 where keys and values"),
        ({"input": ...}, r"found None where keys and values"),
        ({"input__std": [0, 1, 1]}, r"std must be above 0"),
        ({"input__resize": "squash"}, r"use one of stretch, letterbox, corner, crop"),
        ({"patch_size": 14}, r"no multiple of patch_size 14"),
        ({"patch_size": -1}, r"patch_size is -1"),
        ({"name": 5}, r"name is 5: it must be text"),
        ({"training": [1]}, r"training must be a mapping"),
    ],
)
def test_manifest_that_does_not_fit(model: Path, changes: dict, pattern: str) -> None:
    rewrite(model, **changes)
    sentence = refusal(model)
    assert re.search(pattern, sentence)
    assert str(model.parent) in sentence


@pytest.mark.parametrize("text", ["{", "- a\n- b\n", "", "\x00", "a: b: c"])
def test_manifest_that_is_no_yaml_mapping(model: Path, text: str) -> None:
    manifest_path(model).write_text(text)
    assert "tiny.manifest.yaml" in refusal(model)
