# SPDX-License-Identifier: Apache-2.0
"""Images: colours that mean what the bar says, unknown never looks like a value."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from depth_node.geometry.camera import Camera
from depth_node.visualization import clouds, colours, panels, points, text

CAMERA = Camera(width=160, height=120, fx=140.0, fy=140.0, cx=79.5, cy=59.5)


def room() -> tuple[np.ndarray, np.ndarray]:
    """A wall at 4 m with a box at 2 m before it; image and depth."""
    depth = np.full((120, 160), 4.0, np.float32)
    depth[40:90, 50:100] = 2.0
    image = np.full((120, 160, 3), (90, 120, 150), np.uint8)
    image[40:90, 50:100] = (200, 40, 40)
    return image, depth


@pytest.mark.parametrize("logarithmic", [False, True])
def test_scale_orders_values_and_clips(logarithmic: bool) -> None:
    scale = colours.Scale("depth", 1.0, 16.0, logarithmic)
    place = scale.position(np.array([0.1, 1.0, 2.0, 4.0, 16.0, 99.0, np.inf]))
    assert place[0] == place[1] == 0.0
    assert place[-3] == place[-2] == 1.0
    assert np.all(np.diff(place) >= 0)
    assert place[3] == pytest.approx(0.5 if logarithmic else 0.2)


@pytest.mark.parametrize(
    "scale",
    [
        colours.Scale("depth", 0.31, 0.83, logarithmic=True),
        colours.Scale("depth", 1.1, 7.2, logarithmic=True),
        colours.Scale("depth", 6.8, 113.0, logarithmic=True),
        colours.Scale("deviation", 0.0, 0.037),
        colours.error_scale(25.0),
    ],
)
def test_ticks_are_few_round_and_inside(scale: colours.Scale) -> None:
    ticks = scale.ticks()
    assert 2 <= len(ticks) <= 6
    assert all(scale.low - 1e-9 <= tick <= scale.high + 1e-9 for tick in ticks)
    assert all(len(f"{tick:g}".lstrip("-")) <= 5 for tick in ticks)
    assert ticks == sorted(set(ticks))


def test_scale_refuses_what_cannot_be_drawn() -> None:
    with pytest.raises(ValueError, match="low < high"):
        colours.Scale("depth", 2.0, 2.0)
    with pytest.raises(ValueError, match="low > 0"):
        colours.Scale("depth", 0.0, 2.0, logarithmic=True)
    with pytest.raises(ValueError, match="No colour table"):
        colours.colour_table("rainbow")


def test_unknown_pixels_never_take_a_colour_of_the_scale() -> None:
    scale = colours.Scale("depth", 1.0, 5.0, logarithmic=True)
    values = np.linspace(1, 5, 40, dtype=np.float32).reshape(4, 10)
    values[1, 3] = np.nan
    values[2, 5] = np.inf
    sample_image = colours.colour_map(values, scale)
    ground = {colours.UNKNOWN, colours.UNKNOWN_LINE}
    assert not ground & {tuple(colour) for colour in colours.colour_table("depth").tolist()}
    unknown = [[tuple(pixel) in ground for pixel in row] for row in sample_image.tolist()]
    assert np.array_equal(unknown, ~np.isfinite(values))


def test_near_is_warm_and_far_is_cold() -> None:
    near, far = colours.Scale("depth", 1.0, 9.0).colours(np.array([1.0, 9.0])).astype(int)
    assert near[0] > near[2] + 80
    assert far[2] > far[0] + 80


def test_error_is_signed_and_unknown_where_either_is_unknown() -> None:
    truth = np.array([[2.0, 2.0, np.nan, 2.0, 0.0]], np.float32)
    depth = np.array([[2.2, 1.0, 2.0, np.nan, 1.0]], np.float32)
    error = colours.relative_error_percent(depth, truth)
    assert error[0, :2] == pytest.approx([10.0, -50.0], rel=1e-5)
    assert np.isnan(error[0, 2:]).all()
    too_far, too_near = colours.error_scale().colours(np.array([25.0, -25.0])).astype(int)
    assert too_far[0] > too_far[2]
    assert too_near[2] > too_near[0]


def test_neighbouring_region_numbers_are_told_apart() -> None:
    palette = colours.region_palette(60).astype(int)
    steps = np.abs(np.diff(palette[1:], axis=0)).sum(axis=1)
    assert steps.min() > 60
    assert tuple(palette[0]) == colours.UNKNOWN


def test_points_are_drawn_where_they_are_and_the_nearest_on_top() -> None:
    image = np.zeros((60, 80, 3), np.uint8)
    scale = colours.Scale("depth", 1.0, 9.0)
    rows, cols = np.array([20, 20]), np.array([30, 30])
    for depth in (np.array([1.0, 9.0]), np.array([9.0, 1.0])):
        sample_image = points.points_on_image(image, rows, cols, depth, scale)
        assert np.array_equal(sample_image[20, 30], scale.colours(np.array([1.0]))[0])
        assert not sample_image[40:, 50:].any()


def test_flying_pixels_at_edges_are_left_out() -> None:
    _, depth = room()
    keep = clouds.smooth_surface(depth)
    assert keep[10, 10] and keep[60, 70]
    assert not keep[40, 50:100].any() and not keep[39, 50:100].any()
    depth[5, 5] = np.nan
    assert not clouds.smooth_surface(depth)[5, 5]


def test_cloud_views_show_the_box_and_survive_emptiness() -> None:
    image, depth = room()
    for view in (clouds.point_cloud_view, clouds.top_view):
        sample_image = view(depth, image, CAMERA, 150, 200)
        assert sample_image.shape == (150, 200, 3)
        red = (sample_image[..., 0] > 120) & (sample_image[..., 1] < 90)
        assert red.sum() > 20
        nothing = view(np.full_like(depth, np.nan), image, CAMERA, 150, 200)
        assert nothing.std() < 20


def test_crosses_mark_the_place_and_leave_the_rest_alone() -> None:
    sample_image = np.full((120, 160, 3), 99, np.uint8)
    crossed = points.draw_crosses(sample_image, np.array([40]), np.array([100]))
    assert sample_image.min() == sample_image.max() == 99, "the given image is not drawn into"
    red = np.argwhere((crossed == colours.REJECTED).all(axis=2))
    np.testing.assert_allclose(red.mean(axis=0), (40, 100), atol=0.6)
    changed = np.argwhere((crossed != 99).any(axis=2))
    assert np.abs(changed - (40, 100)).max() <= 6
    np.testing.assert_array_equal(
        points.draw_crosses(sample_image, np.array([]), np.array([])), sample_image
    )


def test_top_view_is_metric() -> None:
    """The wall at 4 m is drawn twice as far from the camera's foot as the box at 2 m."""
    image, depth = room()
    sample_image = clouds.top_view(depth, image, CAMERA, 300, 300).astype(int)
    column = sample_image[:, 140]  # beside the middle grid line, through box and wall
    red = np.flatnonzero((column[:, 0] > 120) & (column[:, 1] < 90))
    column = sample_image[:, 90]
    blue = np.flatnonzero((column[:, 2] > 120) & (column[:, 0] < 120))
    foot = 300 - 26
    assert (foot - blue.mean()) / (foot - red.mean()) == pytest.approx(2.0, rel=0.05)


def test_text_is_drawn_and_clipped_at_the_border() -> None:
    sample_image = np.zeros((40, 60, 3), np.uint8)
    text.put_text(sample_image, "12.5 m ± é", (50, 30), 11)
    assert sample_image.max() > 100
    text.put_text(sample_image, "outside", (500, 500), 11)
    assert text.text_width("mm", 11) > text.text_width("m", 11) > 0


@pytest.mark.parametrize("with_truth", [True, False])
def test_frame_panel_has_every_card_and_saves_them(tmp_path: Path, with_truth: bool) -> None:
    image, depth = room()
    truth = depth.copy() if with_truth else None
    if truth is not None:
        truth[:20] = np.nan
    rows, cols = np.array([10, 60, 100]), np.array([10, 70, 150])
    rejected = np.array([False, True, False])
    labels = (depth < 3).astype(np.int32) + 1
    numbers = panels.TableCard("Scores", ("method", "AbsRel"), [("ssf", "0.05")], 0, columns=3)
    images = panels.frame_images(
        image, CAMERA, rows, cols, depth[rows, cols], rejected, labels, depth, depth, 0.1 * depth,
        truth=truth, heading="A room", method="ssf", numbers=numbers,
    )  # fmt: skip
    lidar = next(card for card in images.cards if card.title == "LiDAR on image")
    assert isinstance(lidar, panels.ImageCard)
    assert lidar.caption == "3 metric points, 1 rejected (red crosses)"
    assert tuple(lidar.image[60, 70]) == colours.REJECTED
    assert tuple(lidar.image[10, 10]) != colours.REJECTED
    titles = [card.title for card in images.cards]
    assert ("Error against the truth" in titles) == with_truth
    always = {"Camera image", "LiDAR on image", "Regions", "Relative depth", "Metric depth"}
    always |= {"Point cloud", "Seen from above", "Standard deviation", "Scores"}
    assert always <= set(titles)
    paths = images.save(tmp_path / "images", "f0")
    assert paths[0].name == "f0_panel.png"
    assert {path.name for path in paths} == {p.name for p in (tmp_path / "images").iterdir()}
    panel = cv2.imread(str(paths[0]))
    assert panel is not None and panel.shape[1] == 3 * panels.CARD_WIDTH + 4 * panels.MARGIN
    metric = cv2.imread(str(tmp_path / "images" / "f0_metric_depth.png"))
    scale = colours.depth_scale(depth, depth[rows, cols])
    assert np.array_equal(metric[..., ::-1], scale.colours(depth))


def test_a_picture_of_nothing_is_still_a_picture(tmp_path: Path) -> None:
    """No points, no depth, no truth: every card says unknown, nothing raises."""
    image, _ = room()
    unknown = np.full((120, 160), np.nan, np.float32)
    none = np.empty(0, np.int64)
    images = panels.frame_images(
        image, CAMERA, none, none, np.empty(0, np.float32), none.astype(bool),
        np.zeros((120, 160), np.int32), unknown, unknown, unknown, truth=unknown, heading="Nothing",
    )  # fmt: skip
    assert images.panel().ndim == 3


def test_write_picture_says_why_it_cannot(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    sample_image = np.zeros((4, 4, 3), np.uint8)
    with pytest.raises(OSError, match=r"Not a directory|File exists"):
        panels.write_image(tmp_path / "file" / "a.png", sample_image)
