# SPDX-License-Identifier: Apache-2.0
"""Data that cannot be used: one sentence that names the file, wherever it is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.helpers import REPO

torch = pytest.importorskip("torch", reason="training needs torch (requirements-training.txt)")

from training.__main__ import main
from training.data.layouts import read_image
from training.data.open import DataConfig, open_samples
from training.data.samples import DataError, DataSet, checked
from training.recipes import RECIPES, find

DEBUG = REPO / "training" / "configs" / "debug.yaml"
H, W = 48, 64


def noise() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 255, (H, W, 3), dtype=np.uint8)


def frame(folder: Path, depth: NDArray[Any] | None = None, image: str = "rgb.png") -> Path:
    """One RGB-D frame."""
    folder.mkdir(parents=True)
    assert cv2.imwrite(str(folder / image), noise())
    stored = np.full((H, W), 2000, np.uint16) if depth is None else depth
    if stored.dtype == np.uint16:
        assert cv2.imwrite(str(folder / "depth.png"), stored)
    else:
        np.savez(folder / "depth.npz", depth=stored)
    (folder / "intrinsics.json").write_text(
        f'{{"fx": 50, "fy": 50, "cx": 32, "cy": 24, "width": {W}, "height": {H}}}'
    )
    return folder


def cut(path: Path, share: float = 0.6) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])


def frames(folder: Path) -> DataSet:
    return open_samples(DataConfig(kind="frames", folder=str(folder)))


def run(folder: Path, out: Path, *more: str) -> int:
    """The recipe `supervised` on RGB-D frames, by the command line."""
    settings = ["source=images", f"images.folder={folder}", "loop.steps=3", *more]
    return main(["supervised", "--config", str(DEBUG), "--run", str(out), *settings])


@pytest.mark.parametrize("end", ["jpg", "png", "bmp", "webp", "tiff"])
@pytest.mark.parametrize("damage", ["cut", "empty", "text"])
def test_a_damaged_picture_is_named(
    tmp_path: Path, end: str, damage: str, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / f"a.{end}"
    assert cv2.imwrite(str(path), noise())
    assert read_image(path).shape == (H, W, 3)
    if damage == "cut":
        cut(path)
    else:
        path.write_text("" if damage == "empty" else "this is no image")
    samples = open_samples(DataConfig(kind="images", folder=str(tmp_path)))
    with pytest.raises(DataError, match=rf"a\.{end} cannot be read .*copy it again"):
        samples[0]


def test_a_jpeg_with_a_thumbnail_and_a_tail_is_whole(tmp_path: Path) -> None:
    """Cameras put a small JPEG into the header and bytes of their own behind the end."""
    done, image = cv2.imencode(".jpg", noise())
    assert done
    small = cv2.imencode(".jpg", noise()[:8, :8])[1].tobytes()
    header = b"\xff\xe1" + (len(small) + 2).to_bytes(2, "big") + small
    content = image.tobytes()
    path = tmp_path / "a.jpg"
    path.write_bytes(content[:2] + header + content[2:] + bytes(40))
    assert read_image(path).shape == (H, W, 3)
    path.write_bytes(content[:2] + header + content[2 : len(content) // 2])
    with pytest.raises(DataError, match="damaged or cut"):
        read_image(path)


def test_damaged_depth_is_named(tmp_path: Path) -> None:
    cut(frame(tmp_path / "png" / "0001") / "depth.png")
    with pytest.raises(DataError, match=r"depth\.png cannot be decoded"):
        frames(tmp_path / "png")[0]
    cut(frame(tmp_path / "npz" / "0001", np.ones((H, W), np.float32)) / "depth.npz")
    with pytest.raises(DataError, match=r"depth\.npz cannot be read"):
        frames(tmp_path / "npz")[0]
    cut(frame(tmp_path / "jpg" / "0001", image="rgb.jpg") / "rgb.jpg")
    with pytest.raises(DataError, match=r"rgb\.jpg cannot be read .*damaged or cut"):
        frames(tmp_path / "jpg")[0]


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", b"no array"])
def test_a_damaged_array_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "s").mkdir()
    assert cv2.imwrite(str(tmp_path / "s" / "a.png"), noise())
    np.save(tmp_path / "s" / "a_depth_mask.npy", np.ones((H, W)))
    (tmp_path / "s" / "a_depth.npy").write_bytes(content)
    samples = open_samples(DataConfig(kind="diode", folder=str(tmp_path)))
    with pytest.raises(DataError, match=r"a_depth\.npy cannot be read"):
        samples[0]


def test_eight_bit_depth_is_refused(tmp_path: Path) -> None:
    for name in ("rgb_1.png", "depth_1.png"):
        assert cv2.imwrite(str(tmp_path / name), noise())
    with pytest.raises(DataError, match=r"depth_1\.png cannot be read \(uint8 with 3"):
        open_samples(DataConfig(kind="nyuv2", folder=str(tmp_path)))[0]


def test_sizes_that_differ_are_refused(tmp_path: Path) -> None:
    frame(tmp_path / "a" / "0001", np.full((H // 2, W), 900, np.uint16))
    with pytest.raises(DataError, match=r"depth\.png is for 64x24 but the image is 64x48"):
        frames(tmp_path)[0]
    assert cv2.imwrite(str(tmp_path / "rgb_1.png"), noise())
    assert cv2.imwrite(str(tmp_path / "depth_1.png"), np.ones((H, W // 2), np.uint16))
    with pytest.raises(DataError, match=r"depth has 32x48 pixels and the image 64x48"):
        open_samples(DataConfig(kind="nyuv2", folder=str(tmp_path)))[0]


def test_depth_without_any_value_is_refused(tmp_path: Path) -> None:
    frame(tmp_path / "zero" / "0001", np.zeros((H, W), np.uint16))
    frame(tmp_path / "nan" / "0001", np.full((H, W), np.nan, np.float32))
    for name in ("zero", "nan"):
        with pytest.raises(DataError, match=f"{name}/0001: no pixel has a valid depth"):
            frames(tmp_path / name)[0]


def test_what_is_no_depth_is_unknown(tmp_path: Path) -> None:
    depth = np.full((H, W), 2.0, np.float32)
    depth[0, :4] = [np.nan, np.inf, -1.0, 0.0]
    frame(tmp_path / "a" / "0001", depth)
    found = frames(tmp_path)[0].depth
    assert found is not None
    assert np.isnan(found[0, :4]).all() and np.isfinite(found[0, 4:]).all()
    assert checked(frames(tmp_path)[0]).depth is not None


def test_nan_in_the_depth_does_not_reach_the_loss(tmp_path: Path) -> None:
    """Three quarters unknown: training goes on, and every number of the log is finite."""
    depth = np.full((H, W), np.nan, np.float32)
    depth[: H // 2, : W // 2] = np.linspace(1, 4, W // 2)
    frame(tmp_path / "a" / "0001", depth)
    out = tmp_path / "run"
    assert run(tmp_path / "a", out) == 0
    assert "NaN" not in (out / "log.jsonl").read_text()
    assert "Infinity" not in (out / "log.jsonl").read_text()


@pytest.mark.parametrize("kind", ["images", "frames", "nyuv2", "kitti", "void", "shards"])
def test_an_empty_folder_is_refused(tmp_path: Path, kind: str) -> None:
    with pytest.raises(DataError, match=r"holds no"):
        open_samples(DataConfig(kind=kind, folder=str(tmp_path)))
    with pytest.raises(DataError, match="There is no folder"):
        open_samples(DataConfig(kind=kind, folder=str(tmp_path / "absent")))
    with pytest.raises(DataError, match="There is no folder ''"):
        open_samples(DataConfig(kind=kind))


def test_a_list_that_names_absent_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("a/rgb.png a/depth.png\n")
    cfg = DataConfig(kind="nyuv2", folder=str(tmp_path), list=str(tmp_path / "list.txt"))
    with pytest.raises(DataError, match=r"a/rgb\.png is missing"):
        open_samples(cfg)[0]
    with pytest.raises(DataError, match=r"none\.txt is missing"):
        open_samples(
            DataConfig(kind="nyuv2", folder=str(tmp_path), list=str(tmp_path / "none.txt"))
        )
    with pytest.raises(DataError, match=r"test_image\.txt is missing"):
        open_samples(DataConfig(kind="void", folder=str(tmp_path), split="test"))


@pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")
@pytest.mark.parametrize("workers", [0, 1])
def test_the_command_ends_with_the_sentence_alone(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], workers: int
) -> None:
    cut(frame(tmp_path / "a" / "0001") / "depth.png")
    assert run(tmp_path / "a", tmp_path / "run", f"loop.workers={workers}") == 1
    error = capfd.readouterr().err
    assert "depth.png cannot be decoded: the file is damaged, copy it again." in error
    assert "Traceback" not in error


def test_pictures_without_depth_cannot_supervise(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cv2.imwrite(str(tmp_path / "a.png"), noise())
    assert run(tmp_path, tmp_path / "run", "images.kind=images") == 1
    assert "a.png has no depth" in capsys.readouterr().err


def test_an_unknown_recipe_or_setting_is_named_with_its_neighbour(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(ValueError, match="did you mean 'supervised'"):
        find("supervise")
    assert main(["supervised", "--config", str(DEBUG), "--dry-run", "loop.bach=3"]) == 1
    assert "did you mean 'loop.batch'?" in capsys.readouterr().err
    assert main(["supervised", "--config", "absent.yaml", "--dry-run"]) == 1
    assert "cannot read the config file absent.yaml" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["supervised", "--config", str(DEBUG), "--dryrun"])


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_every_recipe_prints_its_settings(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    own = REPO / "training" / "configs" / f"{name}_debug.yaml"
    path = own if own.is_file() else DEBUG
    assert main([name, "--config", str(path), "loop.batch=8", "--dry-run", "loop.steps=9"]) == 0
    printed = capsys.readouterr().out
    assert "batch: 8" in printed and "steps: 9" in printed
