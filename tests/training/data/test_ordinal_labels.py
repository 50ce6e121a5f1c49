# SPDX-License-Identifier: Apache-2.0
"""Label files, their faults, and labels simulated from depth."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from training.data.ordinal_labels import (
    LabelSet,
    Pair,
    SimulationConfig,
    append_label,
    mended,
    read_labels,
    relation_of,
    simulate,
    write_labels,
)
from training.data.samples import DataError

PAIRS = [
    Pair("a.png", 1.0, 2.0, 3.0, 4.0, "closer"),
    Pair("b, c.png", 0.0, 0.0, 9.5, 1.25, "farther"),
    Pair("a.png", 5.0, 6.0, 7.0, 8.0, "equal"),
]
HEADER = "image,x1,y1,x2,y2,relation\n"


@pytest.mark.parametrize("name", ["labels.csv", "labels.json"])
def test_written_appended_and_read_is_the_same(tmp_path: Path, name: str) -> None:
    path = tmp_path / "new" / name
    for pair in PAIRS:
        append_label(path, pair)
    assert read_labels(path) == PAIRS
    write_labels(path, PAIRS[:1])
    assert read_labels(path) == PAIRS[:1]
    assert [p.name for p in path.parent.iterdir()] == [name]


def test_files_of_other_hands_are_read(tmp_path: Path) -> None:
    """A byte-order mark, other line ends, capitals, spaces and a column more do no harm."""
    path = tmp_path / "labels.csv"
    text = "﻿relation, image, x1, y1, x2, y2, who\r\n Closer, a.png, 1, 2, 3, 4, me\r\n"
    path.write_bytes(text.encode())
    assert read_labels(path) == PAIRS[:1]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("image,x1,y1,x2,relation\n", "no column 'y2'"),
        ("", "no column 'image'"),
        (HEADER + "a,1,2,3,4,closr\n", r"line 2: the relation 'closr'.*did you mean 'closer'"),
        (HEADER + "a,1,2,3,4,closer\na,1,2,x,4,equal\n", "line 3: a coordinate is no number"),
        (HEADER + "a,1,2,nan,4,equal\n", "not finite"),
        (HEADER + "a,1,2,3\n", "'y2' is missing"),
    ],
)
def test_a_bad_label_file_is_refused_with_its_line(
    tmp_path: Path, text: str, sentence: str
) -> None:
    path = tmp_path / "labels.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=sentence):
        read_labels(path)


def test_bad_json_and_absent_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "labels.json"
    with pytest.raises(DataError, match="training annotate"):
        read_labels(path)
    path.write_text("[{")
    with pytest.raises(DataError, match="no JSON"):
        read_labels(path)
    path.write_text(json.dumps({"image": "a"}))
    with pytest.raises(DataError, match="list of objects"):
        read_labels(path)
    (tmp_path / "labels.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="cannot be read"):
        read_labels(tmp_path / "labels.csv")


def test_a_line_that_a_crash_cut_is_mended(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    write_labels(path, PAIRS[:2])
    assert not mended(path)
    path.write_bytes(path.read_bytes() + b"a.png,5,6,7")
    assert mended(path)
    assert read_labels(path) == PAIRS[:2]
    append_label(path, PAIRS[2])
    assert read_labels(path) == PAIRS


def test_labels_find_their_pictures_with_and_without_suffix() -> None:
    pairs = [Pair("room/a", 1, 2, 3, 4, "closer"), Pair("room/b.jpg", 1, 2, 3, 4, "equal")]
    labels = LabelSet(pairs, ["room/a.png", "room/b.jpg", "room/c.jpg"])
    assert labels.images == ["room/a.png", "room/b.jpg"]
    assert len(labels) == 2
    first, second, signs = labels.points("room/a.png", (10, 20, 3))
    assert (first.tolist(), second.tolist(), signs.tolist()) == ([[1, 2]], [[3, 4]], [1])
    assert labels.points("room/c.jpg", (10, 20))[0].shape == (0, 2)


def test_labels_without_a_picture_or_outside_it_are_refused() -> None:
    with pytest.raises(DataError, match=r"'rom/a\.png'.*did you mean 'room/a\.png'"):
        LabelSet([Pair("rom/a.png", 1, 2, 3, 4, "closer")], ["room/a.png"])
    labels = LabelSet([Pair("a", 1, 2, 20, 4, "closer")], ["a.png"])
    with pytest.raises(DataError, match=r"\(20, 4\) outside the image of 20x10"):
        labels.points("a.png", (10, 20, 3))


@pytest.mark.parametrize(
    ("first", "second", "relation"),
    [(1.0, 1.04, "closer"), (1.04, 1.0, "farther"), (1.0, 1.02, "equal"), (1.02, 1.0, "equal")],
)
def test_relations_from_depth(first: float, second: float, relation: str) -> None:
    assert relation_of(first, second) == relation


@pytest.mark.parametrize("form", ["triples", "pairs"])
def test_simulated_labels_are_true_and_repeat(form: str) -> None:
    rng = np.random.default_rng(0)
    depth = rng.uniform(1, 5, (24, 32)).astype(np.float32)
    depth[:5] = np.nan
    cfg = SimulationConfig(form=form, count=7)
    pairs = simulate("a.png", depth, cfg)
    assert len(pairs) == (21 if form == "triples" else 7)
    for pair in pairs:
        one, other = depth[int(pair.y1), int(pair.x1)], depth[int(pair.y2), int(pair.x2)]
        assert pair.relation == relation_of(one, other)
    assert pairs == simulate("a.png", depth, cfg)
    assert pairs != simulate("b.png", depth, cfg)
    assert pairs != simulate("a.png", depth, SimulationConfig(form=form, count=7, seed=1))


def test_a_triple_is_an_anchor_between_two() -> None:
    depth = np.linspace(1, 5, 400, dtype=np.float32).reshape(20, 20)
    pairs = simulate("a", depth, SimulationConfig(count=4))
    for k in range(0, 12, 3):
        assert [pair.relation for pair in pairs[k : k + 3]] == ["closer", "farther", "farther"]


def test_wrong_labels_are_wrong() -> None:
    depth = np.random.default_rng(1).uniform(1, 5, (20, 20)).astype(np.float32)
    for pair in simulate("a", depth, SimulationConfig(count=9, wrong=1.0)):
        one, other = depth[int(pair.y1), int(pair.x1)], depth[int(pair.y2), int(pair.x2)]
        assert pair.relation != relation_of(one, other)


def test_unknown_or_flat_depth_gives_no_labels() -> None:
    assert simulate("a", np.full((9, 9), np.nan), SimulationConfig()) == []
    assert simulate("a", np.ones((9, 9)), SimulationConfig()) == []
