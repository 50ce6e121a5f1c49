# SPDX-License-Identifier: Apache-2.0
"""Networks that the tests create themselves, and an isolated ROS domain."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Set before a context exists: discovery on this machine only, and no logs in the home folder.
os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
os.environ.setdefault("ROS_LOG_DIR", "/tmp/depth_node_test_logs")

if os.environ.get("REQUIRE_ROS") == "1":
    import rclpy  # noqa: F401 - the environment promises it, so its absence is no reason to skip


def pytest_configure(config: pytest.Config) -> None:
    """Ignore a warning of lark, which rclpy imports and this project cannot change."""
    config.addinivalue_line("filterwarnings", "ignore:module 'sre_:DeprecationWarning")


def save_network(path: Path, layers: int = 0, size: tuple[int, int] = (48, 64)) -> Path:
    """Save a network that returns the mean of the channels, after `layers` layers that only cost
    time."""
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    from depth_node.engine.manifest_writer import write_manifest

    nodes, weights, name = [], [], "image"
    channels = 3
    rng = np.random.default_rng(0)
    for layer in range(layers):
        kernel = rng.normal(size=(64, channels, 3, 3)).astype(np.float32) * 1e-3
        weights.append(numpy_helper.from_array(kernel, f"w{layer}"))
        nodes.append(
            helper.make_node("Conv", [name, f"w{layer}"], [f"x{layer}"], pads=[1, 1, 1, 1])
        )
        name, channels = f"x{layer}", 64
    weights.append(numpy_helper.from_array(np.array([1], np.int64), "axes"))
    nodes.append(helper.make_node("ReduceMean", [name, "axes"], ["disparity"], keepdims=0))
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, *size])],
        [helper.make_tensor_value_info("disparity", TensorProto.FLOAT, [1, *size])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    write_manifest(path, "disparity_affine_invariant")
    return path


@pytest.fixture(scope="session")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network whose disparity is the brightness of the image."""
    pytest.importorskip("onnx", reason="onnx, which makes the test's network, is not installed")
    return save_network(tmp_path_factory.mktemp("network") / "tiny.onnx")


@pytest.fixture(scope="session")
def slow_network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network that takes a good part of a second for an image."""
    pytest.importorskip("onnx", reason="onnx, which makes the test's network, is not installed")
    folder = tmp_path_factory.mktemp("slow_network")
    return save_network(folder / "slow.onnx", layers=6, size=(192, 256))
