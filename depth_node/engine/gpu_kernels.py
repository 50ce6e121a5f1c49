# SPDX-License-Identifier: Apache-2.0
"""GPU kernels for the work around the network: CUDA source, and NumPy twins with the same results.

Tests compare every kernel with its NumPy twin, and every twin with the CPU code for the same task
(preprocess.to_tensor, surface_maps.depth_map, the end of field.solve), so that an image gives the
same tensor and a fit the same depth on the CPU and on the GPU. Apart from its thread indices the
source is plain C, so tests also compile it for the CPU and run it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from depth_node.engine.preprocess import (
    InputSpec,
    channel_gains,
    image_box,
    interpolation_of,
    tensor_box,
)

Floats = NDArray[np.float32]
Indices = NDArray[np.int32]

TENSOR_TYPES = {"float32": 0, "float16": 1, "uint8": 2}
SPACES = {"depth": 0, "disparity": 1, "log": 2}
BLOCK = (32, 8)  # threads along columns and rows
FIXED = 2048  # OpenCV's weights for linear resizing are multiples of 1 / FIXED

SOURCE = r"""
// Bits of the FP16 (IEEE binary16) number nearest to v, ties to even; needs no header.
__device__ static unsigned short fp16_bits(float v)
{
    union { float f; unsigned int u; } in;
    in.f = v;
    unsigned int sign = (in.u >> 16) & 0x8000u, rest = in.u & 0x7fffffffu;
    if (rest > 0x7f800000u) return (unsigned short)(sign | 0x7e00u);   // NaN
    if (rest >= 0x47800000u) return (unsigned short)(sign | 0x7c00u);  // too large, infinity
    if (rest < 0x38800000u) {                                          // below the normal numbers
        union { float f; unsigned int u; } magic;
        magic.f = 0.5f;
        in.u = rest;
        in.f += magic.f;  // the addition rounds to multiples of 2^-24
        return (unsigned short)(sign | (in.u - magic.u));
    }
    rest += 0xc8000fffu + ((rest >> 13) & 1u);  // exponent 127 -> 15, and rounding to even
    return (unsigned short)(sign | (rest >> 13));
}

// Image (rows of `pitch` bytes, 3 bytes a pixel) -> (3, height, width) tensor. Every row and
// column of the tensor's part that shows the image has `taps` indices into the image and
// weights; the rest of the tensor is 0. Tensor channel c is image channel first + c * step.
// fixed: weights are multiples of 2^-11, and products are cut off as OpenCV does when it resizes
// 8-bit images linearly, so that the pixels are the same.
extern "C" __global__ void image_to_tensor(
    const unsigned char* image, int pitch,
    const int* row_index, const float* row_weight, int row_taps,
    const int* col_index, const float* col_weight, int col_taps,
    int top, int left, int rows, int cols, int height, int width, int first, int step,
    float gain0, float gain1, float gain2, float offset0, float offset1, float offset2,
    int fixed, int type, void* tensor)
{
    int x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y * blockDim.y + threadIdx.y;
    if (x >= width || y >= height) return;
    int r = y - top, c = x - left;
    bool inside = r >= 0 && r < rows && c >= 0 && c < cols;
    float sum[3] = {0.f, 0.f, 0.f};
    if (inside && fixed) {
        int total[3] = {0, 0, 0};
        for (int i = 0; i < row_taps; ++i) {
            int wr = (int)(row_weight[r * row_taps + i] * 2048.f);
            const unsigned char* line = image + (long long)row_index[r * row_taps + i] * pitch;
            int part[3] = {0, 0, 0};
            for (int j = 0; j < col_taps; ++j) {
                int wc = (int)(col_weight[c * col_taps + j] * 2048.f);
                const unsigned char* pixel = line + 3 * col_index[c * col_taps + j];
                for (int k = 0; k < 3; ++k) part[k] += wc * pixel[k];
            }
            for (int k = 0; k < 3; ++k) total[k] += (wr * (part[k] >> 4)) >> 16;
        }
        for (int k = 0; k < 3; ++k) sum[k] = (float)((total[k] + 2) >> 2);
    } else if (inside) {
        for (int i = 0; i < row_taps; ++i) {
            float wr = row_weight[r * row_taps + i];
            if (wr == 0.f) continue;
            const unsigned char* line = image + (long long)row_index[r * row_taps + i] * pitch;
            float part[3] = {0.f, 0.f, 0.f};
            for (int j = 0; j < col_taps; ++j) {
                float wc = col_weight[c * col_taps + j];
                const unsigned char* pixel = line + 3 * col_index[c * col_taps + j];
                part[0] += wc * pixel[0];
                part[1] += wc * pixel[1];
                part[2] += wc * pixel[2];
            }
            sum[0] += wr * part[0];
            sum[1] += wr * part[1];
            sum[2] += wr * part[2];
        }
    }
    const float gain[3] = {gain0, gain1, gain2}, offset[3] = {offset0, offset1, offset2};
    long long plane = (long long)height * width, at = (long long)y * width + x;
    for (int k = 0; k < 3; ++k) {
        // Resizing gives whole numbers, as on the CPU.
        float level = floorf(sum[first + k * step] + 0.5f);
        level = fminf(fmaxf(level, 0.f), 255.f);
        float value = inside ? level * gain[k] + offset[k] : 0.f;
        if (type == 0) ((float*)tensor)[k * plane + at] = value;
        else if (type == 1) ((unsigned short*)tensor)[k * plane + at] = fp16_bits(value);
        else ((unsigned char*)tensor)[k * plane + at] = (unsigned char)(inside ? level : 0.f);
    }
}

// Per-region surfaces -> depth: s d + a x + b y + t, or its inverse if min_disparity > 0, within
// limits.
// table: (count, 6) s, a, b, t, lowest, highest of every label. Without labels (0), row 0 holds
// for all pixels.
// In double: if s d and t are large and nearly cancel, float loses millimetres.
extern "C" __global__ void apply_table(
    const float* relative, const int* labels, const double* table, int count,
    int height, int width, double min_disparity, float* depth)
{
    int col = blockIdx.x * blockDim.x + threadIdx.x, row = blockIdx.y * blockDim.y + threadIdx.y;
    if (col >= width || row >= height) return;
    long long at = (long long)row * width + col;
    int label = labels ? labels[at] : 0;
    if (label < 0 || label >= count) {
        depth[at] = nanf("");
        return;
    }
    const double* s = table + 6 * (long long)label;
    double x = width > 1 ? -1.0 + 2.0 * col / (width - 1) : 0.0;
    double y = height > 1 ? -1.0 + 2.0 * row / (height - 1) : 0.0;
    double value = s[0] * relative[at] + s[1] * x + s[2] * y + s[3];
    if (min_disparity > 0.0) {
        if (value < min_disparity) value = min_disparity;
        value = 1.0 / value;
    }
    if (value < s[4]) value = s[4];  // NaN is neither below nor above and stays
    if (value > s[5]) value = s[5];
    depth[at] = (float)value;
}

// The residual field -> depth: the network's values by one line into metres (space 0: depth,
// 1: disparity, 2: logarithm; kept between bottom and top), times the factor of a coarse grid,
// linear between the middles of its cells, within limits. What is not finite becomes NaN.
extern "C" __global__ void apply_grid(
    const float* values, const float* factor, int grid_height, int grid_width,
    int height, int width, int space, float scale, float shift, float bottom, float top,
    float nearest, float farthest, float* depth)
{
    int col = blockIdx.x * blockDim.x + threadIdx.x, row = blockIdx.y * blockDim.y + threadIdx.y;
    if (col >= width || row >= height) return;
    long long at = (long long)row * width + col;
    float value = values[at];
    if (!(fabsf(value) <= 3.402823466e38f)) {
        depth[at] = nanf("");
        return;
    }
    value = fminf(fmaxf(value * scale + shift, bottom), top);
    if (space == 1) value = 1.f / value;
    if (space == 2) value = expf(value);
    float y = (row + 0.5f) * ((float)grid_height / height) - 0.5f;
    float x = (col + 0.5f) * ((float)grid_width / width) - 0.5f;
    y = fminf(fmaxf(y, 0.f), grid_height - 1.f);
    x = fminf(fmaxf(x, 0.f), grid_width - 1.f);
    int i = (int)y, j = (int)x;
    int below = i + 1 < grid_height ? i + 1 : i, right = j + 1 < grid_width ? j + 1 : j;
    float fy = y - i, fx = x - j;
    const float* upper = factor + (long long)i * grid_width;
    const float* lower = factor + (long long)below * grid_width;
    float a = upper[j] + fx * (upper[right] - upper[j]);
    float b = lower[j] + fx * (lower[right] - lower[j]);
    value *= a + fy * (b - a);
    depth[at] = fminf(fmaxf(value, nearest), farthest);
}
"""


@dataclass(frozen=True)
class Taps:
    """Source positions that contribute to each target position along one axis, and their weights.

    index, weight: (n, taps) for n target positions.
    """

    index: Indices
    weight: Floats

    @classmethod
    def of(cls, source: int, target: int, interpolation: str, start: int = 0) -> Taps:
        """Return the taps of OpenCV's resizing from `source` positions, from `start` on.

        target: number of positions after resizing.
        """
        scale = source / target
        position = np.arange(target)
        if interpolation == "area":
            low, high = position * scale, (position + 1) * scale
            first = np.floor(low + 1e-9).astype(np.int64)
            count = int((np.ceil(high - 1e-9).astype(np.int64) - first).max())
            index = first[:, None] + np.arange(count)
            weight = np.minimum(index + 1, high[:, None]) - np.maximum(index, low[:, None])
            weight = np.maximum(weight, 0) / scale
        elif interpolation == "nearest":
            step = ((source << 16) + target // 2) // target  # OpenCV's fixed point, bit by bit
            index = ((step * position + step // 2 - source % 2) >> 16)[:, None]
            weight = np.ones(index.shape)
        else:
            middle = (position + 0.5) * scale - 0.5
            if interpolation == "linear":  # as in OpenCV: float32, clipped to the border
                middle = np.clip(middle.astype(np.float32), 0, source - 1)
            whole = np.floor(middle).astype(np.int64)
            f = (middle - whole).astype(np.float64)
            if interpolation == "linear":
                index = whole[:, None] + np.arange(2)
                weight = np.rint(np.stack([1 - f, f], axis=1) * FIXED) / FIXED
            else:
                index = whole[:, None] + np.arange(-1, 3)
                weight = _cubic(f)
        index = np.clip(index, 0, source - 1) + start  # pixels beyond the border repeat it
        return cls(np.ascontiguousarray(index, np.int32), np.ascontiguousarray(weight, np.float32))


def _cubic(f: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the (n, 4) weights of positions -1, 0, 1 and 2 for (n,) target positions f in [0, 1).

    Keys' cubic kernel with OpenCV's parameter A: Keys, "Cubic convolution interpolation for digital
    image processing" (1981), equation 15.
    """
    A = -0.75
    weight = np.empty((len(f), 4))
    weight[:, 0] = ((A * (f + 1) - 5 * A) * (f + 1) + 8 * A) * (f + 1) - 4 * A
    weight[:, 1] = ((A + 2) * f - (A + 3)) * f * f + 1
    weight[:, 2] = ((A + 2) * (1 - f) - (A + 3)) * (1 - f) ** 2 + 1
    weight[:, 3] = 1 - weight[:, :3].sum(axis=1)
    return weight


@dataclass(frozen=True)
class Resampling:
    """Parameters of the kernel that converts images of one size to a network's tensor.

    rows, cols: taps into the image. box: (top, left, rows, cols) of the part of the tensor that
    shows the image. first_channel, channel_step: tensor channel c is image channel first_channel +
    c * channel_step. gains, offsets: (3,), see preprocess.channel_gains. fixed_point: linear
    interpolation in whole numbers, as OpenCV does it.
    """

    spec: InputSpec
    rows: Taps
    cols: Taps
    box: tuple[int, int, int, int]
    first_channel: int
    channel_step: int
    gains: Floats
    offsets: Floats
    fixed_point: bool

    @classmethod
    def of(cls, height: int, width: int, spec: InputSpec, order: str = "rgb") -> Resampling:
        """Return the parameters for (height, width) images with channels in this order.

        The result equals that of preprocess.to_tensor.
        """
        top, left, rows, cols = image_box(height, width, spec)
        box = tensor_box(height, width, spec)
        interpolation = interpolation_of(spec.interpolation, (rows, cols), box[2:])
        same = order == spec.channel_order
        return cls(
            spec,
            Taps.of(rows, box[2], interpolation, top),
            Taps.of(cols, box[3], interpolation, left),
            box,
            0 if same else 2,
            1 if same else -1,
            *channel_gains(spec),
            interpolation == "linear",
        )


def image_to_tensor(image: NDArray[np.uint8], resampling: Resampling) -> NDArray[Any]:
    """Twin of the kernel: convert an (H, W, 3) uint8 image to a (1, 3, height, width) tensor.

    The tensor has the type of the resampling's spec.
    """
    spec = resampling.spec
    tensor = np.zeros(spec.shape, spec.dtype)
    resample = _resampled_fixed_point if resampling.fixed_point else _resampled
    small = resample(image, resampling)
    top, left, rows, cols = resampling.box
    for channel in range(3):
        plane = small[..., resampling.first_channel + channel * resampling.channel_step]
        if spec.dtype != "uint8":
            plane = plane * resampling.gains[channel] + resampling.offsets[channel]
        tensor[0, channel, top : top + rows, left : left + cols] = plane
    return tensor


def _resampled(image: NDArray[np.uint8], resampling: Resampling) -> Floats:
    """Resample an (H, W, 3) image to (rows, cols, 3) whole numbers from 0 to 255."""
    part = np.zeros((len(resampling.rows.index), *image.shape[1:]), np.float32)
    for index, weight in zip(resampling.rows.index.T, resampling.rows.weight.T, strict=True):
        part += weight[:, None, None] * image[index]
    small = np.zeros((len(part), len(resampling.cols.index), 3), np.float32)
    for index, weight in zip(resampling.cols.index.T, resampling.cols.weight.T, strict=True):
        small += weight[None, :, None] * part[:, index]
    return np.clip(np.floor(small + np.float32(0.5)), 0, 255)


def _resampled_fixed_point(image: NDArray[np.uint8], resampling: Resampling) -> Floats:
    """Do the same in whole numbers, which are truncated as in OpenCV."""
    rows, cols = (
        np.rint(taps.weight * FIXED).astype(np.int64) for taps in (resampling.rows, resampling.cols)
    )
    part = np.zeros((len(image), len(cols), 3), np.int64)
    for index, weight in zip(resampling.cols.index.T, cols.T, strict=True):
        part += weight[None, :, None] * image[:, index]
    small = np.zeros((len(rows), len(cols), 3), np.int64)
    for index, weight in zip(resampling.rows.index.T, rows.T, strict=True):
        small += (weight[:, None, None] * (part[index] >> 4)) >> 16
    return ((small + 2) >> 2).astype(np.float32)


def apply_table(
    relative: Floats,
    labels: NDArray[np.integer] | None,
    table: NDArray[np.float64],
    min_disparity: float,
) -> Floats:
    """Twin of the kernel: convert an (H, W) map to (H, W) depths in m by the surface of its label.

    labels: (H, W); None: label 0 everywhere. table: (K+1, 6) with s, a, b, t and the lowest and
    highest depth (m) of every label; the value at a pixel is s * relative + a x + b y + t, with x
    and y from -1 to 1. min_disparity: lowest disparity (1/m) if the surfaces are in disparity, 0 if
    they are in depth. Pixels with a label that the table does not have are NaN.
    """
    height, width = relative.shape
    if labels is None:
        labels = np.zeros(relative.shape, np.int32)
    known = (labels >= 0) & (labels < len(table))
    s, a, b, t, low, high = np.moveaxis(table[np.where(known, labels, 0)], 2, 0)
    x = np.linspace(-1.0, 1.0, width) if width > 1 else np.zeros(1)
    y = np.linspace(-1.0, 1.0, height) if height > 1 else np.zeros(1)
    value = s * relative + a * x + b * y[:, None] + t
    if min_disparity > 0:
        value = 1 / np.maximum(value, min_disparity)
    value = np.minimum(np.maximum(value, low), high)
    return np.where(known, value, np.nan).astype(np.float32)


@dataclass(frozen=True)
class Line:
    """Linear map from a network's values to metres, before the grid: the base of fitting/field.

    space: "depth", "disparity" or "log", the space in which scale and shift apply. nearest,
    farthest: limits of the base map, m. min_depth_m, max_depth_m: limits of the result, m.
    """

    space: str
    scale: float
    shift: float
    nearest: float
    farthest: float
    min_depth_m: float
    max_depth_m: float

    @property
    def bounds(self) -> tuple[float, float]:
        """Limits of the base map in the line's own space, the lower one first."""
        if self.space == "disparity":
            return 1 / self.farthest, 1 / self.nearest
        if self.space == "log":
            return float(np.log(self.nearest)), float(np.log(self.farthest))
        return self.nearest, self.farthest


def apply_grid(values: Floats, factor: Floats, line: Line) -> Floats:
    """Twin of the kernel: convert (H, W) values to (H, W) depths in m by a line and (h, w) factors.

    The factors are interpolated linearly between the centres of their cells. Values that are not
    finite give NaN.
    """
    height, width = values.shape
    known = np.isfinite(values)
    base = np.where(known, values, 0) * np.float32(line.scale) + np.float32(line.shift)
    low, high = line.bounds
    base = np.clip(base, np.float32(low), np.float32(high))
    if line.space == "disparity":
        base = 1 / base
    elif line.space == "log":
        base = np.exp(base)
    row, row_fraction = _between(height, factor.shape[0])
    col, col_fraction = _between(width, factor.shape[1])
    below = np.minimum(row + 1, factor.shape[0] - 1)
    right = np.minimum(col + 1, factor.shape[1] - 1)
    lines = factor[:, col] + col_fraction * (factor[:, right] - factor[:, col])
    grid = lines[row] + row_fraction[:, None] * (lines[below] - lines[row])
    depth = np.clip(base * grid, np.float32(line.min_depth_m), np.float32(line.max_depth_m))
    return np.where(known, depth, np.float32(np.nan)).astype(np.float32)


def _between(size: int, cells: int) -> tuple[NDArray[np.int64], Floats]:
    """Return the (size,) cell before each pixel, and how far it is to the next cell (0 to 1)."""
    position = (np.arange(size, dtype=np.float32) + np.float32(0.5)) * np.float32(cells / size)
    position = np.clip(position - np.float32(0.5), 0, cells - 1)
    cell = position.astype(np.int64)
    return cell, (position - cell).astype(np.float32)
