# SPDX-License-Identifier: Apache-2.0
"""The command line: what it prints and writes, and one sentence for every mistake."""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from depth_node.cli import arguments as arguments_module
from depth_node.cli import main
from depth_node.engine.manifest import Manifest
from tests.helpers.recordings import T_CAMERA_LIDAR, BagWriter, write_frame

pytest.importorskip("rich", reason="rich is not installed")

# rclpy imports lark, which imports modules that Python has renamed: nobody here can help.
pytestmark = pytest.mark.filterwarnings("ignore:module 'sre_:DeprecationWarning")


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands write into the folder they are called in."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recordings") / "hall"
    for name in ("a", "b"):
        write_frame(folder / name)
    return folder


@pytest.fixture
def bag(tmp_path: Path) -> Path:
    pytest.importorskip("rosbags", reason="rosbags is not installed")
    pytest.importorskip("sensor_msgs", reason="the ROS message packages are not installed")
    writer = BagWriter(tmp_path / "bag")
    for time_s in (1.0, 1.1):
        writer.info(time_s)
        writer.cloud(time_s)
        writer.image(time_s)
    writer.close()
    return tmp_path / "bag"


def test_replay_of_a_folder(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["replay", str(source), "--prediction", "test", "--points", "150", "--seed", "1"]
    arguments += ["--out", str(tmp_path / "run"), "--json", str(tmp_path / "all.json")]
    assert main.main([*arguments, "--images", "1", "--set", "fit.mode=paper"]) == 0
    shown = capsys.readouterr().out
    for word in ("2 frames", "AbsRel", "global_depth", "ssf", "field", "run folder"):
        assert word in shown
    stored = json.loads((tmp_path / "all.json").read_text())
    assert len(stored["rows"]) == 10 and stored["run"]["seed"] == 1
    assert "mode: paper" in (tmp_path / "run" / "config.yaml").read_text()
    assert len(list((tmp_path / "run" / "images").iterdir())) == 1


def test_replay_of_a_bag(bag: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    numbers = " ".join(str(value) for value in T_CAMERA_LIDAR.reshape(-1))
    assert main.main(["replay", str(bag), "--t-camera-lidar", numbers, "--images", "0"]) == 0
    shown = capsys.readouterr().out
    assert "topics: /camera/image_raw, /camera/camera_info, /lidar/points" in shown
    assert "2 frames" in shown
    facts = json.loads((tmp_path / "runs" / "bag" / "run.json").read_text())
    assert facts["topics"]["points"] == "/lidar/points"


def test_bag_without_extrinsics_and_with_wrong_ones(
    bag: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main(["replay", str(bag)]) == 2
    assert "--t-camera-lidar" in capsys.readouterr().err
    assert main.main(["replay", str(bag), "--t-camera-lidar", "1 2 3"]) == 2
    assert "16 numbers" in capsys.readouterr().err


MISTAKES = [
    (["replay", "/nowhere"], "/nowhere is not a folder"),
    (["replay", "{source}", "--method", "sfs"], "fit.method must be one of"),
    (["replay", "{source}", "--set", "fit.metod=slf"], "did you mean 'fit.method'"),
    (["replay", "{source}", "--set", "nonsense"], "must look like key=value"),
    (["replay", "{source}", "--config", "/nowhere.yaml"], "cannot read the config file"),
    (["replay", "{source}", "--model", "/nowhere.onnx"], "does not exist"),
    (["replay", "{source}", "--prediction", "x"], "here: test"),
    (["replay", "{source}", "--prediction", "test", "--points", "99999"], "ask for fewer points"),
    (["replay", "{source}", "--points", "5", "--lines", "3"], "exclude each other"),
    (["bench", "accuracy", "{source}", "--methods", "slff"], "did you mean slf?"),
    (["bench", "accuracy", "{source}", "--points", "50,many"], "whole numbers"),
    (["bench", "accuracy", "/nowhere"], "is not a folder"),
    (["demo", "--size", "big"], "--size 'big' is no image size"),
    (["models", "manifest", "/nowhere.onnx", "--meaning", "depth_metric"], "does not exist"),
]


@pytest.mark.parametrize(("arguments", "words"), MISTAKES, ids=lambda value: str(value)[:60])
def test_mistakes_get_one_sentence_and_status_2(
    arguments: list[str], words: str, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status = main.main([part.format(source=source) for part in arguments])
    errors = capsys.readouterr().err.strip()
    assert status == 2
    assert words in errors
    assert errors.startswith("depth_tools: ") and "Traceback" not in errors
    assert len(errors.splitlines()) == 1


def test_unknown_commands_and_help() -> None:
    for arguments, status in ((["dance"], 2), ([], 2), (["--help"], 0), (["bench", "-h"], 0)):
        with pytest.raises(SystemExit) as stopped:
            main.main(arguments)
        assert stopped.value.code == status


def helped(parser: argparse.ArgumentParser) -> int:
    """How many commands there are; each must be able to say how it is used."""
    assert parser.format_help()
    inner = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    return 1 + sum(helped(child) for action in inner for child in action.choices.values())


def test_every_command_can_say_how_it_is_used() -> None:
    assert helped(main._parser()) > 10


def test_bench_accuracy(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["bench", "accuracy", str(source), "--prediction", "test", "--lines", "4"]
    arguments += ["--methods", "global_depth,idw,ssf", "--points", "50,250", "--seed", "0,1"]
    arguments += ["--noise", "clean,noisy", "--json", str(tmp_path / "new" / "a.json")]
    assert main.main([*arguments, "--markdown", str(tmp_path / "a.md")]) == 0
    shown = capsys.readouterr().out
    for word in ("AbsRel, mean over sources", "delta1", "RMSE", "95 %", "lines_4"):
        assert word in shown
    rows = json.loads((tmp_path / "new" / "a.json").read_text())["rows"]
    assert len(rows) == 2 * 3 * 3 * 2 * 2  # frames, methods, patterns, noises, seeds
    keys = "source frame method points pattern noise abs_rel delta1 rmse coverage95 answered ms"
    assert set(keys.split()) <= set(rows[0])
    assert "| ssf |" in (tmp_path / "a.md").read_text()


def test_manifest_of_a_users_model(
    shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = shared / "models" / "fastdepth_nyu_224.onnx"
    place = tmp_path / "fastdepth.manifest.yaml"
    arguments = ["models", "manifest", str(model), "--meaning", "depth_metric", "--out", str(place)]
    assert main.main([*arguments, "--licence", "MIT", "--mean", "0.5", "0.4", "0.3"]) == 0
    manifest = Manifest.load(place)
    assert manifest.meaning == "depth_metric" and manifest.licence == "MIT"
    assert manifest.input.mean == (0.5, 0.4, 0.3)
    assert (manifest.input.height, manifest.input.width) == (224, 224)
    assert f"--model {model} --manifest {place}" in capsys.readouterr().out
    assert main.main([*arguments[:4], "depth_metrc", *arguments[5:]]) == 2
    assert "did you mean depth_metric?" in capsys.readouterr().err


def test_region_methods_beat_global_ones_on_real_frames(
    shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The road with the network in the package, desks with a real network and 250 points."""
    model = shared / "models" / "fastdepth_nyu_224.onnx"
    place = str(tmp_path / "fastdepth.manifest.yaml")
    manifest = ["models", "manifest", str(model), "--meaning", "depth_metric", "--out", place]
    assert main.main(manifest) == 0
    desks = ["--model", str(model), "--manifest", place, "--points", "250"]
    for name, options in (("opencalib_road", []), ("tum_rgbd", desks)):
        found = tmp_path / f"{name}.json"
        arguments = ["replay", str(shared / "data" / name), *options, "--json", str(found)]
        assert main.main([*arguments, "--out", str(tmp_path / name), "--images", "1"]) == 0
        summary = {row["method"]: row for row in json.loads(found.read_text())["summary"]}
        for method in ("slf", "ssf"):
            for rival in ("global_depth", "global_disparity"):
                assert summary[method]["abs_rel"] < summary[rival]["abs_rel"], (name, method)
                assert summary[method]["delta1"] > summary[rival]["delta1"], (name, method)


def test_models_list_and_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["models", "list"]) == 0
    shown = capsys.readouterr().out
    assert "embedded" in shown and "whole" in shown and "disparity_affine_invariant" in shown
    assert main.main(["doctor", "--listen", "0"]) == 0
    shown = capsys.readouterr().out
    for word in ("numpy", "onnxruntime-cpu", "usable", "runs", "Everything that is needed"):
        assert word in shown
    for word in ("is the reference", "not tensorrt", "no module tensorrt"):
        assert word in shown or tensorrt_is_here()


def tensorrt_is_here() -> bool:
    return importlib.util.find_spec("tensorrt") is not None


def test_doctor_shows_the_engine_its_key_and_its_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.helpers.gpu_on_cpu import Machine

    Machine().install(monkeypatch)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "200")
    asked = ["doctor", "--listen", "0", "--backend", "tensorrt"]
    assert main.main(asked) == 1  # it builds nothing, and names the command that does
    assert "`depth_tools models build embedded`" in capsys.readouterr().out
    assert main.main(["models", "build", "embedded"]) == 0
    built = capsys.readouterr().out
    assert main.main(asked) == 0
    shown = capsys.readouterr().out
    key = next(tmp_path.rglob("*.engine")).stem
    for word in (
        "correlation 1.000000",
        "Played GPU",
        "TensorRT 10.13.3.9",
        key[:12],
        "cuda graph",
    ):
        assert word in shown
    assert key in built and "correlation 1.000000" in built


def test_doctor_names_what_does_not_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main(["doctor", "--listen", "0", "--model", str(tmp_path / "none.onnx")]) == 1
    assert "missing: model file" in " ".join(capsys.readouterr().out.split())


def test_parameters_page_comes_from_the_code(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("rclpy", reason="ROS 2 is not installed")
    assert main.main(["parameters"]) == 0
    assert "| `fit.method` |" in capsys.readouterr().out


def test_without_ros_and_rich_the_cure_is_named(source: Path) -> None:
    """A fresh interpreter in which they cannot be imported."""
    script = """
import sys
from importlib import util
missing = {missing!r}
sys.modules.update(dict.fromkeys(missing))
found = util.find_spec
util.find_spec = lambda name, *rest: None if name in missing else found(name, *rest)
from depth_node import tools
sys.exit(tools.main({arguments!r}))
"""
    cases = (
        (["rclpy"], ["demo"], "ros-jazzy-rclpy"),
        (["rclpy"], ["parameters"], "ros-jazzy-rclpy"),
        (["rich"], ["replay", str(source), "--prediction", "test"], "pip install rich"),
    )
    for missing, arguments, words in cases:
        code = script.format(missing=missing, arguments=arguments)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.returncode == 2, done.stderr
        assert words in done.stderr and "Traceback" not in done.stderr


def test_interrupt_ends_quietly(
    source: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(main.replay, "replay", interrupt)
    arguments = ["replay", str(source), "--prediction", "test", "--points", "9"]
    assert main.main(arguments) == 130
    assert "interrupted" in capsys.readouterr().err


def test_matrix_is_read_row_by_row() -> None:
    text = ", ".join(str(value) for value in range(16))
    matrix = arguments_module._matrix(text)
    assert matrix is not None and np.array_equal(matrix, np.arange(16.0).reshape(4, 4))
    assert arguments_module._matrix("") is None
