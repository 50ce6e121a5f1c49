# SPDX-License-Identifier: Apache-2.0
"""Manifests: loading, saving, hashes, and the error messages of all refusals."""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path

import pytest

from depth_node.engine import EngineError
from depth_node.engine.manifest import Manifest, manifest_path, model_sha256
from depth_node.inference import open_engine

pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx", reason="onnx builds the models of these tests")
from tests.helpers.manifests import refusal, rewrite
from tests.helpers.mutation import assert_sentence, bounded, mutants, put
from tests.test_config import BAD_YAML


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
        ({"outputs": 5}, r"outputs must be a list of names"),
        ({"outputs": {"depth": 1}}, r"outputs must be a list of names"),
        ({"outputs": [1]}, r"outputs must be a list of names"),
        ({"patch_size": True}, r"patch_size is True"),
        ({"patch_size": 2.0}, r"patch_size is 2.0"),
        ({"input__height": True}, r"input height is True"),
        ({"input__width": 12.0}, r"input width is 12.0"),
        ({"input__height": 10**8}, r"more than 33 million pixels"),
        ({"input__width": 10**500}, r"an integer of"),
        ({"input__mean": [True, 0, 0]}, r"input mean has True"),
        ({"input__scale": 10**400}, r"input scale has"),
        ({"input__resize": ["stretch"]}, r"input resize is \['stretch'\]"),
        ({"inputs": {"image": [True, 2]}}, r"inputs must map names"),
        ({"inputs": {"image": [1.0, 2]}}, r"inputs must map names"),
        ({"inputs": {5: [1, 2]}}, r"inputs must map names"),
        ({"inputs": {"image": [10**6, 10**6]}}, r"134 million elements"),
        ({"limits": {"finite": True}}, r"limits.finite is True"),
        ({"limits": {"relative_error": float("inf")}}, r"limits.relative_error is inf"),
        ({"name": "a\x1b[31m"}, r"name is 'a\\x1b\[31m': give a text of printable"),
        ({"output_name": "a\nb"}, r"output_name is 'a\\nb'"),
        ({"name": "n" * 3000}, r"at most 2000"),
        ({"decoder": "../x.onnx"}, r"decoder is '../x.onnx': give the name of a file"),
        ({"meaning": ["depth_metric"]}, r"meaning \['depth_metric'\] is not known"),
    ],
)
def test_manifest_that_does_not_fit(model: Path, changes: dict, pattern: str) -> None:
    rewrite(model, **changes)
    sentence = refusal(model)
    assert re.search(pattern, sentence)
    assert str(model.parent) in sentence


@pytest.mark.parametrize("kind", [kind for kind in BAD_YAML if "many hex" not in kind])
def test_awkward_yaml_of_a_model_is_one_sentence(model: Path, kind: str) -> None:
    path = manifest_path(model)
    path.write_text(path.read_text() + BAD_YAML[kind][0])
    with bounded(seconds=5, megabytes=60):
        told = refusal(model)
    assert str(path) in told and told.isprintable() and len(told) < 1500


def test_a_manifest_that_is_no_small_text_file(model: Path) -> None:
    path = manifest_path(model)
    path.write_text(path.read_text() + "# comment\n" * 4_000_000)
    with bounded(seconds=1, megabytes=5):
        assert "more than 256000" in refusal(model)
    path.unlink()
    os.mkfifo(path)
    assert "no manifest" in refusal(model)
    assert "no regular file" in refusal(model, manifest=path)
    assert "Is a directory" in refusal(model, manifest=path.parent)


def test_a_manifest_uses_no_aliases(model: Path) -> None:
    path = manifest_path(model)
    path.write_text(path.read_text().replace("training: {}", "training: {a: &a 1, b: *a}"))
    assert "write it out" in refusal(model)


@pytest.mark.parametrize("count", [50, pytest.param(5000, marks=pytest.mark.slow)])
def test_mutants_of_a_manifest(model: Path, count: int) -> None:
    path = manifest_path(model)
    whole = dataclasses.replace(Manifest.load(path), training={"steps": 3, "data": ["rooms"]})
    whole.save(path)
    with bounded(seconds=60 * count / 300, megabytes=60):
        for number, mutant in mutants(path.read_bytes(), count):
            other = path.with_name("mutant.yaml")
            put(other, mutant)
            try:
                read = Manifest.load(other)
            except EngineError as error:
                assert_sentence(error)
            else:
                other.unlink()
                read.save(other)
                assert Manifest.load(other) == read, number


@pytest.mark.parametrize("text", ["{", "- a\n- b\n", "", "\x00", "a: b: c"])
def test_manifest_that_is_no_yaml_mapping(model: Path, text: str) -> None:
    manifest_path(model).write_text(text)
    assert "tiny.manifest.yaml" in refusal(model)
