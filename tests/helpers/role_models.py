# SPDX-License-Identifier: Apache-2.0
"""Small real networks with several outputs or inputs; needs the onnx package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

FLOAT = onnx.TensorProto.FLOAT


def _saved(
    path: Path,
    nodes: list[Any],
    inputs: dict[str, list[Any]],
    outputs: list[str],
    constants: dict[str, Any],
) -> Path:
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info(name, FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, FLOAT, None) for name in outputs],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    onnx.save(model, str(path))
    return path


def save_channels(path: Path, height: int, width: int) -> Path:
    """Save a network with outputs red, green, blue (1, 1, h, w), the image's channels, and scale
    (1,), which is 2.
    """
    names = ["red", "green", "blue"]
    nodes = [
        helper.make_node("Split", ["image"], names, axis=1, num_outputs=3),
        helper.make_node("Identity", ["two"], ["scale"]),
    ]
    constants = {"two": np.array([2], np.float32)}
    return _saved(path, nodes, {"image": [1, 3, height, width]}, [*names, "scale"], constants)


def save_points(path: Path, points: np.ndarray, scale: float) -> Path:
    """Save a network that returns these points (1, h, w, 3), a mask (1, h, w) of ones and the scale
    (1,) for every image.
    """
    height, width = points.shape[:2]
    nodes = [
        helper.make_node("ReduceMean", ["image", "axes"], ["grey"], keepdims=0),
        helper.make_node("Mul", ["grey", "zero"], ["nothing"]),
        helper.make_node("Add", ["nothing", "one"], ["mask"]),
        helper.make_node("Unsqueeze", ["nothing", "last"], ["wide"]),
        helper.make_node("Add", ["wide", "given"], ["points"]),
        helper.make_node("Identity", ["factor"], ["scale"]),
    ]
    constants = {
        "axes": np.array([1], np.int64),
        "last": np.array([-1], np.int64),
        "zero": np.array([0], np.float32),
        "one": np.array([1], np.float32),
        "given": points[None].astype(np.float32),
        "factor": np.array([scale], np.float32),
    }
    return _saved(
        path, nodes, {"image": [1, 3, height, width]}, ["points", "mask", "scale"], constants
    )


def save_completion(
    path: Path, height: int, width: int, *, with_mask: bool = True, levels: int = 5
) -> Path:
    """Save a network of normalised convolutions (Knutsson and Westin 1993): depth (1, 1, h, w) m.

    Each level averages the measured pixels of its window, weighted by their brightness; a pixel
    takes the finest level that has measurements. Inputs: image; points, m, 0 where not measured;
    and, with_mask, mask.
    """
    nodes: list[Any] = [
        helper.make_node("ReduceMean", ["image", "axes"], ["grey"], keepdims=1),
        helper.make_node("Exp", ["grey"], ["light"]),  # makes the answer depend on the image
    ]
    inputs = {"image": [1, 3, height, width], "points": [1, 1, height, width]}
    if with_mask:
        inputs["mask"] = [1, 1, height, width]
    else:
        nodes.append(helper.make_node("Greater", ["points", "zero"], ["measured"]))
        nodes.append(helper.make_node("Cast", ["measured"], ["mask"], to=FLOAT))
    nodes.append(helper.make_node("Mul", ["mask", "light"], ["trust"]))
    nodes.append(helper.make_node("Mul", ["points", "trust"], ["weighted"]))
    constants: dict[str, Any] = {
        "axes": np.array([1], np.int64), "zero": np.float32(0), "least": np.float32(1e-6),
        "tiny": np.float32(1e-12),
    }  # fmt: skip
    answer = ""
    for level in range(levels, -1, -1):  # from the coarsest; finer levels replace it
        size = 2 ** (level + 1) + 1
        kernel = np.outer(*(np.hanning(size + 2)[1:-1],) * 2).astype(np.float32)[None, None]
        constants[f"kernel{level}"] = kernel / kernel.sum()
        pads = [size // 2] * 4
        for name in ("weighted", "trust"):
            nodes.append(
                helper.make_node("Conv", [name, f"kernel{level}"], [f"{name}{level}"], pads=pads)
            )
        nodes += [
            helper.make_node("Add", [f"trust{level}", "tiny"], [f"safe{level}"]),
            helper.make_node("Div", [f"weighted{level}", f"safe{level}"], [f"mean{level}"]),
        ]
        if answer:
            nodes.append(helper.make_node("Greater", [f"trust{level}", "least"], [f"has{level}"]))
            nodes.append(
                helper.make_node(
                    "Where", [f"has{level}", f"mean{level}", answer], [f"filled{level}"]
                )
            )
        answer = f"filled{level}" if answer else f"mean{level}"
    nodes.append(helper.make_node("Identity", [answer], ["depth"]))
    return _saved(path, nodes, inputs, ["depth"], constants)
