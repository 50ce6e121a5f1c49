# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import cv2
import numpy as np
import pytest

from depth_node.engine.preprocess import (
    InputSpec,
    longest_side_size,
    resize_image,
    resize_map,
    tensor_box,
    to_image,
    to_tensor,
)

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def sample_image(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def ramp(height: int, width: int) -> np.ndarray:
    """A smooth map in units of the view: u + 10 v with u, v in 0..1 at pixel centres."""
    u = (np.arange(width) + 0.5) / width
    v = (np.arange(height) + 0.5) / height
    return (u[None] + 10 * v[:, None]).astype(np.float32)


@pytest.mark.parametrize("order", ["rgb", "bgr"])
def test_tensor_values_follow_the_manifest(order: str) -> None:
    spec = InputSpec(6, 8, channel_order=order, **IMAGENET)
    image = sample_image(6, 8)
    tensor = to_tensor(image, spec)
    assert tensor.shape == spec.shape == (1, 3, 6, 8)
    assert tensor.dtype == np.float32
    assert tensor.flags.c_contiguous
    seen = image if order == "rgb" else image[..., ::-1]
    expected = (seen / 255.0 - IMAGENET["mean"]) / IMAGENET["std"]
    np.testing.assert_allclose(tensor[0], expected.transpose(2, 0, 1), atol=1e-5)


@pytest.mark.parametrize("dtype", ["float16", "uint8"])
def test_other_types(dtype: str) -> None:
    spec = InputSpec(6, 8, dtype=dtype, scale=1.0)
    tensor = to_tensor(sample_image(6, 8), spec)
    assert tensor.dtype == dtype
    np.testing.assert_array_equal(tensor[0].astype(int), sample_image(6, 8).transpose(2, 0, 1))


def test_area_averages_when_shrinking() -> None:
    image = np.zeros((40, 40, 3), np.uint8)
    image[::2] = 200  # finer than the tensor's pixels: the result is the mean, without moiré
    tensor = to_tensor(image, InputSpec(10, 10, scale=1.0))
    np.testing.assert_array_equal(tensor, 100.0)


def test_enlarging_is_smooth() -> None:
    image = np.repeat(np.arange(0, 160, 10, dtype=np.uint8)[None, :, None], 3, axis=2)
    tensor = to_tensor(np.repeat(image, 8, axis=0), InputSpec(64, 128, scale=1.0))
    assert np.abs(np.diff(tensor[0, 0], axis=1)).max() <= 2  # nearest neighbours would give 10


def test_letterbox_keeps_the_aspect_and_pads_with_zero() -> None:
    spec = InputSpec(32, 32, resize="letterbox", **IMAGENET)
    image = np.full((48, 96, 3), 255, np.uint8)
    tensor = to_tensor(image, spec)
    assert (tensor[0, :, :8] == 0).all()
    assert (tensor[0, :, 24:] == 0).all()
    assert (tensor[0, :, 8:24] > 1).all()


def test_corner_is_a_letterbox_without_an_upper_left_border() -> None:
    image = np.full((48, 96, 3), 255, np.uint8)
    tensor = to_tensor(image, InputSpec(32, 32, resize="corner", **IMAGENET))
    assert (tensor[0, :, :16] > 1).all()
    assert (tensor[0, :, 16:] == 0).all()


def test_crop_takes_the_middle() -> None:
    image = np.zeros((48, 96, 3), np.uint8)
    image[:, 24:72] = 90
    tensor = to_tensor(image, InputSpec(32, 32, resize="crop", scale=1.0))
    np.testing.assert_array_equal(tensor, 90)


@pytest.mark.parametrize("resize", ["stretch", "letterbox", "corner", "crop"])
@pytest.mark.parametrize("size", [(48, 96), (96, 48), (61, 83), (32, 40), (480, 640)])
@pytest.mark.parametrize("shrunk", [1, 2])
def test_what_goes_in_comes_back_in_place(resize: str, size: tuple, shrunk: int) -> None:
    """For a network that returns its input the map is where it was, and NaN where it is cut off."""
    height, width = size
    spec = InputSpec(64, 80, resize=resize, scale=1.0)
    values = ramp(height, width)
    image = np.repeat((values * 20)[..., None], 3, axis=2).astype(np.uint8)
    seen = to_tensor(image, spec)[0, 0]
    seen = resize_map(seen, 64 // shrunk, 80 // shrunk)  # such as from a network with stride 2
    back = to_image(seen, spec, height, width)
    assert back.shape == (height, width)
    assert back.dtype == np.float32
    known = np.isfinite(back)
    if resize == "crop":
        assert known.any(axis=0).all() or known.any(axis=1).all()
    else:
        assert known.all()
    # Within two pixels of the border of a letterbox the padding is mixed in.
    edge = np.zeros_like(known)
    rows, cols = np.nonzero(known)
    inset = max(6, 6 * max(height // 64, width // 80))
    edge[rows.min() + inset : rows.max() - inset, cols.min() + inset : cols.max() - inset] = True
    assert edge.sum() > 20
    error = np.abs(back - image[..., 0])[edge]
    assert error.max() < 8 if min(size) > 50 else error.max() < 12
    assert np.abs(error.mean()) < 2.5


def test_labels_come_back_unmixed() -> None:
    labels = np.array([[1, 7], [3, 200_000]], np.int32)
    for resize in ("stretch", "letterbox", "corner", "crop"):
        back = to_image(labels, InputSpec(20, 20, resize=resize), 50, 90, nearest=True)
        assert back.dtype == np.int32
        assert set(np.unique(back)) - {0} == {1, 3, 7, 200_000}
        assert (0 in back) == (resize == "crop")  # cut off: unassigned
    wide = to_image(labels.astype(np.int64), InputSpec(2, 2), 4, 4, nearest=True)
    assert wide[3, 3] == 200_000


def test_same_size_is_exact() -> None:
    values = np.random.default_rng(0).normal(size=(30, 40)).astype(np.float32)
    np.testing.assert_array_equal(to_image(values, InputSpec(30, 40), 30, 40), values)


def test_half_precision_output() -> None:
    back = to_image(ramp(8, 8).astype(np.float16), InputSpec(8, 8), 16, 16)
    assert back.dtype == np.float32


@pytest.mark.parametrize(
    "bad",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((0, 4, 3), np.uint8),
    ],
)
def test_what_is_no_picture_is_refused(bad: np.ndarray) -> None:
    with pytest.raises(ValueError, match="image"):
        to_tensor(bad, InputSpec(4, 4))


def test_output_that_is_no_map_is_refused() -> None:
    with pytest.raises(ValueError, match="one \\(h, w\\) map"):
        to_image(np.zeros((1, 4, 4), np.float32), InputSpec(4, 4), 4, 4)


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"height": 0}, "height"),
        ({"width": 3.5}, "width"),
        ({"width": True}, "width"),
        ({"channel_order": "rbg"}, "channel_order"),
        ({"dtype": "int8"}, "dtype"),
        ({"resize": "squash"}, "resize"),
        ({"interpolation": "bilinear"}, "interpolation"),
        ({"mean": (0.5, 0.5)}, "three numbers"),
        ({"mean": "0.5"}, "three numbers"),
        ({"std": (1.0, 0.0, 1.0)}, "above 0"),
        ({"scale": -1.0}, "above 0"),
        ({"scale": "1/255"}, "finite numbers"),
        ({"std": (1.0, float("nan"), 1.0)}, "finite numbers"),
        ({"dtype": "uint8"}, "raw pixels"),
    ],
)
def test_unusable_input_specification_is_refused(values: dict, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        InputSpec(**{"height": 32, "width": 32, **values})


def test_a_shrunk_picture_is_the_mean_of_its_areas() -> None:
    image = np.random.default_rng(5).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    shrunk = resize_image(image, 3, 4)
    means = image.reshape(3, 2, 4, 2, 3).mean(axis=(1, 3))
    assert shrunk.dtype == np.uint8
    np.testing.assert_allclose(shrunk, means, atol=0.51)
    np.testing.assert_array_equal(resize_image(image, 6, 8), image)


# --- the rules of networks' authors, each compared with their own code in OpenCV


def nearest_multiple(side: int, multiple: int) -> int:
    """Rounds halves upwards."""
    low = side // multiple * multiple
    return low + multiple if low + multiple - side <= side - low else low


def makers_longest_side(image: np.ndarray, longest: int, multiple: int) -> np.ndarray:
    """As Depth Anything 3: longest side first, then multiples; area to shrink, cubic to grow."""
    height, width = image.shape[:2]
    scale = longest / max(height, width)
    if max(height, width) != longest:
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        how = cv2.INTER_CUBIC if scale > 1 else cv2.INTER_AREA
        image = cv2.resize(image, size, interpolation=how)
    height, width = image.shape[:2]
    size = (nearest_multiple(width, multiple), nearest_multiple(height, multiple))
    if size != (width, height):
        up = size[0] > width or size[1] > height
        how = cv2.INTER_CUBIC if up else cv2.INTER_AREA
        image = cv2.resize(image, size, interpolation=how)
    return image


@pytest.mark.parametrize(
    "size", [(480, 640), (1080, 1920), (375, 1242), (640, 480), (100, 150), (126, 98), (504, 376)]
)
def test_longest_side_is_the_makers_rule(size: tuple[int, int]) -> None:
    image = cv2.GaussianBlur(sample_image(*size), (0, 0), 1.5)
    expected = makers_longest_side(image, 504, 14)
    rows, cols = expected.shape[:2]
    assert longest_side_size(*size, 504, 14) == (rows, cols)
    spec = InputSpec(
        rows, cols, scale=1.0, resize="longest_side", interpolation="area_cubic", multiple=14
    )
    assert tensor_box(*size, spec) == (0, 0, rows, cols)
    np.testing.assert_array_equal(to_tensor(image, spec)[0].transpose(1, 2, 0), expected)


@pytest.mark.parametrize("size", [(480, 640), (640, 480), (375, 1242), (200, 200)])
def test_longest_side_in_a_tensor_of_another_shape(size: tuple[int, int]) -> None:
    """The image is in the corner, and the output returns to where it was."""
    spec = InputSpec(
        280, 504, scale=1.0, resize="longest_side", interpolation="area_cubic", multiple=14
    )
    top, left, rows, cols = tensor_box(*size, spec)
    assert (top, left) == (0, 0) and rows <= 280 and cols <= 504
    assert abs(rows / cols - size[0] / size[1]) < 0.06 * size[0] / size[1]  # the aspect is kept
    values = ramp(*size)
    image = np.repeat((values * 20)[..., None], 3, axis=2).astype(np.uint8)
    seen = to_tensor(image, spec)[0, 0]
    assert (seen[rows:] == 0).all() and (seen[:, cols:] == 0).all()
    back = to_image(seen, spec, *size)
    inner = (slice(12, -12), slice(12, -12))
    np.testing.assert_allclose(back[inner], image[inner][..., 0], atol=4)


@pytest.mark.parametrize("size", [(480, 640), (100, 120), (480, 120)])
def test_area_cubic_with_stretch(size: tuple[int, int]) -> None:
    """Area interpolation if both sides shrink, cubic if one grows."""
    image = sample_image(*size)
    up = size[0] < 252 or size[1] < 336
    how = cv2.INTER_CUBIC if up else cv2.INTER_AREA
    expected = cv2.resize(image, (336, 252), interpolation=how)
    spec = InputSpec(252, 336, scale=1.0, interpolation="area_cubic")
    np.testing.assert_array_equal(to_tensor(image, spec)[0].transpose(1, 2, 0), expected)


def test_a_tensor_that_is_no_multiple_is_refused() -> None:
    with pytest.raises(ValueError, match="no multiple of 14"):
        InputSpec(280, 500, resize="longest_side", multiple=14)
    with pytest.raises(ValueError, match="multiple is 0"):
        InputSpec(280, 504, multiple=0)
