# SPDX-License-Identifier: Apache-2.0
"""Conversion of images to input tensors and of outputs to image size, as the manifest describes.

No other module resizes images for networks or outputs of networks; upsampling.py enlarges depth
maps for this one.
"""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from depth_node.engine.upsampling import enlarged
from depth_node.sentences import quoted

CHANNEL_ORDERS = ("rgb", "bgr")
DTYPES = ("float32", "float16", "uint8")
RESIZES = ("stretch", "letterbox", "corner", "crop", "longest_side")
_CV2_INTERPOLATIONS = {
    "area": cv2.INTER_AREA,
    "linear": cv2.INTER_LINEAR,
    "cubic": cv2.INTER_CUBIC,
    "nearest": cv2.INTER_NEAREST_EXACT,
}
AREA_CUBIC = "area_cubic"
INTERPOLATIONS = (*_CV2_INTERPOLATIONS, AREA_CUBIC)


@dataclass(frozen=True)
class InputSpec:
    """Input of a network: a (1, 3, height, width) tensor and how it is made from an image.

    A tensor value is ``(pixel * scale - mean) / std`` with 8-bit pixels; mean and std are in the
    order of the tensor's channels.

    ``resize``: "stretch" (the aspect ratio changes), "letterbox" (the whole image in the middle of
    the tensor, 0 around it), "corner" (the whole image in the upper left corner, 0 elsewhere),
    "crop" (the middle of the image; the cut-off pixels get no output) or "longest_side" (the
    authors' rule of Depth Anything 3: the longest side is scaled to the longest side of the tensor,
    then each side is rounded to the nearest multiple of ``multiple``; if the tensor has another
    shape, the image is in its upper left corner and the rest is 0).

    ``interpolation`` is the one for shrinking, where "area_cubic" means "area". For enlarging,
    "area" becomes "linear" and "area_cubic" becomes "cubic"; the others stay the same.

    Raises ValueError for values that cannot be used.
    """

    height: int
    width: int
    channel_order: str = "rgb"
    scale: float = 1.0 / 255.0
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    dtype: str = "float32"
    resize: str = "stretch"
    interpolation: str = "area"
    multiple: int = 1

    def __post_init__(self) -> None:
        for name in ("height", "width", "multiple"):
            size = getattr(self, name)
            if not isinstance(size, int) or isinstance(size, bool) or size < 1:
                raise ValueError(
                    f"input {name} is {quoted(size)}: give a whole number of pixels above 0"
                )
        for name, allowed in (
            ("channel_order", CHANNEL_ORDERS),
            ("dtype", DTYPES),
            ("resize", RESIZES),
            ("interpolation", INTERPOLATIONS),
        ):
            value = getattr(self, name)
            if not isinstance(value, str) or value not in allowed:
                raise ValueError(
                    f"input {name} is {quoted(getattr(self, name))}: use one of"
                    f" {', '.join(allowed)}"
                )
        for name in ("mean", "std"):
            value = getattr(self, name)
            if not isinstance(value, (tuple, list)) or len(value) != 3:
                raise ValueError(
                    f"input {name} is {quoted(value)}: give three numbers, one a channel"
                )
            object.__setattr__(self, name, tuple(_number(item, name) for item in value))
        object.__setattr__(self, "scale", _number(self.scale, "scale"))
        if self.scale <= 0 or min(self.std) <= 0:
            raise ValueError("input scale and std must be above 0: correct them in the manifest")
        if self.height % self.multiple or self.width % self.multiple:
            raise ValueError(
                f"input {self.width}x{self.height} is no multiple of {self.multiple}: correct"
                " input.multiple, or export the model at a multiple of it"
            )
        plain = self.scale == 1 and set(self.mean) == {0.0} and set(self.std) == {1.0}
        if self.dtype == "uint8" and not plain:
            raise ValueError("input dtype uint8 takes raw pixels: set scale 1, mean 0 and std 1")

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Shape of the tensor, (1, 3, height, width)."""
        return (1, 3, self.height, self.width)


def _number(value: object, name: str) -> float:
    number = math.nan
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError):  # an integer of 400 digits
            number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"input {name} has {quoted(value)}: give finite numbers")
    return number


def to_tensor(image: npt.NDArray[np.uint8], spec: InputSpec) -> npt.NDArray[Any]:
    """Convert an (H, W, 3) uint8 RGB image to a contiguous (1, 3, height, width) tensor.

    The tensor is of type spec.dtype. Raises ValueError if the array is not such an image.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(
            f"image has shape {image.shape} and type {image.dtype}: give (H, W, 3) uint8 RGB"
        )
    height, width = image.shape[:2]
    if min(height, width) < 1:
        raise ValueError(f"image is {width}x{height}: it has no pixels")
    tensor = np.zeros(spec.shape, spec.dtype)
    top, left, rows, cols = image_box(height, width, spec)
    image = image[top : top + rows, left : left + cols]
    top, left, rows, cols = tensor_box(height, width, spec)
    if spec.resize == "longest_side":  # in two steps, as the code of Depth Anything 3 does
        first = _scaled(height, width, max(rows, cols))
        image = _resize(image, *first, spec.interpolation)
    small = _resize(image, rows, cols, spec.interpolation)
    gains, offsets = channel_gains(spec)
    for channel in range(3):
        plane = small[..., channel if spec.channel_order == "rgb" else 2 - channel]
        target = tensor[0, channel, top : top + rows, left : left + cols]
        if spec.dtype == "uint8":
            target[...] = plane
            continue
        target[...] = plane * gains[channel] + offsets[channel]
    return tensor


def channel_gains(spec: InputSpec) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return the (3,) gains and (3,) offsets: tensor value = pixel * gain + offset per channel."""
    std = np.array(spec.std)
    return (spec.scale / std).astype(np.float32), (-np.array(spec.mean) / std).astype(np.float32)


def image_box(height: int, width: int, spec: InputSpec) -> tuple[int, int, int, int]:
    """Return (top, left, rows, cols) of the part of the image that the tensor shows, pixels."""
    return _crop_box(height, width, spec) if spec.resize == "crop" else (0, 0, height, width)


def longest_side_size(height: int, width: int, longest: int, multiple: int) -> tuple[int, int]:
    """Return the (rows, cols) of an image after its longest side is scaled to ``longest`` pixels.

    Both are multiples of ``multiple``: as in Depth Anything 3 each side is rounded to the nearest
    multiple, halves upwards.
    """
    rows, cols = (
        max(1, math.floor(side / multiple + 0.5)) * multiple
        for side in _scaled(height, width, longest)
    )
    return rows, cols


def input_focal_px(spec: InputSpec, height: int, width: int, fx: float, fy: float) -> float:
    """Return the focal length of the network's own input, px: mean of both axes after resizing.

    height, width, fx, fy: size and focal lengths of the image, px.
    """
    _, _, image_rows, image_cols = image_box(height, width, spec)
    _, _, rows, cols = tensor_box(height, width, spec)
    return 0.5 * (fx * cols / image_cols + fy * rows / image_rows)


def interpolation_of(name: str, source: tuple[int, int], target: tuple[int, int]) -> str:
    """Return the interpolation to use from one (height, width) to another.

    If a side grows, "area" becomes "linear" and "area_cubic" becomes "cubic"; otherwise
    "area_cubic" becomes "area". All others stay as they are.
    """
    enlarged = target[0] > source[0] or target[1] > source[1]
    if name == AREA_CUBIC:
        return "cubic" if enlarged else "area"
    return "linear" if name == "area" and enlarged else name


def to_image(
    output: npt.NDArray[Any],
    spec: InputSpec,
    height: int,
    width: int,
    *,
    nearest: bool = False,
    image: npt.NDArray[np.uint8] | None = None,
) -> npt.NDArray[Any]:
    """Resize an (h, w) network output to the (height, width) of the image given to to_tensor.

    The output may be smaller or larger than the tensor; it covers the same view. Values become
    float32 and are interpolated linearly; pixels that a crop cut off are NaN. With `image`, the
    (height, width, 3) uint8 RGB image itself, a depth map keeps its edges (upsampling.py).

    With ``nearest`` (label maps) every pixel gets the nearest value of the output, and pixels that
    a crop cut off are 0. The type stays, except that a resized map of bool, uint32, int64 or uint64
    becomes int32, because OpenCV cannot resize these types.

    Raises ValueError if the output is not one map.
    """
    if output.ndim != 2:
        raise ValueError(f"network output has shape {output.shape}: give one (h, w) map")
    if not nearest:
        output = np.ascontiguousarray(output, dtype=np.float32)
    interpolation = "nearest" if nearest else "linear"
    if spec.resize in ("letterbox", "corner", "longest_side"):
        top, left, rows, cols = tensor_box(height, width, spec)
        full = _resize(output, spec.height, spec.width, interpolation)
        output = full[top : top + rows, left : left + cols]
    top, left, rows, cols = image_box(height, width, spec)
    if image is None:
        shown = _resize(output, rows, cols, interpolation)
    else:
        shown = _resize_depth(output, image[top : top + rows, left : left + cols])
    if spec.resize != "crop":
        return shown
    whole = np.full((height, width), 0 if nearest else np.nan, output.dtype)
    whole[top : top + rows, left : left + cols] = shown
    return whole


def resize_map(
    values: npt.NDArray[Any],
    height: int,
    width: int,
    *,
    image: npt.NDArray[np.uint8] | None = None,
) -> npt.NDArray[Any]:
    """Resize an (h, w) map to (height, width) float32 of the same view, by linear interpolation.

    With `image`, the (height, width, 3) uint8 RGB image, a depth map keeps its edges.
    """
    values = np.ascontiguousarray(values, dtype=np.float32)
    if image is None:
        return _resize(values, height, width, "linear")
    return _resize_depth(values, image)


def resize_image(image: npt.NDArray[np.uint8], height: int, width: int) -> npt.NDArray[np.uint8]:
    """Resize an (H, W, 3) image: shrinking averages over areas, enlarging is linear."""
    return _resize(image, height, width, "area")


def tensor_box(height: int, width: int, spec: InputSpec) -> tuple[int, int, int, int]:
    """Return (top, left, rows, cols) of the part of the tensor that shows the image."""
    if spec.resize == "longest_side":
        longest = max(spec.height, spec.width)
        rows, cols = longest_side_size(height, width, longest, spec.multiple)
        if rows <= spec.height and cols <= spec.width:
            return 0, 0, rows, cols
    elif spec.resize not in ("letterbox", "corner"):
        return 0, 0, spec.height, spec.width
    scale = min(spec.height / height, spec.width / width)
    rows = min(spec.height, max(1, math.floor(height * scale + 0.5)))
    cols = min(spec.width, max(1, math.floor(width * scale + 0.5)))
    if spec.resize != "letterbox":
        return 0, 0, rows, cols
    return (spec.height - rows) // 2, (spec.width - cols) // 2, rows, cols


def _crop_box(height: int, width: int, spec: InputSpec) -> tuple[int, int, int, int]:
    """Return (top, left, rows, cols) of the middle part of the image that fills the tensor."""
    scale = max(spec.height / height, spec.width / width)
    rows = min(height, max(1, math.floor(spec.height / scale + 0.5)))
    cols = min(width, max(1, math.floor(spec.width / scale + 0.5)))
    return (height - rows) // 2, (width - cols) // 2, rows, cols


def _resize_depth(
    values: npt.NDArray[np.float32], image: npt.NDArray[np.uint8]
) -> npt.NDArray[np.float32]:
    """Resize depth (h, w) to the image's size; enlarging keeps edges, shrinking is linear."""
    if values.shape == image.shape[:2]:
        return values
    return enlarged(np.ascontiguousarray(values), image)


def _scaled(height: int, width: int, longest: int) -> tuple[int, int]:
    """Return the (rows, cols) of an image after its longest side is scaled to ``longest``."""
    scale = longest / max(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def _resize(
    array: npt.NDArray[Any], height: int, width: int, interpolation: str
) -> npt.NDArray[Any]:
    """Resize by cv2.resize, which has pixel centres at integers + 0.5 (see interpolation_of)."""
    if array.shape[:2] == (height, width):
        return array
    size = (array.shape[0], array.shape[1])
    interpolation = interpolation_of(interpolation, size, (height, width))
    source = np.ascontiguousarray(array)
    if source.dtype in (
        np.int64,
        np.uint32,
        np.uint64,
        np.bool_,
    ):  # cv2.resize does not support these types
        source = source.astype(np.int32)
    return cv2.resize(source, (width, height), interpolation=_CV2_INTERPOLATIONS[interpolation])
