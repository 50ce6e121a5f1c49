# SPDX-License-Identifier: Apache-2.0
"""config: one tree as dataclass, YAML, overrides and dotted names; error sentences that help."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from depth_node import config
from depth_node.config import ConfigError, option, section
from depth_node.pipeline import PipelineConfig
from tests.helpers.mutation import SPLICES, assert_sentence, bounded, mutants, put


@dataclass(frozen=True)
class Fit:
    method: str = option("ssf", "how", choices=("slf", "ssf", "median"))
    min_points: int = option(0, "fewest points", minimum=0)
    threshold: float = option(1.345, "huber", unit="sigma", minimum=0.1, maximum=10.0)

    def __post_init__(self) -> None:
        config.validate(self)
        if self.method == "median" and self.min_points > 100:
            raise ConfigError("min_points above 100 makes no sense with method median")


@dataclass(frozen=True)
class Outer:
    model: str = option("embedded", "name or path", read_only=True)
    verbose: bool = option(False, "more log")
    extrinsics: tuple[float, ...] = option((), "matrix", unit="m")
    size: tuple[int, int] = option((480, 640), "height, width", minimum=1)
    fit: Fit = section(Fit, "the fit", min_points=3)

    def __post_init__(self) -> None:
        config.validate(self)


def test_build_fills_in_what_is_missing_and_converts_to_exact_types() -> None:
    built = config.build(Outer, {"extrinsics": [1, 2.5], "fit": {"threshold": 2}})
    assert built.extrinsics == (1.0, 2.5)
    assert all(type(item) is float for item in built.extrinsics)
    assert type(built.fit.threshold) is float
    assert built.fit.min_points == 3, "the default given by the section holds"
    assert built == config.replace(Outer(), {"extrinsics": [1, 2.5], "fit.threshold": 2.0})


def test_dump_and_load_are_inverse(tmp_path: Path) -> None:
    built = config.build(
        Outer, {"verbose": True, "size": [3, 4], "fit": {"method": "slf", "threshold": 0.5}}
    )
    path = tmp_path / "c.yaml"
    path.write_text(config.dump(built))
    assert config.load(Outer, path) == built


def test_flatten_describe_and_replace_name_the_same_leaves() -> None:
    names = list(config.flatten(Outer()))
    assert names == [item.name for item in config.describe(Outer)]
    assert names == [
        "model",
        "verbose",
        "extrinsics",
        "size",
        "fit.method",
        "fit.min_points",
        "fit.threshold",
    ]
    for item in config.describe(Outer):
        assert config.replace(Outer(), {item.name: item.default}) == Outer()


def test_describe_carries_everything_that_option_was_told() -> None:
    items = {item.name: item for item in config.describe(Outer)}
    threshold = items["fit.threshold"]
    assert (threshold.unit, threshold.minimum, threshold.maximum) == ("sigma", 0.1, 10.0)
    assert items["fit.min_points"].default == 3
    assert items["fit.method"].choices == ("slf", "ssf", "median")
    assert items["model"].read_only
    assert (items["size"].is_list, items["size"].length, items["size"].type) == (True, 2, int)
    assert items["size"].type_name == "list of 2 int"


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"modle": "x"}, ["'modle'", "'model'"]),
        ({"fit": {"metod": "slf"}}, ["'fit.metod'", "'fit.method'"]),
        ({"fit": {"zzz": 1}}, ["'fit.zzz'", "known here", "min_points"]),
        ({"fit": {"method": "sff"}}, ["fit.method", "slf, ssf, median", "did you mean 'ssf'"]),
        ({"fit": {"threshold": 0.0}}, ["fit.threshold", "between 0.1 and 10 sigma", "0.0"]),
        ({"fit": {"threshold": float("nan")}}, ["fit.threshold", "float", "nan"]),
        ({"fit": {"min_points": -1}}, ["fit.min_points", "at least 0", "-1"]),
        ({"fit": {"min_points": 2.0}}, ["fit.min_points", "int", "2.0"]),
        ({"fit": {"min_points": True}}, ["fit.min_points", "int", "True"]),
        ({"fit": 3}, ["fit", "mapping", "3"]),
        ({"verbose": "yes"}, ["verbose", "bool", "'yes'"]),
        ({"extrinsics": "1 2"}, ["extrinsics", "list of float"]),
        ({"extrinsics": [1.0, "a"]}, ["extrinsics", "'a'"]),
        ({"size": [1]}, ["size", "list of 2 int", "1 elements"]),
        ({"size": [0, 4]}, ["size", "at least 1"]),
        ({"fit": {"method": "median", "min_points": 200}}, ["fit: min_points above 100"]),
    ],
)
def test_refusals_name_the_key_and_the_cure(values: dict[str, object], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        config.build(Outer, values)
    for word in words:
        assert word in str(caught.value)


def test_a_bare_instance_is_checked_too() -> None:
    with pytest.raises(ConfigError, match="method"):
        Fit(method="sff")
    with pytest.raises(ConfigError, match="fit must be a Fit"):
        Outer(fit={"method": "ssf"})  # type: ignore[arg-type]
    assert Fit(threshold=np.float64(2)).threshold == 2.0  # type: ignore[arg-type]


def test_replace_finds_the_dotted_name_from_its_leaf() -> None:
    with pytest.raises(ConfigError, match=r"'method'; did you mean 'fit\.method'"):
        config.replace(Outer(), {"method": "slf"})


def test_overrides_are_typed_by_yaml_and_win_over_the_file(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("fit:\n  threshold: 2.0\n  min_points: 5\n")
    built = config.load(
        Outer, path, ["fit.threshold=1e0", "size=[1, 2]", "verbose=true", "model=123"]
    )
    assert (built.fit.threshold, built.fit.min_points, built.size, built.verbose) == (
        1.0,
        5,
        (1, 2),
        True,
    )
    assert built.model == "123", "a text option takes the text as it is"
    with pytest.raises(ConfigError, match="key=value"):
        config.load(Outer, path, ["verbose"])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("fit: {method: slf", ["not valid YAML", "line"]),
        ("- 1\n- 2\n", ["mapping"]),
        ("verbose: true\nverbose: false\n", ["'verbose'", "twice", "line 2"]),
        ("fit:\n  metod: slf\n", ["fit.metod", "fit.method"]),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, text: str, words: list[str]) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        config.load(Outer, path)
    for word in [str(path), *words]:
        assert word in str(caught.value)


def test_a_missing_file_is_named_and_an_empty_one_is_all_defaults(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml.*check the path"):
        config.load(Outer, tmp_path / "none.yaml")
    (tmp_path / "empty.yaml").write_text("")
    assert config.load(Outer, tmp_path / "empty.yaml") == Outer()


def test_scientific_numbers_without_a_dot_are_numbers(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("fit: {threshold: 5e-1}\n")
    assert config.load(Outer, path).fit.threshold == 0.5


def test_a_field_without_description_or_of_a_foreign_type_is_a_programming_error() -> None:
    bare = dataclasses.make_dataclass("Bare", [("x", int, dataclasses.field(default=1))])
    with pytest.raises(TypeError, match=r"Bare\.x"):
        config.describe(bare)
    foreign = dataclasses.make_dataclass("Foreign", [("x", dict, option(None, "a dict"))])
    with pytest.raises(TypeError, match="no type of a setting"):
        config.describe(foreign)


# --- untrusted texts and files


def sentence(call: Callable[[], object]) -> str:
    """Return the ConfigError of a call: one short line without control characters."""
    with pytest.raises(ConfigError) as caught:
        call()
    text = str(caught.value)
    assert text.isprintable() and len(text) < 1500, text[:300]
    return text


ALIASES = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 10)
)
MERGES = "a0: &a0 {k: 1}\n" + "".join(
    f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}\n" for n in range(1, 10)
)
BAD_YAML = {
    "aliases": (ALIASES + "model: *a9", "more than 20000 values"),
    "merged aliases": (MERGES + "fit: *a9", "more than 20000 values"),
    "an alias of itself": ("model: &a [1, *a]", "stands for itself"),
    "a day that is none": ("model: 2001-99-99", "month must be in 1..12"),
    "a tag that does not fit": ("model: !!int x", "put a text in quotes"),
    "a Python object": ("model: !!python/object/apply:os.system [ls]", "could not determine"),
    "5000 digits": ("fit: {min_points: " + "9" * 5000 + "}", "digits"),
    "many hexadecimal digits": ("fit: {min_points: 0x" + "f" * 9000 + "}", ""),
    "a float of 400 digits": ("fit: {threshold: 1" + "0" * 400 + "}", "must be float"),
    "3000 brackets": ("model: " + "[" * 3000, "too many brackets"),
    "300 closed brackets": ("model: " + "[" * 300 + "]" * 300, "too many brackets"),
    "300 braces": ("model: " + "{" * 300, "too many brackets"),
    "a list as key": ("? [a]\n: b", "a key is a list or a mapping (line 1)"),
    "a mapping as key": ("? {a: b}\n: c", "a key is a list or a mapping"),
    "a long key": ("k" * 900 + ": 1", "unknown setting"),
    "a longer key": ("k" * 100_000 + ": 1", "not valid YAML"),
    "a number as key": ("5: 1", "unknown setting 5"),
    "control characters": ('"\\e[31m\\n": 1', r"\x1b[31m"),
    "a mapping as a list": ("size: {1: 2, 3: 4}", "list of 2 int"),
    "a set as a list": ("size: !!set {1, 2}", "list of 2 int"),
    "a raw control character": ("model: \x07", "not valid YAML"),
    "two documents": ("model: a\n---\nmodel: b", "not valid YAML"),
}


def test_what_is_merged_may_be_replaced(tmp_path: Path) -> None:
    """YAML's merge key: a mapping's own keys win, then those of the first merged mapping."""
    text = "a: &a {k: 1, l: 2}\nb: &b\n  <<: *a\n  k: 3\nc: {<<: [*b, *a]}\n"
    merged = config.parse_yaml(text)
    assert merged["b"] == {"k": 3, "l": 2} and merged["c"] == {"k": 3, "l": 2}
    with pytest.raises(ConfigError, match=r"the key 'k' is given twice \(line 3\)"):
        config.parse_yaml("a: &a {k: 1}\nb:\n  {<<: *a, k: 3, k: 4}\n")


@pytest.mark.parametrize("kind", BAD_YAML)
def test_awkward_yaml_is_one_sentence(tmp_path: Path, kind: str) -> None:
    text, words = BAD_YAML[kind]
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with bounded(seconds=5, megabytes=60):
        told = sentence(lambda: config.load(Outer, path))
        assert str(path) in told and words in told


@pytest.mark.parametrize(
    "text",
    ["model=" + "[" * 3000, "model=2001-99-99", "fit.min_points=" + "9" * 5000,
     "fit.min_points=!!int x", "size=? [a]", "fit.threshold=&a [*a]", "x" * 10_000,
     "\x1b[31m=1", "verbose=\x00", "=1"],
)  # fmt: skip
def test_awkward_overrides_are_one_sentence(text: str) -> None:
    sentence(lambda: config.override(Outer(), [text]))


def test_aliases_serve_where_they_are_harmless(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("model: &name net\nfit: {method: slf}\n")
    assert config.load(Outer, path).model == "net"
    assert config.parse_yaml("a: &x [1, 2]\nb: *x") == {"a": [1, 2], "b": [1, 2]}
    with pytest.raises(ConfigError, match="alias"):
        config.parse_yaml("a: &x [1, 2]\nb: *x", aliases=False)


def test_what_is_no_text_file_is_refused_at_once(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_bytes(b"model: \xff")
    assert "no UTF-8" in sentence(lambda: config.load(Outer, path))
    path.write_text("# comment\n" * 100_000)
    assert "1000000 bytes, more than 256000" in sentence(lambda: config.load(Outer, path))
    path.unlink()
    os.mkfifo(path)
    assert "no regular file" in sentence(lambda: config.load(Outer, path))
    assert "no regular file" in sentence(lambda: config.load(Outer, "/dev/zero"))
    assert "Is a directory" in sentence(lambda: config.load(Outer, tmp_path))
    assert "null" in sentence(lambda: config.load(Outer, "a\0b"))
    assert "too long" in sentence(lambda: config.load(Outer, "x" * 5000))


@pytest.mark.parametrize("count", [60, pytest.param(5000, marks=pytest.mark.slow)])
def test_mutants_of_a_config_file(tmp_path: Path, count: int) -> None:
    """The result is settings or one sentence; never a traceback, a hang or a gigabyte."""
    path = tmp_path / "c.yaml"
    content = config.dump(PipelineConfig()).encode()
    with bounded(seconds=60 * count / 400, megabytes=60):
        for _, mutant in mutants(content, count):
            put(path, mutant)
            try:
                built = config.load(PipelineConfig, path)
            except ConfigError as error:
                assert_sentence(error)
            else:
                assert config.build(PipelineConfig, config.to_dict(built)) == built
    for splice in SPLICES:
        for name in ("fit.method", "model.threads", "fit.field.nonsense", "extrinsics"):
            text = f"{name}={splice.decode('utf-8', 'surrogateescape')}"
            try:
                config.override(PipelineConfig(), [text])
            except ConfigError as error:
                assert_sentence(error)


def test_a_parameter_file_of_ros_is_named(tmp_path: Path) -> None:
    path = tmp_path / "node.yaml"
    path.write_text("/**:\n  ros__parameters:\n    fit: {method: slf}\n")
    with pytest.raises(ConfigError, match="parameter file of ROS"):
        config.load(PipelineConfig, path)
