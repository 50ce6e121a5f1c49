# SPDX-License-Identifier: Apache-2.0
"""The cases of `study field` on small frames whose truth is known."""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from depth_node.benchmarks.field_speed import SpeedProblem
from depth_node.benchmarks.speed import fit_problem
from depth_node.benchmarks.tables import Means, markdown
from depth_node.prediction import Prediction
from tests.benchmarks.test_accuracy import write_frame
from training.__main__ import main
from training.studies import field as cases

HEIGHT, WIDTH = 90, 120


def surface(phase: float) -> NDArray[np.float32]:
    y, x = np.mgrid[:HEIGHT, :WIDTH] / HEIGHT
    return (3 + np.sin(3 * x + phase) + 1.5 * y).astype(np.float32)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One source of two frames, the second with a LiDAR's file beside it."""
    folder = tmp_path_factory.mktemp("frames") / "room"
    write_frame(folder / "a", surface(0))
    second = write_frame(folder / "b", surface(2))
    np.save(second / "lidar.npy", np.zeros((4, 3), np.float32))
    (second / "calib.json").write_text('{"T_cam_lidar": [[1,0,0,0],[0,1,0,0],[0,0,1,0],[0,0,0,1]]}')
    return folder


class Bent:
    """A network that is right up to a scale that varies over the image."""

    def predict(self, image: NDArray[np.uint8]) -> Prediction:
        grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
        bend = np.linspace(0.8, 1.25, image.shape[1], dtype=np.float32)
        return Prediction(grey / 30 * bend, "depth_affine_invariant")


def column(table: cases.Table, name: str) -> dict[str, float]:
    at = table.head.index(name)
    return {row[0]: float(row[at]) for row in table.rows if row[at]}


def run(name: str, source: Path) -> cases.Table:
    finished: list[str] = []
    (table,) = cases.CASES[name](cases.Task([source], Bent(), [0], finished.append))
    assert {"room/a", "room/b"} <= set(finished)
    assert all(len(row) == len(table.head) for row in table.rows)
    return table


def test_targets_score_lines_where_a_lidar_is_and_points_elsewhere(source: Path) -> None:
    table = run("targets", source)
    ratio = column(table, "/ SSF")
    assert {"50", "250n", "lines_4", "lines_4n"} <= set(ratio)
    assert "10000" not in ratio  # as many as the frame has pixels
    assert column(table, "must reach")["250"] == cases.MUST_REACH["250"]
    assert 0 < ratio["1000n"] < 1


def test_ablation_shows_what_the_residual_brings(source: Path) -> None:
    table = run("ablation", source)
    assert float(table.rows[0][1]) < 0.1
    assert column(table, "250")["base alone"] > 2
    assert np.isnan(column(table, "250")["regions from masks"])  # these frames have none


def test_extrapolation_compares_with_the_global_fit(source: Path) -> None:
    table = run("extrapolation", source)
    assert {row[0].split(",")[0] for row in table.rows} == set(cases.AREAS)
    ours, theirs = column(table, "field"), column(table, "global fit")
    assert ours["left half, image"] < theirs["left half, image"]


def test_few_points_name_their_status(source: Path) -> None:
    table = run("few", source)
    assert [row[0] for row in table.rows] == [str(count) for count in cases.FEW]
    status = {row[0]: row[-1] for row in table.rows}
    assert (status["1"], status["4"]) == ("MEDIAN_SCALE", "OK")


def test_interval_counts_thirds(source: Path) -> None:
    table = run("interval", source)
    assert table.rows[-1][0] == "mean"
    thirds = [column(table, name)["1000"] for name in ("narrow third", "middle", "wide")]
    assert column(table, "all")["1000"] == pytest.approx(np.mean(thirds), abs=0.02)


def test_flicker_is_less_with_memory(source: Path) -> None:
    assert max(column(run("flicker", source), "flicker ratio").values()) < 0.5


def test_segmentation_names_the_library_it_lacks(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "skimage.segmentation", None)
    with pytest.raises(ValueError, match="pip install scikit-image"):
        cases.segmentation(cases.Task([source], Bent(), [0]))


def test_every_way_of_fitting_is_timed() -> None:
    prediction, _, labels = fit_problem()
    problem = SpeedProblem.of(prediction, labels, 48, 64, 100)
    assert problem.image.shape == (48, 64, 3)
    times = problem.medians(1)
    assert set(times) == {
        *("field", "with memory", "ssf", "ssf robust", "memory floor", "NumPy form")
    }
    assert min(times.values()) > 0


def test_means_weigh_sources() -> None:
    means = Means()
    for source, value in (("a", 1.0), ("a", 3.0), ("a", np.nan), ("b", 4.0)):
        means.add("row", "column", source, value)
    assert means("row", "column") == 3.0
    assert means.of_sources("row", "column") == {"a": 2.0, "b": 4.0}
    assert (means.rows(), means.columns()) == (["row"], ["column"])


def test_notes_stand_below_a_table_on_the_page() -> None:
    text = markdown([cases.Table("T", ["a", "b"], [["x", "1"]], ["measured here"])])
    assert text == "### T\n\n| a | b |\n|---|---|\n| x | 1 |\n\n- measured here\n"


def test_figure_and_command_line(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["study", "field", "figure", "--out", str(tmp_path / "f.png")]) == 0
    assert cv2.imread(str(tmp_path / "f.png")).std() > 10
    assert (tmp_path / "f.png").stat().st_size < 200_000
    arguments = ["study", "field", "few", str(source), "--out", str(tmp_path / "few.md")]
    assert main(arguments) == 0
    assert "MEDIAN_SCALE" in (tmp_path / "few.md").read_text()
    assert "Few points" in capsys.readouterr().out
    assert main(["study", "field", "few"]) == 1
    assert "no SOURCE is given" in capsys.readouterr().err


def test_numbers_of_a_wide_table_stay_whole(capsys: pytest.CaptureFixture[str]) -> None:
    """However narrow the console is."""
    from rich.console import Console

    from depth_node.cli.console import print_table

    head = ["method", *(f"condition {n}" for n in range(12))]
    row = ["a long name of a method", *(f"0.12{n:02d}" for n in range(12))]
    print_table(Console(width=40, highlight=False), "T", head, [row], set())
    shown = capsys.readouterr().out
    assert any(all(cell in line for cell in row[1:]) for line in shown.splitlines())
