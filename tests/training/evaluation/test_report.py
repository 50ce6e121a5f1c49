# SPDX-License-Identifier: Apache-2.0
"""How networks are judged, and that the embedded one passes."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from rich.console import Console

pytest.importorskip("torch", reason="training needs torch (requirements-training.txt)")

from depth_node.engine import opening, options
from depth_node.inference import DepthModel, ModelConfig
from depth_node.prediction import Prediction
from training.__main__ import main
from training.data import layouts, ordinal_labels
from training.data.samples import DataError, Sample
from training.evaluation import predict as predict_module
from training.evaluation import protocols, report, score, statistics

H, W = 24, 32
INDOOR = protocols.PROTOCOLS["indoor"]


@pytest.fixture
def truth() -> np.ndarray:
    depth = np.random.default_rng(0).uniform(1, 5, (H, W)).astype(np.float32)
    depth[:3] = np.nan
    return depth


def aligned(values: np.ndarray, kind: str, truth: np.ndarray, name: str) -> np.ndarray:
    found = Prediction(values.astype(np.float32), kind)
    return protocols.align(found, truth, np.isfinite(truth), name, INDOOR)


# --- alignment -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kind", "told"),
    [
        ("disp_ls", "disparity_affine_invariant", lambda z: 7 / z + 3),
        ("sqrt_disp_ls", "disparity_affine_invariant", lambda z: (2 / np.sqrt(z) + 1) ** 2),
        ("depth_ls", "depth_affine_invariant", lambda z: 0.3 * z - 2),
        ("scale", "depth_metric", lambda z: 4 * z),
        ("median", "depth_metric", lambda z: 4 * z),
        ("median", "disparity_metric", lambda z: 4 / z),
        ("none", "depth_metric", lambda z: z),
        ("none", "disparity_metric", lambda z: 1 / z),
    ],
)
def test_an_alignment_forgives_what_its_name_says(name, kind, told, truth) -> None:
    found = aligned(told(np.nan_to_num(truth, nan=2.0)), kind, truth, name)
    np.testing.assert_allclose(found[3:], truth[3:], rtol=1e-4)


def test_an_alignment_forgives_no_more_than_that(truth: np.ndarray) -> None:
    whole = np.nan_to_num(truth, nan=2.0)
    assert np.abs(aligned(2 * whole, "depth_metric", truth, "none") / truth - 2)[3:].max() < 1e-5
    shifted = aligned(whole + 3, "depth_metric", truth, "scale")
    assert np.nanmean(np.abs(shifted - truth) / truth) > 0.1


def test_fits_agree_with_numpy_and_by_hand(truth: np.ndarray) -> None:
    values = np.random.default_rng(1).uniform(1, 3, (H, W))
    known = np.isfinite(truth)
    terms = np.stack([values[known], np.ones(known.sum())], axis=1)
    scale, shift = np.linalg.lstsq(terms, 1 / truth[known].astype(float), rcond=None)[0]
    found = aligned(values, "disparity_affine_invariant", truth, "disp_ls")
    np.testing.assert_allclose(found[known], 1 / (scale * values + shift)[known], rtol=1e-4)
    # p = 1, 2, 6 against 2, 2, 3: medians 2 and 2; least squares 24 / 41.
    p, g = np.array([[1.0, 2.0, 6.0]]), np.array([[2.0, 2.0, 3.0]], np.float32)
    assert aligned(p, "depth_metric", g, "median")[0].tolist() == pytest.approx([1, 2, 6])
    expected = [24 / 41, 48 / 41, 144 / 41]
    assert aligned(p, "depth_metric", g, "scale")[0].tolist() == pytest.approx(expected)


def test_alignments_clip_to_the_range_of_the_protocol() -> None:
    truth = np.array([[1.0, 2.0, 4.0, 19.0]], np.float32)
    values = np.array([[1.0, 0.5, 0.25, -3.0]])
    found = aligned(values, "disparity_affine_invariant", truth, "disp_ls")
    assert found.max() <= 20
    far = protocols.align(
        Prediction(values.astype(np.float32), "disparity_affine_invariant"),
        truth,
        np.array([[True, True, True, False]]),
        "disp_ls",
        protocols.PROTOCOLS["eth3d"],
    )
    assert far[0, 3] == pytest.approx(1 / protocols.SMALLEST_DISPARITY)


def test_what_a_prediction_does_not_have_is_refused(truth: np.ndarray) -> None:
    with pytest.raises(ValueError, match="no metres"):
        aligned(np.ones((H, W)), "disparity_affine_invariant", truth, "none")
    with pytest.raises(ValueError, match="did you mean 'disp_ls'"):
        aligned(np.ones((H, W)), "disparity_affine_invariant", truth, "disp_l")


def test_a_constant_prediction_is_the_mean_and_nothing_known_is_nan(truth: np.ndarray) -> None:
    found = aligned(np.full((H, W), 3.0), "disparity_affine_invariant", truth, "disp_ls")
    np.testing.assert_allclose(found, 1 / np.nanmean(1 / truth.astype(float)), rtol=1e-5)
    nothing = np.full((H, W), np.nan, np.float32)
    for name in ("median", "scale", "depth_ls", "disp_ls"):
        assert np.isnan(aligned(np.ones((H, W)), "depth_metric", nothing, name)).all()


# --- crops ---------------------------------------------------------------------------------------


def test_crops_by_hand() -> None:
    assert protocols.crop_box("nyu", 480, 640) == (45, 471, 41, 601)
    assert protocols.crop_box("nyu", 240, 320) == (22, 236, 20, 300)
    # Bottom-centred: rows 375 - 352 = 23, columns (1242 - 1216) / 2 = 13.
    assert protocols.crop_box("kitti", 375, 1242) == (23, 375, 13, 1229)
    # Garg: 0.40810811 * 352 = 143.65, 0.99189189 * 352 = 349.1; 0.03594771 * 1216 = 43.7,
    # 0.96405229 * 1216 = 1172.3. Eigen: 117.01, 321.6.
    assert protocols.crop_box("kitti_garg", 375, 1242) == (166, 372, 56, 1185)
    assert protocols.crop_box("kitti_eigen", 375, 1242) == (140, 344, 56, 1185)
    assert protocols.crop_box("kitti_garg", 352, 1216) == (143, 349, 43, 1172)
    with pytest.raises(ValueError, match="kitti_garg"):
        protocols.crop_box("kitti_grag", 352, 1216)


def test_a_protocol_counts_its_range_and_its_crop() -> None:
    truth = np.full((480, 640), 3.0, np.float32)
    truth[100, 100], truth[100, 101], truth[100, 102] = 11.0, np.nan, 0.0
    mask = protocols.counted(protocols.PROTOCOLS["nyu"], truth)
    assert mask.sum() == (471 - 45) * (601 - 41) - 3
    near = protocols.counted(protocols.PROTOCOLS["diode"], truth * 0.1)
    assert np.argwhere(near).tolist() == [[100, 100]]  # 1.1 m; the others lie before 0.6 m


# --- predictions once ----------------------------------------------------------------------------


class Counting:
    """Disparity from red, and how often it was asked."""

    def __init__(self) -> None:
        self.asked = 0

    def predict(self, image: np.ndarray) -> Prediction:
        self.asked += 1
        return Prediction(image[..., 0].astype(np.float32) + 1, "disparity_affine_invariant")


def samples(count: int = 2) -> list[Sample]:
    rng = np.random.default_rng(3)
    found = []
    for k in range(count):
        depth = rng.uniform(1, 5, (H, W)).astype(np.float32)
        image = np.repeat((200 / depth).astype(np.uint8)[..., None], 3, axis=2)
        found.append(Sample(str(k), image, depth, source=f"s{k % 2}"))
    return found


def test_predictions_are_made_once_and_scored_often(tmp_path: Path) -> None:
    first, again = Counting(), Counting()
    plan = score.ScoringPlan(corruptions=("jpeg",))
    rows = score.score(samples(), {"m": predict_module.Cached(first, "a" * 30, tmp_path)}, plan)
    assert first.asked == 2 * 6
    other = score.ScoringPlan(("disp_ls", "sqrt_disp_ls", "median"), corruptions=("jpeg",))
    more = score.score(samples(), {"m": predict_module.Cached(again, "a" * 30, tmp_path)}, other)
    assert again.asked == 0
    same = [row for row in more if row.alignment in ("disp_ls", "-")]
    assert same == rows
    assert len(more) == 2 * (2 + 3 * 6)
    stranger = predict_module.Cached(again, "b" * 30, tmp_path)
    stranger.predict(samples()[0].image)
    assert again.asked == 1


def test_a_damaged_prediction_is_made_anew(tmp_path: Path) -> None:
    model = Counting()
    cached = predict_module.Cached(model, "a" * 30, tmp_path)
    image = samples()[0].image
    whole = cached.predict(image).values
    (entry,) = cached.folder.iterdir()
    entry.write_bytes(entry.read_bytes()[:50])
    np.testing.assert_array_equal(cached.predict(image).values, whole)
    assert model.asked == 2
    cached.predict(image)
    assert model.asked == 2


def test_scores_are_of_the_reference_unless_asked_otherwise(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(opening, "AUTO", ("tensorrt",))  # on a machine with a GPU it would be taken
    _, identity, model = predict_module.open_model("embedded")
    assert model.engine.backend == options.REFERENCE
    monkeypatch.setattr(opening, "AUTO", (options.REFERENCE,))
    assert predict_module.open_model("embedded", "auto")[1] == identity
    assert main(["evaluate", "--procedural", "1", "--seed", "1", "--backend", "cpu"]) == 1
    assert "back end 'cpu' is not known" in capsys.readouterr().err


def test_pictures_without_a_scored_pixel_give_no_row() -> None:
    blind = Sample("0", samples()[0].image, np.full((H, W), 30.0, np.float32), source="s")
    assert score.score([blind], {"m": Counting()}) == []
    with pytest.raises(DataError, match="no depth to be judged by"):
        score.score([Sample("0", blind.image)], {"m": Counting()})


def test_a_corruption_wears_each_frame_in_its_own_way() -> None:
    a, b = samples()
    one = predict_module.corrupted(a, "gaussian", 2)
    np.testing.assert_array_equal(one.image, predict_module.corrupted(a, "gaussian", 2).image)
    renamed = replace(a, source=b.source, name=b.name)
    assert not np.array_equal(one.image, predict_module.corrupted(renamed, "gaussian", 2).image)


# --- means and intervals -------------------------------------------------------------------------


def test_the_plane_fits_a_slanted_floor() -> None:
    terms = score.plane_terms(H, W)
    truth = (1 / (terms @ [0.2, 0.1, 0.5])).astype(np.float32)
    np.testing.assert_allclose(score.baseline("plane", truth), truth, rtol=1e-5)
    spread = np.abs(score.baseline("constant", truth) - truth) / truth
    assert spread.mean() > 0.1


def test_means_are_over_frames_then_over_sources() -> None:
    rows = [
        score.Row("a", "x", "1", 0.1, 1.0),
        score.Row("a", "x", "2", 0.3, 0.0),
        score.Row("a", "y", "3", 0.6, 0.5),
    ]
    assert statistics.mean(rows, "a", "x") == pytest.approx((0.2, 0.5))
    assert statistics.mean(rows, "a") == pytest.approx((0.4, 0.5))
    pooled = statistics.bootstrap(statistics.gather(rows, ["a"], "abs_rel"), pooled=True)
    assert pooled.value == pytest.approx(1 / 3)
    assert math.isnan(statistics.mean(rows, "b")[0])


def test_the_interval_is_that_of_the_normal_theory() -> None:
    values = np.random.default_rng(0).normal(1.0, 0.2, (400, 1))
    found = statistics.bootstrap({"x": values}, pooled=True)
    half = 1.96 * values.std() / 20
    assert (found.low, found.high) == pytest.approx(
        (values.mean() - half, values.mean() + half), abs=0.1 * half
    )
    assert found == statistics.bootstrap({"x": values}, pooled=True)


def test_a_comparison_is_paired() -> None:
    """b is always 10 % above a: their ratio is certain though neither mean is."""
    a = np.random.default_rng(1).uniform(0.1, 0.9, (30, 1))
    both = {"x": np.concatenate([a, 1.1 * a], axis=1)}
    found = statistics.bootstrap(both, statistics.ratio, pooled=True)
    assert (found.low, found.value, found.high) == pytest.approx((1 / 1.1,) * 3)
    alone = statistics.bootstrap(both, pooled=True)
    assert alone.high - alone.low > 0.1


def test_sources_that_differ_widen_the_interval_by_source() -> None:
    rng = np.random.default_rng(2)
    values = {str(k): k / 10 + rng.normal(0, 0.01, (20, 1)) for k in range(5)}
    by_frame, by_source = (statistics.bootstrap(values, by=by) for by in ("frame", "source"))
    assert by_frame.value == by_source.value == pytest.approx(0.2, abs=0.01)
    # Means of five draws of 0, .1, .2, .3, .4: standard deviation .1414 / sqrt 5.
    assert by_source.high - by_source.low == pytest.approx(2 * 1.96 * 0.0632, rel=0.1)
    assert by_frame.high - by_frame.low < 0.01
    with pytest.raises(ValueError, match="by frame or by source"):
        statistics.bootstrap(values, by="room")


def test_only_frames_that_all_methods_have_are_compared() -> None:
    rows = [
        score.Row("a", "x", "1", 0.1, 1.0),
        score.Row("b", "x", "1", 0.2, 1.0),
        score.Row("a", "x", "2", 0.9, 1.0),
        score.Row("b", "x", "2", math.nan, 1.0),
    ]
    assert statistics.gather(rows, ["a", "b"], "abs_rel")["x"].tolist() == [[0.1, 0.2]]


def test_robustness_by_hand() -> None:
    """DEE2 of m: clean (.1 - .9 + 1) / 2 = .1, jpeg .2 at every severity; of base .1 and .4."""
    rows = []
    for method, worn in (("m", 0.2), ("base", 0.4)):
        rows.append(score.Row(method, "x", "1", 0.1, 0.9))
        for k in range(1, 6):
            rows.append(score.Row(method, "x", "1", worn, 1 - worn, corruption="jpeg", severity=k))
    (line,) = report.robustness(rows, ["m"], "base")
    assert (line["clean"], line["jpeg"]) == pytest.approx((0.1, 0.2))
    assert line["mce"] == pytest.approx(50.0)
    assert line["mrr"] == pytest.approx(100 * 0.8 / 0.9)


# --- the command and the embedded network --------------------------------------------------------


def test_the_embedded_network_beats_the_plane_on_unseen_rooms() -> None:
    """The gate at a small scale; the full one is in docs/benchmarks.md."""
    with DepthModel.open(ModelConfig(threads=1)) as model:
        samples = predict_module.procedural(24, seed=77, height=96, width=128)
        rows = score.score(samples, {"embedded": model})
    errors = {
        name: np.mean([row.abs_rel for row in rows if row.method == name])
        for name in ("embedded", "plane", "constant")
    }
    assert errors["embedded"] <= 0.75 * errors["plane"] < errors["constant"]


def test_the_embedded_network_beats_the_plane_on_real_rooms(shared: Path) -> None:
    rows = []
    with DepthModel.open(ModelConfig(threads=1)) as model:
        for source in ("apc_shelf", "arc_tote", "rtabmap_lab", "tum_rgbd"):
            samples = predict_module.recorded(shared / "data" / source)
            rows += score.score(samples, {"embedded": model})
    network, plane = (statistics.mean(rows, name)[0] for name in ("embedded", "plane"))
    assert network <= 0.85 * plane


def test_report_prints_and_writes(tmp_path: Path) -> None:
    out, page = tmp_path / "a" / "rows.json", tmp_path / "page.md"
    console = Console(record=True, width=140, quiet=True)
    rows = report.report(
        ["embedded"],
        2,
        5,
        [],
        out,
        console,
        plan=score.ScoringPlan(corruptions=("fog",)),
        cache=tmp_path / "cache",
        markdown=page,
    )
    assert len(rows) == 2 * (2 + 6)
    stored = json.loads(out.read_text())
    assert len(stored["rows"]) == len(rows)
    assert stored["rows"][0]["protocol"] == "indoor"
    line = stored["summary"][0]
    assert (line["method"], line["alignment"]) == ("embedded", "disp_ls")
    assert line["abs_rel"]["low"] <= line["abs_rel"]["value"] <= line["abs_rel"]["high"]
    text = page.read_text()
    for word in ("alignment disp_ls", "| plane |", "boundary F1", "mCE, %", "| 100.0 |", "fog"):
        assert word in text, word


def test_every_data_set_names_a_protocol() -> None:
    named = {layout.protocol for layout in layouts.LAYOUTS.values()} - {"none"}
    assert named <= set(protocols.PROTOCOLS)


def test_a_published_data_set_is_scored_by_its_own_protocol(tmp_path: Path) -> None:
    """Two NYUv2 images: the mean is over images, drawn by scene."""
    rng = np.random.default_rng(4)
    for k, scene in enumerate(("bath_1", "bath_1", "office_2")):
        folder = tmp_path / "test" / scene
        folder.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / f"rgb_{k:05d}.png"), rng.integers(0, 255, (480, 640, 3), np.uint8))
        depth = rng.integers(1000, 12000, (480, 640)).astype(np.uint16)
        cv2.imwrite(str(folder / f"sync_depth_{k:05d}.png"), depth)
    out = tmp_path / "rows.json"
    words = ["evaluate", "--data", "kind=nyuv2", f"folder={tmp_path}", "split=test"]
    assert main([*words, "--json", str(out)]) == 0
    stored = json.loads(out.read_text())
    assert {row["protocol"] for row in stored["rows"]} == {"nyu"}
    mine = [row for row in stored["rows"] if row["method"] == "embedded"]
    assert len(mine) == 3 and {row["source"] for row in mine} == {"test/bath_1", "test/office_2"}
    (line,) = [x for x in stored["summary"] if x["method"] == "embedded"]
    assert line["abs_rel"]["value"] == pytest.approx(np.mean([row["abs_rel"] for row in mine]))
    assert line["resampled_by"] == "source"
    assert stored["settings"]["data"]["folder"] == tmp_path.name  # no path of this machine


def test_a_network_is_judged_by_the_order_that_a_person_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = np.zeros((20, 40, 3), np.uint8)
    image[:, 20:] = 255
    cv2.imwrite(str(tmp_path / "a.png"), image)
    with DepthModel.open(ModelConfig(threads=1)) as model:
        disparity = model.predict(image).disparity()
    nearer = disparity[10, 5] > disparity[10, 35]
    said, wrong = ("closer", "farther") if nearer else ("farther", "closer")
    labels, out = tmp_path / "labels.csv", tmp_path / "out.json"
    pairs = [
        ordinal_labels.Pair("a.png", 5, 10, 35, 10, word) for word in (said, said, said, wrong)
    ]
    ordinal_labels.write_labels(labels, [*pairs, ordinal_labels.Pair("a.png", 1, 1, 2, 2, "equal")])
    words = ["evaluate", "--labels", str(labels), "--images", str(tmp_path)]
    assert main([*words, "--json", str(out)]) == 0
    (line,) = json.loads(out.read_text())["summary"]
    assert (line["pairs"], line["agreed"]["value"]) == (4, 0.75)
    ordinal_labels.write_labels(labels, [ordinal_labels.Pair("a.png", 5, 10, 40, 10, "closer")])
    assert main(words) == 1
    assert "(40, 10) outside the image of 40x20" in capsys.readouterr().err


def test_the_command_says_what_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    common = ["evaluate", "--procedural", "1", "--seed", "3"]
    for words, said in (
        (["--alignment", "disp"], "No alignment is called 'disp'"),
        (["--protocol", "indor"], "did you mean 'indoor'"),
        (["--corruptions", "rain"], "No corruption is called 'rain'"),
        (["--alignment", "none"], "no metres"),
        (["--base", "other"], "none of the methods"),
        (["--model", "absent.onnx"], "absent.onnx"),
        (["--seed", "-1"], "give --seed"),
        (["--data", "kind=nyu"], "nyuv2"),
        (["--labels", "absent.csv"], "--labels needs --images"),
    ):
        assert main([*common, *words]) == 1
        assert said in capsys.readouterr().err
