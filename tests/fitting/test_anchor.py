# SPDX-License-Identifier: Apache-2.0
"""anchor: metres without LiDAR points, with an honest interval, and none without evidence."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from depth_node.config import build, replace
from depth_node.fitting import FitStatus
from depth_node.fitting.anchor import FEW_POINTS, MetricAnchor
from depth_node.frame import FrameInput
from depth_node.geometry.camera import Camera
from depth_node.geometry.sparse_depth import SparseDepth
from depth_node.metrics import coverage
from depth_node.pipeline import DepthPipeline, DepthResult, PipelineConfig
from depth_node.prediction import KINDS, Prediction

HEIGHT, WIDTH = 60, 80
CAMERA = Camera(WIDTH, HEIGHT, 70.0, 70.0, (WIDTH - 1) / 2, (HEIGHT - 1) / 2)
ROWS, COLS = np.mgrid[0:HEIGHT, 0:WIDTH]
DEPTH = (3 + 2 * ROWS / HEIGHT + np.sin(COLS / 9)).astype(np.float32)
IMAGE = np.repeat((40 * DEPTH).astype(np.uint8)[..., None], 3, axis=2)
SECOND = 1_000_000_000


def prediction(kind: str = "disparity_affine_invariant", scale: float = 1.0) -> Prediction:
    """Return a network's prediction of DEPTH; scale: drift of its metres."""
    depth = DEPTH * np.float32(scale)
    values = 1 / depth if kind.startswith("disparity") else depth
    values = np.log(depth) if kind.startswith("log") else values
    if not kind.endswith("metric"):
        values = 0.7 * values + 0.1
    return Prediction(values.astype(np.float32), kind)


def points(count: int, seed: int = 0, noise: float = 0.0) -> SparseDepth:
    rng = np.random.default_rng(seed)
    rows, cols = np.divmod(rng.permutation(DEPTH.size)[:count], WIDTH)
    z = DEPTH[rows, cols] * np.exp(noise * rng.standard_normal(count))
    return SparseDepth.from_arrays(rows, cols, z)


def pipeline(**fit: object) -> DepthPipeline:
    return DepthPipeline(build(PipelineConfig, {"model": {"path": ""}, "fit": fit}))


def show(
    of: DepthPipeline, time_s: float, sparse: SparseDepth, answer: Prediction | None = None
) -> DepthResult:
    frame = FrameInput(IMAGE, CAMERA, prediction=answer or prediction(), sparse=sparse)
    return of.process(dataclasses.replace(frame, stamp_ns=SECOND + round(time_s * SECOND)))


@pytest.mark.parametrize("method", ["field", "ssf", "global_disparity", "median"])
@pytest.mark.parametrize("kind", KINDS)
def test_depth_goes_on_when_the_points_stay_away(method: str, kind: str) -> None:
    of = pipeline(method=method)
    assert show(of, 0.0, points(200), prediction(kind)).fit.status is FitStatus.OK
    result = show(of, 0.5, points(0), prediction(kind))
    assert result.fit.status is FitStatus.UNANCHORED
    np.testing.assert_allclose(result.depth, DEPTH, rtol=0.02)
    assert "0.5 s ago" in result.fit.message and "check the LiDAR" in result.fit.message
    assert show(of, 0.6, points(200), prediction(kind)).fit.status is FitStatus.OK


def test_depth_goes_on_for_half_a_minute_by_default() -> None:
    of = pipeline()
    show(of, 0.0, points(200))
    assert show(of, 29.0, points(0)).fit.status is FitStatus.UNANCHORED
    assert np.isnan(show(of, 31.0, points(0)).depth).all()


def test_the_interval_widens_with_age_and_holds_what_wanders() -> None:
    of = pipeline()
    show(of, 0.0, points(200))
    widths = []
    for age_s in (0.1, 1.0, 5.0, 20.0):
        wandered = prediction(scale=1 + 0.1 * np.sqrt(age_s))
        result = show(of, age_s, points(0), wandered)
        widths.append(float(np.median(result.std / result.depth)))
        assert coverage(result.depth, result.std, DEPTH) > 0.95
    assert widths == sorted(widths)
    assert widths[-1] > 4 * widths[0]


def test_a_network_that_wanders_is_believed_less() -> None:
    def width(wander: float) -> float:
        of, rng = pipeline(), np.random.default_rng(0)
        for i in range(40):
            scale = float(np.exp(wander * rng.standard_normal()))
            show(of, i / 10, points(200, i), prediction(scale=scale))
        result = show(of, 6.0, points(0))
        return float(np.median(result.std / result.depth))

    assert width(0.5) > 2 * width(0.01)


@pytest.mark.parametrize("count", [1, 3, FEW_POINTS])
def test_few_points_correct_what_is_remembered(count: int) -> None:
    of = pipeline()
    show(of, 0.0, points(200, noise=0.02))
    wandered = prediction("disparity_affine_invariant", 1.3)
    alone = show(of, 4.0, points(0), wandered)
    helped = show(of, 4.0, points(count, 5), wandered)
    assert helped.fit.status is FitStatus.UNANCHORED
    assert f"only {count} LiDAR point" in helped.fit.message
    error = [float(np.median(np.abs(one.depth / DEPTH - 1))) for one in (alone, helped)]
    assert error[1] < 0.5 * error[0]
    assert np.median(helped.std) < np.median(alone.std)
    assert len(helped.fit.point_inlier) == count and helped.fit.point_inlier.all()


def test_few_points_do_not_stop_the_interval_from_widening() -> None:
    """They correct the line as a whole; a twentieth of its drift differs from place to place."""
    bounds = []
    for age_s in (1.0, 8.0, 25.0):
        of = pipeline()
        show(of, 0.0, points(200))
        bounds.append(show(of, age_s, points(5)).fit.details["bound"])
    assert bounds[0] < bounds[1] < bounds[2]
    # Few points leave their own error too, e^2 / n beside e^2.
    of_pixels = np.log1p(bounds[2]) ** 2 * 5 / 6
    assert of_pixels == pytest.approx(0.02**2 + 0.05 * 0.18**2 * 25, rel=0.02)


def test_a_single_wrong_point_moves_nothing() -> None:
    of = pipeline()
    show(of, 0.0, points(200))
    wrong = SparseDepth.from_arrays([10], [10], [40.0])
    result = show(of, 1.0, wrong)
    np.testing.assert_allclose(result.depth, DEPTH, rtol=0.02)
    assert not result.fit.point_inlier.any() and result.rejected.all()


def test_metres_are_never_invented() -> None:
    of = pipeline()
    for i in range(3):
        result = show(of, i / 10, points(0))
        assert result.fit.status is FitStatus.NO_POINTS and np.isnan(result.depth).all()
    metric = show(of, 1.0, points(0), prediction("depth_metric"))
    assert metric.fit.status is FitStatus.UNANCHORED  # its own, unchecked and wide
    np.testing.assert_allclose(1.96 * metric.std / metric.depth, 1.25**3 - 1, rtol=1e-3)
    few = show(of, 2.0, points(FEW_POINTS))  # determine no line that could be remembered
    assert few.fit.status is FitStatus.OK
    assert show(of, 2.1, points(0)).fit.status is FitStatus.NO_POINTS


@pytest.mark.parametrize("kind", ["depth_metric", "disparity_metric"])
def test_a_metric_networks_own_metres_without_a_lidar(kind: str) -> None:
    """Of a network whose metres are 30 % off: within the interval alone, and few points mend it."""
    of, off = pipeline(), prediction(kind, 1.3)
    alone = show(of, 0.0, points(0), off)
    assert alone.fit.status is FitStatus.UNANCHORED and "the network's own" in alone.fit.message
    inside = np.abs(alone.depth - DEPTH) <= 1.96 * alone.std
    assert inside.mean() > 0.95
    helped = show(of, 0.1, points(FEW_POINTS), off)
    assert helped.fit.status is FitStatus.UNANCHORED and helped.fit.point_inlier.all()
    error = [float(np.median(np.abs(one.depth / DEPTH - 1))) for one in (alone, helped)]
    assert error[1] < 0.3 * error[0]
    width = [float(np.median(one.std / one.depth)) for one in (alone, helped)]
    assert width[1] < width[0]
    assert 0.17 < width[1] < 0.25, "no few points tell how pixels differ: 30 % stay"
    show(of, 0.2, points(200), off)
    fell_silent = show(of, 0.5, points(0), off)
    assert "those of 0.3 s ago" in fell_silent.fit.message
    assert np.median(fell_silent.std / fell_silent.depth) < 0.2
    np.testing.assert_allclose(fell_silent.depth, DEPTH, rtol=0.05)
    later = show(of, 31.0, points(0), off)  # what they said has ended: the network's own again
    assert later.fit.status is FitStatus.UNANCHORED and "the network's own" in later.fit.message
    np.testing.assert_allclose(later.depth, alone.depth)
    of.reconfigure(replace(of.config, {"fit.unanchored_s": 0.0}))
    unchecked = show(of, 32.0, points(0), off)
    assert unchecked.fit.status is FitStatus.NETWORK_METRES and np.isnan(unchecked.std).all()


def test_it_ends_by_age_by_parameter_and_by_a_reset() -> None:
    of = pipeline(unanchored_s=2.0)
    show(of, 0.0, points(200))
    assert show(of, 1.9, points(0)).fit.status is FitStatus.UNANCHORED
    assert show(of, 2.1, points(0)).fit.status is FitStatus.NO_POINTS
    of.reset()
    assert show(of, 1.0, points(0)).fit.status is FitStatus.NO_POINTS
    show(of, 3.0, points(200))
    assert show(of, 1.0, points(0)).fit.status is FitStatus.NO_POINTS, "time went back"
    of.reconfigure(replace(of.config, {"fit.unanchored_s": 0.0}))
    assert show(of, 3.1, points(0)).fit.status is FitStatus.NO_POINTS
    off = pipeline(unanchored_s=0.0)
    show(off, 0.0, points(200))
    assert show(off, 0.1, points(0)).fit.status is FitStatus.NO_POINTS


def test_images_of_no_sequence_leave_and_find_nothing() -> None:
    of = pipeline()
    frame = FrameInput(IMAGE, CAMERA, prediction=prediction(), sparse=points(200))
    of.process(frame)
    assert show(of, 0.1, points(0)).fit.status is FitStatus.NO_POINTS
    show(of, 0.2, points(200))
    alone = of.process(dataclasses.replace(frame, sparse=points(0)))
    assert alone.fit.status is FitStatus.NO_POINTS


def test_what_the_network_does_not_say_stays_unknown() -> None:
    of = pipeline()
    show(of, 0.0, points(200))
    answer = prediction()
    values = answer.values.copy()
    values[:10] = np.nan
    result = show(of, 0.1, points(0), Prediction(values, answer.kind))
    assert np.isnan(result.depth[:10]).all() and np.isnan(result.std[:10]).all()
    assert np.isfinite(result.depth[10:]).all()


def test_points_that_the_fit_does_not_believe_leave_no_trace() -> None:
    of = pipeline()
    sparse = points(200)
    z = sparse.depth.copy()
    z[::10] *= 4
    show(of, 0.0, dataclasses.replace(sparse, depth=z))
    result = show(of, 0.1, points(0))
    np.testing.assert_allclose(result.depth, DEPTH, rtol=0.02)
    assert np.median(result.std / result.depth) < 0.2


def test_the_memory_of_lines_is_bounded() -> None:
    anchor, sparse, answer = MetricAnchor(), points(50), prediction()
    v = answer.values[sparse.rows, sparse.cols]
    for i in range(2000):
        anchor.learn(SECOND + i * 1000, answer, v, sparse.depth.astype(np.float64))
    assert len(anchor._tried) <= 64 and len(anchor._drift) <= 30


# --- its numbers ---------------------------------------------------------------------------------

VALUES = np.linspace(1.0, 5.0, 20)  # m; what a network without fault says


def metric_network(values: np.ndarray = VALUES) -> Prediction:
    return Prediction(values[None].astype(np.float32), "depth_metric")


def bound_of(anchor: MetricAnchor, stamp_ns: int) -> float:
    """Return the 95 % bound of the relative error without a point."""
    nothing = np.empty(0)
    answer = anchor.answer(stamp_ns, metric_network(), nothing, nothing, 60.0)
    assert answer is not None
    return answer.bound


def walked(log_scale: np.ndarray) -> MetricAnchor:
    """Process ten frames a second, whose metres follow a drifting scale."""
    anchor = MetricAnchor()
    for i, shift in enumerate(log_scale):
        anchor.learn(i * SECOND // 10, metric_network(), VALUES, VALUES * np.exp(shift))
    return anchor


def test_six_points_determine_a_line_and_five_do_not() -> None:
    of = pipeline()
    show(of, 0.0, points(200))
    assert show(of, 0.5, points(5)).fit.status is FitStatus.UNANCHORED
    assert show(of, 1.0, points(6)).fit.status is FitStatus.OK


@pytest.mark.parametrize(("count", "growth"), [(10, 2.2), (40, 1.225), (240, 1.034)])
def test_the_error_of_a_line_from_few_points_is_taken_for_larger(count: int, growth: float) -> None:
    """1 + 8 / n + 40 / n², of points that lie 5 % above and below the line, in pairs."""
    values = np.repeat(np.linspace(1.0, 5.0, count // 2), 2)
    metres = values * np.exp(np.tile([0.05, -0.05], count // 2))
    anchor = MetricAnchor()
    anchor.learn(SECOND, metric_network(values), values, metres)
    assert bound_of(anchor, SECOND) == pytest.approx(np.expm1(0.05 * growth), rel=0.03)


def test_no_line_is_believed_to_two_percent_and_the_scale_wanders_by_18_in_a_second() -> None:
    anchor = walked(np.zeros(1))
    assert bound_of(anchor, 0) == pytest.approx(np.expm1(0.02), rel=1e-3)
    for age_s in (1, 4):
        expected = np.expm1(np.hypot(0.02, 0.18 * np.sqrt(age_s)))
        assert bound_of(anchor, age_s * SECOND) == pytest.approx(expected, rel=1e-3)


def test_the_wandering_is_watched_over_a_second_and_for_thirty_frames() -> None:
    """A scale that grows by 20 % a second: the line of a second ago is off by as much. When it
    stands still again, ten of the lines tried are older than that; then none."""
    ramp = np.arange(100) * 0.02
    assert walked(ramp).drift() == pytest.approx(1.96 * 0.2, rel=0.02)
    stopped = np.append(ramp, np.full(25, ramp[-1]))
    squares = [1.0] * 5 + [(1 - j / 10) ** 2 for j in range(1, 11)] + [0.0] * 15
    assert walked(stopped).drift() == pytest.approx(
        1.96 * 0.2 * np.sqrt(np.mean(squares)), rel=0.02
    )
