# SPDX-License-Identifier: Apache-2.0
"""Label files, errors in them, and labels simulated from depth."""

from __future__ import annotations

import json
import os
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
    require_ours,
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
    """A byte-order mark, other line ends, capitals, spaces and an extra column are accepted."""
    path = tmp_path / "labels.csv"
    text = "﻿relation, image, x1, y1, x2, y2, who\r\n Closer, a.png, 1, 2, 3, 4, me\r\n"
    path.write_bytes(text.encode())
    assert read_labels(path) == PAIRS[:1]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("image,x1,y1,x2,relation\n", "no column 'y2'"),
        ("", "no column 'image'"),
        (
            "image,x1,y1,x2,y2,relation,relation\na,1,2,3,4,closer,farther\n",
            "two columns 'relation'",
        ),
        ("i\0m\0a\0g\0e\0", "no text in UTF-8"),
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


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("a.csv", HEADER + "x" * 200_000 + ",1,2,3,4,equal\n", "after line 1.*no line of CSV"),
        ("a.csv", HEADER + 'a.png,"1,2,3,4,equal\n', "missing|CSV"),
        ("a.csv", HEADER + "a.png,1,2,3,4," + "y" * 9_000 + "\n", "none of closer"),
        ("a.json", "[" * 100_000, "no JSON"),
        ("a.json", '[{"image": "a"}, 3]', "list of objects"),
        ("a.csv", "\0\0", "no text"),
    ],
)
def test_hostile_label_files_are_a_sentence(
    tmp_path: Path, name: str, text: str, sentence: str
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=sentence) as caught:
        read_labels(tmp_path / name)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 700


def test_a_last_label_without_its_end_keeps_it(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    write_labels(path, PAIRS)
    path.write_bytes(path.read_bytes()[:-1])
    assert not mended(path), "nothing is lost"
    assert read_labels(path) == PAIRS
    append_label(path, PAIRS[0])
    assert read_labels(path) == [*PAIRS, PAIRS[0]]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("notes.csv", b"milk,eggs"),
        ("notes.csv", b"milk,eggs\nbread"),
        ("notes.csv", b"thoughts\n"),
        ("photo.jpg", b"\xff\xd8\xff\xe0 no end"),
        ("photo.csv", b"\xff\xd8\0\xff\xe0 no end"),
        ("more.csv", b"image,x1,y1,x2,y2,relation,who\na.png,1,2,3,4,equal,me\n"),
        ("other.csv", b"relation,image,x1,y1,x2,y2\nequal,a.png,1,2,3,4"),
        ("a.json", b'{"a": 1}'),
        ("a.json", b'[{"image":"a","x1":1,"y1":1,"x2":2,"y2":2,"relation":"equal","by":"me"}]'),
        ("a.txt", b""),
    ],
)
def test_a_file_that_is_not_ours_is_not_touched(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError):
        require_ours(path)
    assert path.read_bytes() == content
    if path.suffix == ".csv" and not content.endswith(b"\n") and b"relation" not in content:
        with pytest.raises(DataError):
            mended(path)
        assert path.read_bytes() == content


def test_names_of_bytes_come_back(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    for end in ("csv", "json"):
        append_label(tmp_path / f"a.{end}", Pair(name, 1, 2, 3, 4, "equal"))
        append_label(tmp_path / f"a.{end}", PAIRS[0])
        assert [pair.image for pair in read_labels(tmp_path / f"a.{end}")] == [name, "a.png"]
    assert simulate(name, np.linspace(1, 2, 64).reshape(8, 8), SimulationConfig())
