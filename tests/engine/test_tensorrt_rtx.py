# SPDX-License-Identifier: Apache-2.0
"""A real TensorRT reads and builds our files, without a GPU (tests/helpers/rtx.py).

Its parser, type checks, optimiser and memory planner are real; kernels are chosen on a GPU only, so
nothing here is about speed or numbers.
"""

from __future__ import annotations

import math
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx", reason="onnx builds the models of these tests")

from depth_node.engine.manifest import manifest_path
from depth_node.engine.manifest_writer import write_manifest
from depth_node.model_zoo import compare, convert
from tests.engine.test_trt_bindings import ENGINE, table
from tests.helpers import rtx, rtx_networks
from tests.helpers.onnx_graphs import HALF, graph, saved
from tests.helpers.tiny_models import save_model
from tests.model_zoo.test_convert import depth_anything

pytestmark = [
    pytest.mark.slow,  # wheels of 230 MB, a process a build
    pytest.mark.filterwarnings("ignore"),  # what torch and its exporter deprecate
]

KINDS = ("vit_tiny", "small", "base", "sam")
PRODUCTS = {"Conv", "ConvTranspose", "MatMul", "Gemm", "Einsum"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rtx.folders()
    return tmp_path_factory.mktemp("rtx")


def network(kind: str, folder: Path) -> tuple[Path, Path]:
    """The FP32 file of a network and its FP16 copy, made once in a session."""
    path = folder / kind / "net.onnx"
    if kind == "sam":
        path = folder / kind / "sam.onnx"
    if not path.is_file():
        path.parent.mkdir(exist_ok=True)  # a test before this one may have been skipped
        if kind == "sam":
            rtx_networks.segmentation_network(path.parent, 256, layers=2, batch=4)
            rtx_networks.fp16_file(path.with_name("sam_decoder.onnx"), 1)
        else:
            rtx_networks.depth_network(kind, 70, 98, path)
        rtx_networks.fp16_file(path, 1)
    return path, path.with_name(f"{path.stem}.fp16.onnx")


# --- 1: what trt.py uses


def test_the_library_has_all_that_we_use() -> None:
    assert rtx.ask("problems", table(ENGINE / "trt.py")) == []


def test_a_wrong_name_is_found() -> None:
    wrong = {"IExecutionContext": ["execute_async_v4(stream_handle)"]}
    assert rtx.ask("problems", wrong) == ["no IExecutionContext.execute_async_v4"]


# --- 2 to 6: our files


@pytest.mark.parametrize("kind", KINDS)
def test_attentions_are_joined_and_move_little(kind: str, folder: Path) -> None:
    """Each attention is one kernel in FP16; none is as long as the scores are all in FP32."""
    path, half = network(kind, folder)
    count = rtx_networks.attentions_of(path)
    assert count == {"sam": 2}.get(kind, 12)
    now = rtx.built(half)
    assert (now["sentence"], now["warnings"]) == ("", [])
    assert rtx_networks.fused(now) == count
    before = rtx.built(rtx_networks.unfused(path, folder), manifest=str(manifest_path(path)))
    assert rtx_networks.fused(before) == 0 and now["traffic"] < before["traffic"]


@pytest.mark.parametrize("opset", [17, 14])
def test_attentions_of_other_exporters_are_joined(opset: int, tmp_path: Path) -> None:
    """torch's older exporter, sizes open, as the files on the hub are."""
    rtx.folders()
    done = convert.convert(
        depth_anything(tmp_path, opset), compare.ComparisonImages(1, height=64, width=96)
    )
    found = rtx.built(done.path)
    assert (found["sentence"], rtx_networks.fused(found)) == ("", 4)


@pytest.mark.parametrize("kind", ["vit_tiny", "sam"])
def test_fp32_and_decoders_are_built_too(kind: str, folder: Path) -> None:
    path, _ = network(kind, folder)
    files = [path, *path.parent.glob("*_decoder*.onnx")]
    for file in files:
        found = rtx.built(file)
        assert found["bytes"] > 1000 and (found["sentence"], found["warnings"]) == ("", []), file
    assert len(files) == (3 if kind == "sam" else 1)


@pytest.mark.parametrize("kind", ["vit_tiny", "sam"])
def test_what_is_half_in_the_file_is_half_in_the_engine(kind: str, folder: Path) -> None:
    """Every convolution and product: what it takes is of the type that the file gives it."""
    _, half = network(kind, folder)
    model = onnx.shape_inference.infer_shapes(onnx.load(str(half)))
    types = {item.name: item.type.tensor_type.elem_type for item in model.graph.value_info}
    wanted = {
        node.name for node in model.graph.node
        if node.op_type in PRODUCTS and types.get(node.output[0]) == HALF
    }  # fmt: skip
    layers = rtx.built(half)["layers"]
    seen = set()
    for layer in layers:
        if layer["kind"] in ("gemm", "correlation", "deconv") and set(layer["nodes"]) & wanted:
            seen |= set(layer["nodes"]) & wanted
            kinds = {kind for side, kind, _ in layer["tensors"] if side == "in"}
            assert "Half" in kinds, layer
    assert len(seen) > 5 and len(wanted) > 15


def test_every_file_is_valid_onnx(folder: Path) -> None:
    for kind in ("vit_tiny", "sam"):
        for file in network(kind, folder)[0].parent.glob("*.onnx"):
            onnx.checker.check_model(str(file), full_check=True)


def test_open_sizes_inputs_of_other_types_and_weights_aside(tmp_path: Path) -> None:
    path = save_model(tmp_path / "open.onnx", inputs={"image": ["n", 3, "h", "w"]})
    write_manifest(path, "depth_metric", height=28, width=42)
    assert rtx.built(path)["bytes"] > 0
    nodes = [("Conv", ["x", "w"], ["c"]), ("Relu", ["c"], ["r"]), ("Conv", ["r", "v"], ["out"])]
    weights = {
        "w": np.ones((64, 3, 1, 1), np.float32), "v": np.ones((1, 64, 1, 1), np.float32),
    }  # fmt: skip
    floats = saved(graph([("Identity", ["image"], ["x"]), *nodes], weights), tmp_path / "f.onnx")
    images = compare.ComparisonImages(1, height=32, width=48)
    half = convert.convert(floats, images, fp16_input=True)
    assert rtx.built(half.path)["bytes"] > 0
    pixels = saved(
        graph([("Cast", ["image"], ["x"], {"to": 1}), *nodes], weights,
              kind=onnx.TensorProto.UINT8),
        tmp_path / "u.onnx", scale=1.0,
    )  # fmt: skip
    assert rtx.built(pixels)["bytes"] > 0
    aside = tmp_path / "a.onnx"
    onnx.save(onnx.load(str(floats)), str(aside), save_as_external_data=True,
              location="a.onnx.data", size_threshold=0)  # fmt: skip
    write_manifest(aside, "depth_metric")
    assert rtx.built(aside)["bytes"] > 0


# --- 7: what ends a build


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_build_within_seconds(number: signal.Signals, folder: Path) -> None:
    """The process of a user's command: it ends as the signal asks, and so does its child."""
    path, _ = network("small", folder)
    child = rtx.started("interrupted", {"model": str(path)})
    try:
        assert child.stdout is not None
        assert "step" in child.stdout.readline()
        start = time.monotonic()
        os.kill(child.pid, number)
        output, errors = child.communicate(timeout=30)
    finally:
        child.kill()
    assert time.monotonic() - start < 10
    assert child.returncode == (0 if number == signal.SIGINT else 128 + number), errors
    ended = output.splitlines()[-1]
    assert ended == ("KeyboardInterrupt" if number == signal.SIGINT else "SystemExit")
    assert rtx.children_of(child.pid) == []


@pytest.mark.parametrize("how", ["raises", "stop"])
def test_progress_ends_a_build(how: str, folder: Path) -> None:
    path, _ = network("vit_tiny", folder)
    found = rtx.ask("stopped", {"model": str(path), "how": how})
    assert found["ended"] == ("Tired" if how == "raises" else "stopped")
    assert found["seconds"] < 10


def test_a_crash_of_the_library_is_a_sentence(folder: Path) -> None:
    """In place of the library: its process ends with a signal, and this one goes on."""
    path, _ = network("vit_tiny", folder)
    found = rtx.ask("crashed", {"model": str(path)})
    assert "ended its process with SIGSEGV while it built an engine of" in found
    assert "use another version or back end" in found


# --- 8 and 9: refusals


def test_the_process_of_a_robot_builds_the_same(folder: Path) -> None:
    path, _ = network("vit_tiny", folder)
    assert rtx.built(path, apart=True)["bytes"] == pytest.approx(rtx.built(path)["bytes"], rel=0.1)


def test_too_small_a_workspace_names_the_setting(tmp_path: Path) -> None:
    """A convolution whose workspace alone is larger than the limit."""
    weights = {"w": np.ones((64, 3, 3, 3), np.float32), "v": np.ones((1, 64, 1, 1), np.float32)}
    nodes = [("Conv", ["image", "w"], ["c"]), ("Softmax", ["c"], ["s"], {"axis": 1}),
             ("Conv", ["s", "v"], ["out"])]  # fmt: skip
    path = saved(graph(nodes, weights, shape=(1, 3, 512, 512)), tmp_path / "large.onnx")
    sentence = rtx.built(path, workspace_mb=1)["sentence"]
    assert "raise engine.workspace_mb" in sentence, sentence


def test_an_operator_that_it_does_not_know_is_named(tmp_path: Path) -> None:
    path = saved(graph([("Det", ["image"], ["out"])], shape=(1, 3, 8, 8)), tmp_path / "d.onnx",
                 height=8, width=8)  # fmt: skip
    sentence = rtx.built(path)["sentence"]
    assert f"cannot read {path}" in sentence and "operator Det" in sentence, sentence


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "is empty: its download or export was cut off"),
        (b"<!DOCTYPE html><html>log in</html>", "is a web page and no network"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is a pointer of Git LFS"),
    ],
)
def test_what_is_no_network_is_told(content: bytes, told: str, tmp_path: Path) -> None:
    path = save_model(tmp_path / "t.onnx")
    write_manifest(path, "depth_metric")
    path.write_bytes(content)
    assert told in rtx.built(path)["sentence"]


def test_damaged_plans(folder: Path) -> None:
    """A fault of the header is told; of the rest only our own hash tells (engine/cache.py)."""
    path, _ = network("vit_tiny", folder)
    whole, head, middle = rtx.ask("damaged", {"model": str(path)})
    assert "header" in head or "magic" in head, head
    assert middle == whole  # both: there is no GPU here


# --- 10 and 11: other GPUs, real sizes


@pytest.mark.parametrize("capability", rtx.CAPABILITIES)
def test_transformers_in_fp16_build_for(capability: str, folder: Path) -> None:
    _, half = network("vit_tiny", folder)
    found = rtx.built(half, capability=capability)
    assert (found["sentence"], found["warnings"]) == ("", [])
    assert found["bytes"] > 1000 and rtx_networks.fused(found) == 12


@pytest.mark.slow
def test_real_sizes_move_a_quarter(tmp_path: Path) -> None:
    rtx.folders()
    path = rtx_networks.depth_network("small", 392, 518, tmp_path / "net.onnx")
    row = rtx_networks.traffic_row("small", path, tmp_path)
    assert row[1] == row[6] == "12" and float(row[-1]) <= 0.25, row


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sam", "sam2"])
def test_decoders_of_the_default_batch(kind: str, tmp_path: Path) -> None:
    """64 points: exported, converted and built; the exporter's constants take no input's name."""
    rtx.folders()
    encoder, decoder = rtx_networks.segmentation_network(tmp_path, 256, layers=2, kind=kind)
    for file in (encoder, decoder):
        onnx.checker.check_model(str(file), full_check=True)
        found = rtx.built(file)
        assert found["sentence"] == "" and math.isfinite(found["traffic"])
    assert {item.name for item in onnx.load(str(decoder)).graph.input} >= {"points", "embedding"}


@pytest.mark.slow
def test_a_decoder_of_64_points_is_converted_within_4_gb(tmp_path: Path) -> None:
    """Of the size of MobileSAM's and SAM's: each of its large tensors has 268 MB."""
    rtx.folders()
    _, decoder = rtx_networks.segmentation_network(tmp_path, 1024, layers=1)
    assert rtx.ask("peak_of_conversion", {"model": str(decoder)}, timeout_s=500) < 4
