# SPDX-License-Identifier: Apache-2.0
"""Replay: measured points are never scored, all methods get the same input, files are complete."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from depth_node.config import build, load
from depth_node.fitting import FitStatus
from depth_node.frame import FrameInput
from depth_node.geometry.camera import Camera
from depth_node.pipeline import DepthPipeline, PipelineConfig
from depth_node.prediction import Prediction
from depth_node.recordings import replay, scores, sources
from depth_node.recordings.frames import FrameError
from depth_node.recordings.held_out import Sampling
from depth_node.ros import bags
from depth_node.ros.bags import Bag
from tests.helpers.recordings import (
    CAMERA,
    T_CAMERA_LIDAR,
    BagWriter,
    lidar_of,
    relative_of,
    scene,
    write_frame,
)

NO_NETWORK = {"model": {"path": ""}}


@pytest.fixture
def pipeline() -> DepthPipeline:
    return DepthPipeline(build(PipelineConfig, NO_NETWORK))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recordings") / "hall"
    for name in ("a", "b"):
        write_frame(folder / name)
    return folder


def frames_of(
    source: Path, pipeline: DepthPipeline, **sampling: float
) -> list[sources.ScoredFrame]:
    choice = Sampling(**sampling)  # type: ignore[arg-type]
    return list(sources.FolderFrames(source, choice, pipeline, stored_prediction="test"))


def test_points_of_the_depth_are_measured_and_not_scored(
    source: Path, pipeline: DepthPipeline
) -> None:
    for frame in frames_of(source, pipeline, points=40, seed=3):
        assert frame.input.sparse is not None and len(frame.input.sparse) == 40
        assert frame.scored is not None and frame.scored_truth is not None
        assert not frame.scored[frame.input.sparse.rows, frame.input.sparse.cols].any()
        assert frame.scored.sum() == CAMERA.width * CAMERA.height - 40
        assert np.array_equal(np.isfinite(frame.scored_truth), frame.scored)


def test_half_of_the_lidar_is_measured_and_the_pixels_it_hits_are_not_scored(
    source: Path, pipeline: DepthPipeline
) -> None:
    for frame in frames_of(source, pipeline):
        everything = len(lidar_of(scene()[1]))
        assert len(frame.input.points) == round(everything / 2)
        assert frame.scored is not None
        result = pipeline.process(frame.input)
        assert not frame.scored[result.sparse.rows, result.sparse.cols].any()
        hit = CAMERA.project(
            (frame.input.points @ T_CAMERA_LIDAR[:3, :3].T) + T_CAMERA_LIDAR[:3, 3]
        )
        cols, rows = np.floor(hit + 0.5).astype(int).T
        assert not frame.scored[rows, cols].any()


def test_without_hold_out_all_points_are_used_and_nothing_is_scored(
    source: Path, pipeline: DepthPipeline
) -> None:
    (frame, _) = frames_of(source, pipeline, hold_out=0.0)
    assert np.array_equal(frame.input.points, lidar_of(scene()[1]))
    assert frame.scored_truth is None
    result = pipeline.process(frame.input)
    row = scores.score(frame, "field", result)
    assert row["abs_rel"] is None and row["points"] > 0 and row["status"] == "OK"


def test_the_seed_decides_which_points(source: Path, pipeline: DepthPipeline) -> None:
    def chosen(seed: int) -> list[bytes]:
        return [m.input.points.tobytes() for m in frames_of(source, pipeline, seed=seed)]

    assert chosen(1) == chosen(1)
    assert chosen(1) != chosen(2)
    assert len(set(chosen(1))) == 2, "equal frames of different names get different points"


@pytest.mark.parametrize(
    ("sampling", "words"),
    [
        ({"points": 5, "lines": 4}, "exclude each other"),
        ({"points": -1}, "at least 1"),
        ({"lines": 1}, "at least 2"),
        ({"hold_out": 1.0}, "below 1"),
    ],
)
def test_contradictory_choices_are_refused(sampling: dict[str, float], words: str) -> None:
    with pytest.raises(FrameError, match=words):
        Sampling(**sampling)  # type: ignore[arg-type]


def test_a_frame_without_lidar_needs_points_or_lines(
    tmp_path: Path, pipeline: DepthPipeline
) -> None:
    write_frame(tmp_path / "s" / "f", lidar=False)
    with pytest.raises(FrameError, match=r"no lidar\.npy.*--points N"):
        frames_of(tmp_path / "s", pipeline)
    assert len(frames_of(tmp_path / "s", pipeline, lines=4)) == 1


def test_rivals_get_the_same_prediction_regions_and_points(
    source: Path, pipeline: DepthPipeline
) -> None:
    frame = frames_of(source, pipeline, points=60)[0]
    comparison = scores.MethodComparison(pipeline)
    assert comparison.methods == ("global_depth", "global_disparity", "slf", "ssf", "field")
    result = pipeline.process(frame.input)
    results = comparison.results(frame.input, result)
    assert list(results) == list(comparison.methods)
    assert results["field"] is result
    assert result.labels is None, "nobody waits for regions that the method does not use"
    for rival in results.values():
        assert rival.prediction is result.prediction
        assert rival.sparse is result.sparse
    assert results["slf"].labels is not None
    assert results["slf"].labels is results["ssf"].labels, "segmented once"
    alone = DepthPipeline(build(PipelineConfig, {**NO_NETWORK, "fit": {"method": "slf"}}))
    assert np.array_equal(alone.process(frame.input).depth, results["slf"].depth)


def test_run_folder_holds_everything(source: Path, pipeline: DepthPipeline, tmp_path: Path) -> None:
    out = tmp_path / "run"
    sampling = Sampling(points=200)
    frames = sources.FolderFrames(source, sampling, pipeline, stored_prediction="test")
    done: list[str] = []
    result = replay.replay(
        frames, pipeline, out, facts={"seed": 0}, images=1, save_depth=True, on_frame=done.append
    )
    assert done == ["a", "b"] and result.frames == 2
    assert load(PipelineConfig, out / "config.yaml") == pipeline.config
    lines = [json.loads(line) for line in (out / "frames.jsonl").read_text().splitlines()]
    assert lines == result.rows and len(lines) == 2 * 5
    assert json.loads((out / "summary.json").read_text()) == result.summary
    assert "| field |" in (out / "summary.md").read_text()
    assert json.loads((out / "run.json").read_text())["seed"] == 0
    assert [path.name for path in result.panels] == ["hall_a_panel.png"]
    stored = np.load(out / "depth" / "hall_b.npz")
    assert stored["depth"].shape == stored["std"].shape == (CAMERA.height, CAMERA.width)
    by_method = {row["method"]: row for row in result.summary}
    best_global = min(
        by_method["global_depth"]["abs_rel"], by_method["global_disparity"]["abs_rel"]
    )
    # Wall and box have different scales, which only fits per region can represent.
    assert by_method["slf"]["abs_rel"] < 0.5 * best_global
    assert by_method["ssf"]["abs_rel"] < 0.5 * best_global
    # The field does the same without regions.
    assert by_method["field"]["abs_rel"] < 0.5 * best_global


def test_why_no_point_of_a_folder_is_in_the_image_is_told(
    pipeline: DepthPipeline, tmp_path: Path
) -> None:
    folder = write_frame(tmp_path / "mm" / "a")
    np.save(folder / "lidar.npy", 1000 * np.load(folder / "lidar.npy"))
    frames = sources.FolderFrames(
        tmp_path / "mm", Sampling(hold_out=0.0), pipeline, stored_prediction="test"
    )
    assert len(list(frames)) == 1
    (sentence,) = frames.left_out.sentences()
    assert "out of range" in sentence and "not millimetres" in sentence
    assert not frames.left_out.damaged


def test_rows_are_kept_when_a_replay_is_interrupted(
    source: Path, pipeline: DepthPipeline, tmp_path: Path
) -> None:
    sampling = Sampling(points=50)
    frames = sources.FolderFrames(source, sampling, pipeline, stored_prediction="test")

    def stop(name: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        replay.replay(frames, pipeline, tmp_path, facts={}, images=0, on_frame=stop)
    assert len((tmp_path / "frames.jsonl").read_text().splitlines()) == 5
    assert not (tmp_path / "summary.json").exists()


def test_a_run_folder_that_cannot_be_written(
    source: Path, pipeline: DepthPipeline, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    frames = sources.FolderFrames(source, Sampling(points=50), pipeline, stored_prediction="test")
    with pytest.raises(FrameError, match=r"cannot be written.*--out"):
        replay.replay(frames, pipeline, tmp_path / "file" / "run", facts={})


def test_summary_averages_frames_then_sources() -> None:
    def row(source: str, abs_rel: float | None) -> dict[str, object]:
        values = dict.fromkeys(scores.SCORES, 1.0) | {"abs_rel": abs_rel}
        return {"method": "ssf", "source": source, "points": 1, "ms": 1.0, **values}

    (one,) = scores.summarise([row("a", 0.1), row("a", 0.3), row("a", None), row("b", 0.6)])
    assert one["abs_rel"] == pytest.approx((0.2 + 0.6) / 2)
    assert (one["frames"], one["sources"]) == (4, 2)
    (none,) = scores.summarise([row("a", None)])
    assert none["abs_rel"] is None
    assert scores.metric_cells(none)[0] == "-"


def test_a_frame_without_any_point_is_told_and_does_not_stop_the_run(
    pipeline: DepthPipeline, tmp_path: Path
) -> None:
    image, depth = scene()
    prediction = Prediction(relative_of(depth), "disparity_affine_invariant")
    nothing = sources.ScoredFrame(
        "s",
        "n",
        FrameInput(image, CAMERA, np.empty((0, 3), np.float32), np.eye(4), prediction=prediction),
        depth,
        np.ones(depth.shape, bool),
    )
    result = pipeline.process(nothing.input)
    assert result.fit.status is FitStatus.NO_POINTS
    row = scores.score(nothing, "field", result)
    assert (row["status"], row["abs_rel"], row["answered"]) == ("NO_POINTS", None, 0.0)
    assert json.loads(json.dumps(row)) == row
    results = scores.MethodComparison(pipeline).results(nothing.input, result)
    images = replay.panel(nothing, results, "field", "Nothing", "")
    assert images.panel().shape[2] == 3


# --- bags


def write_bag(path: Path, frame: sources.ScoredFrame) -> Path:
    bag = BagWriter(path)
    bag.static_tf([("camera", "lidar", T_CAMERA_LIDAR)])
    for time_s in (1.0, 1.1, 1.2):
        bag.info(time_s)
        bag.cloud(time_s, frame.input.points)
        bag.image(time_s)
    bag.close()
    return path


class Oracle:
    """Takes the place of a network and returns the frame's stored prediction."""

    def __init__(self) -> None:
        self.stage_ms: dict[str, float] = {}

    def predict(self, image: np.ndarray, camera: Camera | None = None) -> Prediction:
        return Prediction(relative_of(scene()[1]), "disparity_affine_invariant")


def test_a_bag_gives_the_same_depth_as_the_folder(source: Path, tmp_path: Path) -> None:
    pytest.importorskip("rosbags", reason="rosbags is not installed")
    pytest.importorskip("sensor_msgs", reason="the ROS message packages are not installed")
    alone = {"method": "field", "field": {"temporal": {"enabled": False}}}
    config = build(PipelineConfig, {**NO_NETWORK, "fit": alone})
    pipeline = DepthPipeline(config, Oracle())  # type: ignore[arg-type]
    (frame, _) = frames_of(source, pipeline, hold_out=0.0)
    want = pipeline.process(dataclasses.replace(frame.input, prediction=None))
    with Bag(write_bag(tmp_path / "bag", frame)) as bag:
        played = bags.BagFrames(bag, Sampling(hold_out=0.0), pipeline)
        assert len(played) == 3
        got = [pipeline.process(frame.input) for frame in played]
    assert len(got) == 3
    for result in got:
        assert np.array_equal(result.sparse.depth, want.sparse.depth)
        assert result.depth == pytest.approx(want.depth, rel=1e-6)


def test_a_bag_is_scored_on_the_points_that_were_held_out(source: Path, tmp_path: Path) -> None:
    pytest.importorskip("rosbags", reason="rosbags is not installed")
    pytest.importorskip("sensor_msgs", reason="the ROS message packages are not installed")
    pipeline = DepthPipeline(build(PipelineConfig, NO_NETWORK), Oracle())  # type: ignore[arg-type]
    (frame, _) = frames_of(source, pipeline, hold_out=0.0)
    with Bag(write_bag(tmp_path / "bag", frame)) as bag:
        played = bags.BagFrames(bag, Sampling(hold_out=0.4), pipeline)
        done = replay.replay(played, pipeline, tmp_path / "run", facts={}, images=1)
    assert done.frames == 3 and len(done.panels) == 1
    everything = len(lidar_of(scene()[1]))
    for row in done.rows:
        assert row["points"] <= round(0.6 * everything)
        assert 0 < row["scored_pixels"] <= everything - round(0.6 * everything)
    by_method = {row["method"]: row for row in done.summary}
    assert by_method["ssf"]["abs_rel"] < 0.5 * by_method["global_disparity"]["abs_rel"]
