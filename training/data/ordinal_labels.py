# SPDX-License-Identifier: Apache-2.0
"""Pairwise ordinal labels: which of two points of an image is nearer.

A label file is CSV with the header `image,x1,y1,x2,y2,relation`, or JSON: a list of objects with
these keys. x is the column and y the row of a pixel, with centres at integers, in the image's own
size. relation is that of the FIRST point to the second: `closer`, `farther` or `equal`. image is
a path below the folder of the images, as the data set names it.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import reprlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from depth_node import config
from depth_node.recordings.frames import IMAGE_SUFFIXES
from depth_node.sentences import nearest, one_line
from training.data.files import content
from training.data.samples import DataError

COLUMNS = ("image", "x1", "y1", "x2", "y2", "relation")
# The sign of a relation is the sign of disparity(first) - disparity(second).
SIGNS = {"closer": 1, "farther": -1, "equal": 0}
TRIPLE_TRIES = 20  # anchors drawn to find one with a closer and a farther point
RATIO = 1.03  # largest ratio of depths called equal (Chen et al. 2016; structure-guided ranking)


@dataclass(frozen=True)
class Pair:
    """One label: the first point (x1, y1) is `relation` than the second; pixels of the image."""

    image: str
    x1: float
    y1: float
    x2: float
    y2: float
    relation: str

    @property
    def sign(self) -> int:
        """+1 if the first point is nearer, -1 if it is farther, 0 if they are equal."""
        return SIGNS[self.relation]


def read_labels(path: str | Path) -> list[Pair]:
    """Read the labels of a .csv or .json file. Raises DataError, which names the line."""
    path = Path(path)
    text = _text(path)
    return _read_json(path, text) if is_json(path) else _read_csv(path, text)


def is_json(path: Path) -> bool:
    """Return whether a label file is JSON, by its suffix."""
    return path.suffix.lower() == ".json"


def _text(path: Path) -> str:
    """Read the text of a label file; bytes that are not UTF-8 become surrogate escapes."""
    try:
        data = content(path)
    except FileNotFoundError as error:
        raise DataError(
            f"There is no label file {path}; make one with `python -m training annotate FOLDER"
            f" --out {path}`."
        ) from error
    except (OSError, ValueError) as error:
        raise DataError(
            f"The label file {path} cannot be read ({one_line(error)}); check it."
        ) from error
    if b"\0" in data:
        raise DataError(
            f"The label file {path} cannot be read (it is no text in UTF-8); save it so."
        )
    return data.decode("utf-8", "surrogateescape").removeprefix("\ufeff")


def _read_csv(path: Path, text: str) -> list[Pair]:
    reader = csv.DictReader(io.StringIO(text, newline=""), skipinitialspace=True)
    try:
        names = list(reader.fieldnames or [])
        missing = [name for name in COLUMNS if name not in names]
        if missing:
            raise DataError(
                f"The label file {path} has no column {missing[0]!r}: its first line must be"
                f" {','.join(COLUMNS)}."
            )
        if twice := [name for name in COLUMNS if names.count(name) > 1]:
            raise DataError(
                f"The label file {path} has two columns {twice[0]!r}: delete or rename one."
            )
        return [_pair(row, f"{path}, line {reader.line_num}") for row in reader]
    except csv.Error as error:
        raise DataError(
            f"{path}, after line {reader.line_num}: what follows is no line of CSV"
            f" ({error}); correct or delete it."
        ) from error


def _read_json(path: Path, text: str) -> list[Pair]:
    try:
        rows = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"The label file {path} is no JSON ({one_line(error)}); correct it."
        ) from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DataError(f"The label file {path} must be a list of objects with {COLUMNS}.")
    return [_pair(row, f"{path}, label {k + 1}") for k, row in enumerate(rows)]


def _pair(row: Mapping[str, object], where: str) -> Pair:
    missing = [name for name in COLUMNS if row.get(name) in (None, "")]
    if missing:
        raise DataError(f"{where}: {missing[0]!r} is missing; complete or delete that label.")
    relation = str(row["relation"]).strip().lower()
    if relation not in SIGNS:
        guess = nearest(relation, SIGNS) if len(relation) < 80 else None
        hint = f" (did you mean {guess!r}?)" if guess else ""
        raise DataError(
            f"{where}: the relation {reprlib.repr(relation)} is none of {', '.join(SIGNS)}"
            f"{hint}; correct it."
        )
    try:
        x1, y1, x2, y2 = numbers = [float(str(row[name])) for name in COLUMNS[1:5]]
    except ValueError as error:
        raise DataError(
            f"{where}: a coordinate is no number ({one_line(error)}); correct it."
        ) from error
    if not all(math.isfinite(number) for number in numbers):
        raise DataError(f"{where}: a coordinate is not finite; correct it.")
    return Pair(str(row["image"]).strip(), x1, y1, x2, y2, relation)


def write_labels(path: str | Path, pairs: Iterable[Pair]) -> None:
    """Write the whole file, in the format of its suffix; after a crash the old file is intact."""
    path = Path(path)
    rows = [{name: getattr(pair, name) for name in COLUMNS} for pair in pairs]
    if path.suffix.lower() == ".json":
        text = json.dumps(rows, indent=1)
    else:
        text = ",".join(COLUMNS) + "\n" + "".join(_line(row) for row in rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        file.write(text.encode("utf-8", "surrogateescape"))
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def append_label(path: str | Path, pair: Pair) -> None:
    """Append a label; it is on the disk when this returns.

    A CSV file gets one write at its end; a JSON file is written again.
    """
    path = Path(path)
    if is_json(path) or not path.exists():
        write_labels(path, [*(read_labels(path) if path.exists() else []), pair])
        return
    line = _line({name: getattr(pair, name) for name in COLUMNS})
    with path.open("ab", buffering=0) as file:
        file.write(line.encode("utf-8", "surrogateescape"))
        os.fsync(file.fileno())


def _line(row: Mapping[str, object]) -> str:
    out = io.StringIO()
    values = [f"{v:.10g}" if isinstance(v, float) else v for v in (row[name] for name in COLUMNS)]
    csv.writer(out, lineterminator="\n").writerow(values)
    return out.getvalue()


def require_ours(path: str | Path) -> None:
    """Raise DataError for a file that labels must not be written to.

    It has another suffix than .csv or .json, or another content, or other columns, which would be
    lost. A file that does not exist is accepted.
    """
    path = Path(path)
    if path.suffix.lower() not in (".csv", ".json"):
        raise DataError(
            f"Labels are not written to {path}: give a name that ends in .csv or .json."
        )
    if not path.exists():
        return
    text = _text(path)
    if is_json(path):
        _read_json(path, text)
        columns = {name for row in json.loads(text) for name in row} | set(COLUMNS)
        ours = columns == set(COLUMNS)
    else:
        if not text.endswith("\n") and "\n" in text:  # what `mended` repairs
            text = text[: text.rfind("\n") + 1]
        _read_csv(path, text)
        first = next(csv.reader(io.StringIO(text, newline=""), skipinitialspace=True))
        ours = tuple(first) == COLUMNS
    if not ours:
        raise DataError(
            f"{path} has other columns than {','.join(COLUMNS)}, which would be lost: give another"
            " label file."
        )


def mended(path: str | Path) -> bool:
    """Repair a last line without a newline, and return whether a label is lost.

    A crash or an editor leaves such a line. If it is a whole label, or the header, it gets its
    newline; otherwise it is removed. Nothing is written before the rest of the file has been read
    as labels; raises DataError if it holds something else.
    """
    path = Path(path)
    if is_json(path) or not path.exists():
        return False
    text = _text(path)
    if not text or text.endswith("\n"):
        return False
    whole = text[: text.rfind("\n") + 1]
    pairs = _read_csv(path, whole if whole.strip() else text)
    try:
        complete = len(_read_csv(path, text)) == len(pairs) + 1
    except DataError:
        complete = False
    if not whole.strip():  # the header alone
        complete = True
    data = (text + "\n" if complete else whole).encode("utf-8", "surrogateescape")
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
    return not complete


def split_by_image(
    pairs: Sequence[Pair], held: float, seed: int = 0
) -> tuple[list[Pair], list[Pair]]:
    """Split labels into those to train on and those held out; no image is in both parts.

    Images are held out at random until they have the fraction `held` of all labels; one image
    always stays for training. Raises DataError for labels on fewer than two images.
    """
    names = sorted({_stem(pair.image) for pair in pairs})
    if len(names) < 2:
        raise DataError(
            "Labels on fewer than two images cannot be split by image: label some more."
        )
    counts = Counter(_stem(pair.image) for pair in pairs)
    away: set[str] = set()
    for k in np.random.default_rng(seed).permutation(len(names))[: len(names) - 1]:
        if sum(counts[name] for name in away) >= held * len(pairs):
            break
        away.add(names[k])
    return (
        [pair for pair in pairs if _stem(pair.image) not in away],
        [pair for pair in pairs if _stem(pair.image) in away],
    )


def _stem(name: str) -> str:
    """Return an image's name without the suffix of an image, which a label may leave out."""
    return str(Path(name).with_suffix("")) if Path(name).suffix.lower() in IMAGE_SUFFIXES else name


class LabelSet:
    """Labels of a folder of images, by image.

    names: the names of the images. A label may leave out the suffix of its image. Raises DataError
    for a label of an image that is not among them.
    """

    def __init__(self, pairs: Iterable[Pair], names: Iterable[str]) -> None:
        known = list(names)
        by_stem: dict[str, str] = {}
        for name in known:
            by_stem.setdefault(name.rpartition(".")[0] or name, name)
        everyone = {**by_stem, **{name: name for name in known}}
        self._pairs: dict[str, list[Pair]] = {}
        for pair in pairs:
            if pair.image not in everyone:
                guess = nearest(pair.image, known)
                hint = f"; did you mean {guess!r}?" if guess else ""
                raise DataError(
                    f"A label names the image {pair.image!r}, which is not among the"
                    f" {len(known)} images{hint}; correct the label file or the folder."
                )
            self._pairs.setdefault(everyone[pair.image], []).append(pair)

    def __len__(self) -> int:
        """Return the number of all labels."""
        return sum(len(pairs) for pairs in self._pairs.values())

    @property
    def images(self) -> list[str]:
        """The names of the images that have labels, sorted."""
        return sorted(self._pairs)

    def points(
        self, name: str, shape: tuple[int, ...]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
        """Return first points (K, 2), (x, y), second points (K, 2) and signs (K,) of an image.

        shape: that of the image, (height, width, ...). Raises DataError for a point outside it.
        """
        pairs = self._pairs.get(name, [])
        first = np.array([(p.x1, p.y1) for p in pairs], np.float64).reshape(-1, 2)
        second = np.array([(p.x2, p.y2) for p in pairs], np.float64).reshape(-1, 2)
        height, width = shape[:2]
        for x, y in np.concatenate([first, second]):
            if not (-0.5 <= x < width - 0.5 and -0.5 <= y < height - 0.5):
                raise DataError(
                    f"A label of {name!r} has the point ({x:g}, {y:g}) outside the image of"
                    f" {width}x{height} pixels; correct it, or label this size of the image."
                )
        return first, second, np.array([pair.sign for pair in pairs], np.int64)


@dataclass(frozen=True)
class SimulationConfig:
    """Settings of labels that are drawn from known depth instead of given by a person.

    Notes on WeSTAR disagree on whether its five samples are triples or pairs; hence the choice.
    """

    count: int = config.option(5, "Samples per image.", minimum=0)
    form: str = config.option(
        "triples",
        "triples: an anchor, a farther and a closer point give three pairs; pairs: any two points.",
        choices=("triples", "pairs"),
    )
    ratio: float = config.option(RATIO, "Depths within this factor are equal.", minimum=1)
    wrong: float = config.option(
        0.0, "Fraction of labels with the opposite relation.", minimum=0, maximum=1
    )
    seed: int = config.option(0, "Seed of the points, together with the image's name.")

    def __post_init__(self) -> None:
        config.validate(self)


def relation_of(first_m: float, second_m: float, ratio: float = RATIO) -> str:
    """Return the relation of the first point to the second: closer, farther or equal."""
    quotient = first_m / second_m
    return "closer" if quotient < 1 / ratio else "farther" if quotient > ratio else "equal"


def simulate(name: str, depth: NDArray[np.floating], cfg: SimulationConfig) -> list[Pair]:
    """Draw labels of one image from its depth (H, W) m, NaN unknown.

    There are fewer if too little depth is known or no triple is found. The same name and seed give
    the same labels.
    """
    rng = np.random.default_rng([cfg.seed, *os.fsencode(name)])
    rows, columns = np.nonzero(np.isfinite(depth) & (depth > 0))
    if len(rows) < 3:
        return []
    z = depth[rows, columns].astype(np.float64)
    pairs: list[Pair] = []
    for _ in range(cfg.count):
        if cfg.form == "pairs":
            drawn = rng.choice(len(z), 2, replace=False)
            chosen = [(int(drawn[0]), int(drawn[1]))]
        else:
            chosen = _triple(z, cfg.ratio, rng)
        for i, j in chosen:
            relation = relation_of(float(z[i]), float(z[j]), cfg.ratio)
            if rng.random() < cfg.wrong:
                relation = {"closer": "farther", "farther": "closer"}.get(relation, "closer")
            here = (float(columns[i]), float(rows[i]), float(columns[j]), float(rows[j]))
            pairs.append(Pair(name, *here, relation))
    return pairs


def _triple(
    z: NDArray[np.float64], ratio: float, rng: np.random.Generator
) -> list[tuple[int, int]]:
    """Return the three pairs of indices of an anchor, a farther and a closer point; [] if none."""
    for _ in range(TRIPLE_TRIES):
        anchor = int(rng.integers(len(z)))
        far, near = np.flatnonzero(z > ratio * z[anchor]), np.flatnonzero(z < z[anchor] / ratio)
        if len(far) and len(near):
            f, n = int(rng.choice(far)), int(rng.choice(near))
            return [(anchor, f), (anchor, n), (f, n)]
    return []
