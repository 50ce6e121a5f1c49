# SPDX-License-Identifier: Apache-2.0
"""The registry: networks that are known by name, and the file of each name."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path
from typing import Any

import pytest

from depth_node.engine import EngineError
from depth_node.model_zoo import registry

pytest.importorskip("onnxruntime")
pytest.importorskip("rich", reason="rich is not installed")
onnx = pytest.importorskip("onnx", reason="onnx builds the models of these tests")
from tests.helpers.mutation import assert_sentence, bounded, mutants, put
from tests.helpers.networks import entry_facts, install
from tests.helpers.refusals import refusal


def test_registry_holds_what_is_promised_and_every_rule_can_be_used() -> None:
    known = registry.registry()
    assert {f"depth-anything-v2-{size}" for size in ("small", "base", "large")} <= set(known)
    for place in ("indoor", "outdoor"):
        assert f"depth-anything-v2-metric-{place}-large" in known
    more = "depth-anything-3-small depth-anything-3-base depth-anything-3-mono-large"
    more += " depth-anything-3-metric-large distill-any-depth-small distill-any-depth-large"
    assert {*more.split(), "sam-2.1-tiny", "mobile-sam", "sam-vit-base"} <= set(known)
    for entry in known.values():
        assert entry.repo.count("/") == 1 and entry.licence and entry.parameters > 0
        assert entry.main.endswith(".onnx") == (entry.format == "onnx")
        if entry.patch_size:
            assert all(side % entry.patch_size == 0 for side in entry.size)
        if entry.format == "weights" and entry.export:
            assert entry.export_command.startswith("python -m training ")
            assert entry.name in entry.export_command and "{" not in entry.export_command
        # The user must confirm the download only if the licence forbids commercial use.
        assert entry.non_commercial == ("NC" in entry.licence), entry.name
    assert not any(entry.name == "embedded" for entry in known.values())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format": "torch"}, "use onnx or weights"),
        ({"meaning": "depth"}, "format 'onnx' and meaning 'depth'"),
        ({"files": {"model.onnx": "abc"}}, "SHA-256 of 64 digits"),
        ({"files": {}}, "SHA-256 of 64 digits"),
        ({"input": {"resize": "squash"}}, "use one of stretch"),
        ({"colour": "rgb"}, "colour"),
        ({"files": 5}, "SHA-256 of 64 digits"),
        ({"files": {"a/..": ""}}, "last part can be a file name"),
        ({"files": {"a/\x1b[31m": ""}}, "last part can be a file name"),
        ({"files": {"a/fetched\n.json": ""}}, "last part can be a file name"),
        ({"size": [True, 28]}, "input height is True"),
        ({"size": [28.0, 28]}, "input height is 28.0"),
        ({"size": 28}, "not iterable"),
        ({"patch_size": 14.0}, "patch_size of net is 14.0"),
        ({"non_commercial": "no"}, "non_commercial of net is 'no'"),
        ({"parameters": True}, "parameters of net is True"),
        ({"note": "a\n\x1b[31mb"}, r"note of net is 'a\n\x1b[31mb'"),
        ({"export": "run {folder.__class__} {nothing}"}, "nothing"),
    ],
)
def test_damaged_registry_says_so(
    changes: dict[str, Any], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install({"net": entry_facts(**changes)}, tmp_path, monkeypatch)
    assert words in refusal(registry.registry)


def test_a_name_is_a_folder_below_the_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("../net", "a/b", ".net", "", "n\n", "\x1b[31m"):
        install({name: entry_facts()}, tmp_path, monkeypatch)
        assert "is no name of a network" in refusal(registry.registry)


@pytest.mark.parametrize("count", [60, pytest.param(3000, marks=pytest.mark.slow)])
def test_mutants_of_the_registry(
    count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = {"net": entry_facts(), "other": entry_facts(note="a note", non_commercial=True)}
    install(facts, tmp_path, monkeypatch)
    with bounded(seconds=60 * count / 150, megabytes=60):
        for _, mutant in mutants(registry.REGISTRY.read_bytes(), count):
            put(registry.REGISTRY, mutant)
            try:
                entries = registry.registry()
            except EngineError as error:
                assert_sentence(error)
            else:
                folders = {entry.folder.parent for entry in entries.values()}
                assert folders <= {registry.models_folder()}


def test_unknown_name_gets_the_nearest() -> None:
    assert "did you mean depth-anything-v2-small?" in refusal(
        lambda: registry.find("depth-anything-v2-smal")
    )


def test_resolve() -> None:
    assert registry.resolve("/somewhere/net.onnx") is None
    assert registry.resolve("net.onnx") is None
    assert registry.resolve("some-file") is None
    sentence = refusal(lambda: registry.resolve("depth-anything-v2-small"))
    assert "run `depth_tools models fetch depth-anything-v2-small`" in sentence
    sentence = refusal(lambda: registry.resolve("depth-anything-v2-small.fp16"))
    assert "convert depth-anything-v2-small --precision fp16" in sentence
    assert "run `depth_tools models fetch sam-2.1-tiny`" in refusal(
        lambda: registry.resolve("sam-2.1-tiny")
    )


def test_folder_is_where_the_base_directories_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/robot")
    for value in ("", "relative"):  # a relative path is to be ignored
        monkeypatch.setenv("XDG_DATA_HOME", value)
        assert registry.models_folder() == Path("/home/robot/.local/share/depth_node/models")


@pytest.mark.slow
def test_export_commands_are_commands() -> None:
    """training/ accepts the export commands of the registry."""
    pytest.importorskip("torch", reason="torch is not installed")
    from training import __main__ as training

    for entry in registry.registry().values():
        if entry.export:
            words = shlex.split(entry.export_command)[3:]
            assert training.parse_arguments(words).command == words[0]


def test_networks_that_say_more_are_described_as_such() -> None:
    """Depth Anything 3's metric network by the focal length, its sky; MoGe-2's mask and scale."""
    known = registry.registry()
    metric = known["depth-anything-3-metric-large"]
    assert (metric.meaning, metric.focal_px, metric.roles) == (
        "depth_metric_focal", 300, {"sky": "sky"},
    )  # fmt: skip
    command = metric.manifest_command
    for part in ("--meaning depth_metric_focal", "--focal-px 300", "--sky-output sky",
                 "--resize longest_side", "--interpolation area_cubic", "--multiple 14",
                 "--mean 0.485 0.456 0.406"):  # fmt: skip
        assert part in command
    assert known["depth-anything-3-mono-large"].roles == {"sky": "sky"}
    for name in ("moge-2-small", "moge-2-large"):
        assert known[name].meaning == "points_affine_invariant" and known[name].licence == "MIT"
        assert set(known[name].roles) == {"mask", "scale"}


def test_roles_and_focal_length_that_cannot_be() -> None:
    entry = registry.registry()["depth-anything-3-metric-large"]
    for changes, told in (
        ({"roles": {"clouds": "c"}}, "use sky, mask"),
        ({"focal_px": 0.0}, "needs one"),
        ({"meaning": "depth_metric"}, "needs one"),
    ):
        with pytest.raises(EngineError, match=told):
            dataclasses.replace(entry, **changes)
