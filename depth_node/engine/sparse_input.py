# SPDX-License-Identifier: Apache-2.0
"""Conversion of measured points to the input tensors of a completion network."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from depth_node.engine import EngineError
from depth_node.engine.manifest import Manifest, SparseSpec
from depth_node.engine.preprocess import tensor_box, to_tensor

Tensors = dict[str, npt.NDArray[Any]]


def sparse_tensors(
    manifest: Manifest,
    rows: npt.NDArray[np.integer],
    cols: npt.NDArray[np.integer],
    depth: npt.NDArray[np.floating],
    image_size: tuple[int, int],
) -> Tensors:
    """Return the sparse inputs by name for (N,) pixels of an (H, W) image and their depths in m.

    image_size: (H, W). The points must lie within the image, and their depths must be above 0. Of
    several points in one pixel of the tensor the nearest one is used, because it hides the others.
    Raises EngineError if the model takes no points.
    """
    spec, sparse = manifest.input, _sparse(manifest)
    shape = manifest.inputs[sparse.depth]
    top, left, box_rows, box_cols = tensor_box(*image_size, spec)
    row = ((rows + 0.5) / image_size[0] * box_rows + top) / spec.height * shape[2]
    col = ((cols + 0.5) / image_size[1] * box_cols + left) / spec.width * shape[3]
    # From far to near: NumPy keeps the last value written to a pixel, which is the nearest one.
    order = np.argsort(-np.asarray(depth, np.float64), kind="stable")
    at = (
        np.clip(row[order].astype(np.int64), 0, shape[2] - 1),
        np.clip(col[order].astype(np.int64), 0, shape[3] - 1),
    )
    values: npt.NDArray[np.float32] = np.full(shape, sparse.empty, np.float32)
    values[0, 0][at] = in_unit(np.asarray(depth, np.float64)[order], sparse.unit)
    tensors: Tensors = {sparse.depth: values}
    if sparse.mask:
        mask: npt.NDArray[np.float32] = np.zeros(shape, np.float32)
        mask[0, 0][at] = 1
        tensors[sparse.mask] = mask
    return tensors


def in_unit(depth: npt.NDArray[np.float64], unit: str) -> npt.NDArray[np.float64]:
    """Convert (N,) depths in m, above 0, to a unit of manifest.UNITS."""
    if unit == "1/m":
        return 1 / depth
    if unit == "log m":
        return np.log(depth)
    return depth * 1000 if unit == "mm" else depth


def pattern_tensors(manifest: Manifest, image: npt.NDArray[np.uint8], seed: int) -> Tensors:
    """Return all inputs of a completion network for an image (H, W, 3) and synthetic points.

    For comparisons between engines: the points are random numbers of a seed and do not belong to
    the scene of the image.
    """
    rng = np.random.default_rng(seed)
    height, width = image.shape[:2]
    count = max(64, height * width // 400)
    rows, cols = rng.integers(0, height, count), rng.integers(0, width, count)
    depth = 2 + 6 * rows / height + rng.uniform(0, 0.5, count)
    return {
        manifest.input_name: to_tensor(image, manifest.input),
        **sparse_tensors(manifest, rows, cols, depth, (height, width)),
    }


def _sparse(manifest: Manifest) -> SparseSpec:
    if manifest.sparse is None:
        raise EngineError(
            f"model {manifest.name} takes no points: its manifest has no section sparse"
        )
    return manifest.sparse
