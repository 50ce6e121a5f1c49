# SPDX-License-Identifier: Apache-2.0
"""Readers of published data sets on small fakes of their layouts, and on damaged files."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("torch", reason="training needs torch (requirements-training.txt)")

from tests.helpers.data_sets import cut, frame, frames, noise, opened, put, sample_image
from training.data.layouts import read_image
from training.data.open import DataConfig, open_samples
from training.data.samples import DataError, DataSet, Sample

H, W = 12, 16


def truth() -> NDArray[np.float64]:
    """Return depth from 1 m to 3 m, unknown (0) in the first row."""
    depth = np.linspace(1.0, 3.0, H * W).reshape(H, W)
    depth[0] = 0
    return depth


def steps(per_metre: float) -> NDArray[np.uint16]:
    return np.round(truth() * per_metre).astype(np.uint16)


def agrees(sample: Sample, expected: NDArray[Any] | None = None, atol: float = 0.006) -> None:
    depth = truth() if expected is None else expected
    assert sample.depth is not None
    assert sample.depth.dtype == np.float32
    assert sample.image.dtype == np.uint8
    assert sample.image.shape == (*depth.shape, 3)
    np.testing.assert_array_equal(np.isnan(sample.depth), depth <= 0)
    np.testing.assert_allclose(sample.depth[depth > 0], depth[depth > 0], atol=atol)


def names(samples: DataSet) -> list[str]:
    return [samples[k].name for k in range(len(samples))]


def test_images_of_any_depth_of_folders(tmp_path: Path) -> None:
    for name in ("b/2.jpg", "b/1.PNG", "a.jpeg"):
        put(tmp_path / name, sample_image())
    (tmp_path / "notes.txt").write_text("no image")
    samples = opened("images", tmp_path)
    assert names(samples) == ["a.jpeg", "b/1.PNG", "b/2.jpg"]
    assert samples[0].depth is None and samples[0].camera is None
    np.testing.assert_array_equal(samples[1].image, sample_image())
    assert names(opened("images", tmp_path, split="b")) == ["1.PNG", "2.jpg"]
    put(tmp_path / "with a space.png", sample_image())
    listed = tmp_path / "list.txt"
    listed.write_text("b/2.jpg\n\nwith a space.png\n")
    assert names(opened("images", tmp_path, list=str(listed))) == ["b/2.jpg", "with a space.png"]
    (tmp_path / "with a space.png").unlink()
    assert len(opened("images", tmp_path, limit=2)) == 2
    assert [sample.name for sample in samples[1:]] == ["b/1.PNG", "b/2.jpg"]


def test_recorded_frames(tmp_path: Path) -> None:
    frame = tmp_path / "lab" / "0001"
    put(frame / "rgb.png", sample_image())
    put(frame / "depth.png", steps(1000))
    put(frame / "segmentation_1.png", np.full((H, W), 7, np.uint16))
    (frame / "intrinsics.json").write_text(
        f'{{"fx": 20, "fy": 20, "cx": 8, "cy": 6, "width": {W}, "height": {H}}}'
    )
    (sample,) = opened("frames", tmp_path)
    agrees(sample)
    assert sample.name == "lab/0001"
    assert sample.camera is not None and sample.camera.fx == 20
    assert sample.masks is not None and set(np.unique(sample.masks)) == {1}


def test_the_real_frames(shared: Path) -> None:
    samples = opened("frames", shared / "data")
    assert len(samples) == 17
    assert all(sample.depth is not None and sample.camera is not None for sample in samples)


def test_nyuv2_as_folders(tmp_path: Path) -> None:
    for split, end, kind in (("test", "png", "depth"), ("train", "jpg", "sync_depth")):
        put(tmp_path / split / "bathroom" / f"rgb_0046.{end}", sample_image())
        put(tmp_path / split / "bathroom" / f"{kind}_0046.png", steps(1000))
    samples = opened("nyuv2", tmp_path, split="test")
    assert names(samples) == ["test/bathroom/rgb_0046.png"]
    assert samples.protocol == "nyu"
    agrees(samples[0])
    agrees(opened("nyuv2", tmp_path, split="train")[0])
    listed = tmp_path / "list.txt"  # in the format of Marigold's lists
    listed.write_text(
        "test/bathroom/rgb_0046.png test/bathroom/depth_0046.png test/bathroom/filled_0046.png\n"
    )
    assert len(opened("nyuv2", tmp_path, list=str(listed))) == 1


def test_nyuv2_as_published(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    from scipy.io import savemat

    image = sample_image(height=480, width=640)
    depth = np.linspace(1, 3, 480 * 640).reshape(480, 640)
    depth[:5] = 0
    with h5py.File(tmp_path / "nyu_depth_v2_labeled.mat", "w") as file:
        file["images"] = np.stack([image.transpose(2, 1, 0) + np.uint8(k) for k in range(3)])
        file["depths"] = np.ones((3, 640, 480))
        file["rawDepths"] = np.stack([depth.T * (k + 1) for k in range(3)])
    savemat(tmp_path / "splits.mat", {"trainNdxs": [[1], [3]], "testNdxs": [[2]]})
    samples = opened("nyuv2", tmp_path, split="test")
    assert names(samples) == ["0002"]
    np.testing.assert_array_equal(samples[0].image, image + 1)
    agrees(samples[0], depth * 2)
    camera = samples[0].camera
    assert camera is not None and camera.fx == pytest.approx(518.8579)
    assert len(opened("nyuv2", tmp_path, split="train")) == 2
    assert len(opened("nyuv2", tmp_path)) == 3


def kitti(folder: Path, merged: bool) -> str:
    drive = "2011_09_26_drive_0002_sync"
    put(folder / "2011_09_26" / drive / "image_02" / "data" / "0000000069.png", sample_image())
    (folder / "2011_09_26" / "calib_cam_to_cam.txt").write_text(
        "calib_time: 09\nP_rect_02: 20 0 7.5 1 0 21 5.5 0 0 0 1 0\n"
    )
    annotated = folder / ("" if merged else "val") / drive / "proj_depth/groundtruth/image_02"
    put(annotated / "0000000069.png", steps(256))
    return drive


@pytest.mark.parametrize("merged", [True, False])
def test_kitti(tmp_path: Path, merged: bool) -> None:
    drive = kitti(tmp_path, merged)
    samples = opened("kitti", tmp_path, split="" if merged else "val")
    assert names(samples) == [f"{drive}/image_02/0000000069"]
    agrees(samples[0])
    camera = samples[0].camera
    assert camera is not None
    assert (camera.fx, camera.fy, camera.cx, camera.cy) == (20, 21, 7.5, 5.5)
    eigen = tmp_path / "eigen_test_files_with_gt.txt"
    image = f"2011_09_26/{drive}/image_02/data/0000000069.png"
    eigen.write_text(
        f"{image} {drive}/proj_depth/groundtruth/image_02/0000000069.png 721.5377\n"
        f"2011_09_26/{drive}/image_02/data/0000000070.png None 721.5377\n"
    )
    samples = opened("kitti", tmp_path, list=str(eigen))
    assert names(samples) == [image]  # the one without truth is left out: 697 become 652
    agrees(samples[0])


def test_diode(tmp_path: Path) -> None:
    scan = tmp_path / "val" / "indoors" / "scene_00019" / "scan_00183"
    stem = "00019_00183_indoors_000_010"
    put(scan / f"{stem}.png", sample_image())
    depth = truth()
    depth[0] = 5.0  # the mask marks it as unknown instead
    put(scan / f"{stem}_depth.npy", depth[..., None].astype(np.float32))
    put(scan / f"{stem}_depth_mask.npy", (truth() > 0).astype(np.float32))
    samples = opened("diode", tmp_path, split="val/indoors")
    assert names(samples) == [f"val/indoors/scene_00019/scan_00183/{stem}.png"]
    agrees(samples[0], atol=1e-6)
    listed = tmp_path / "list.txt"
    relative = f"val/indoors/scene_00019/scan_00183/{stem}"
    listed.write_text(f"{relative}.png {relative}_depth.npy {relative}_depth_mask.npy\n")
    agrees(opened("diode", tmp_path, list=str(listed))[0], atol=1e-6)


def test_eth3d(tmp_path: Path) -> None:
    put(tmp_path / "courtyard" / "images" / "dslr_images" / "DSC_0286.JPG", sample_image())
    depth = truth().astype(np.float32)
    depth[0] = np.inf
    depths = tmp_path / "courtyard" / "ground_truth_depth" / "dslr_images"
    depths.mkdir(parents=True)
    depth.tofile(depths / "DSC_0286.JPG")
    (sample,) = opened("eth3d", tmp_path)
    agrees(sample, atol=1e-6)
    depth[:3].tofile(depths / "DSC_0286.JPG")
    with pytest.raises(DataError, match=r"DSC_0286\.JPG cannot be read \(48 numbers"):
        opened("eth3d", tmp_path)[0]


def test_scannet(tmp_path: Path) -> None:
    for scene in ("scene0000_00", "scene0707_00"):
        for number in (0, 2, 10):
            put(
                tmp_path / "scans" / scene / "color" / f"{number}.jpg",
                sample_image(0, 2 * H, 2 * W),
            )
            put(tmp_path / "scans" / scene / "depth" / f"{number}.png", steps(1000))
        where = tmp_path / "scans" / scene / "intrinsic"
        where.mkdir()
        np.savetxt(where / "intrinsic_depth.txt", np.diag([20.0, 21.0, 1, 1]))
    chosen = tmp_path / "scannetv2_test.txt"
    chosen.write_text("scene0707_00\n")
    samples = opened("scannet", tmp_path, list=str(chosen))
    assert names(samples) == [f"scene0707_00/{number}" for number in (0, 2, 10)]
    agrees(samples[0])
    camera = samples[0].camera
    assert camera is not None and camera.fy == 21
    assert len(opened("scannet", tmp_path, split="scans")) == 6


def test_void(tmp_path: Path) -> None:
    release = tmp_path / "void_release" / "void_150"
    for sequence in ("classroom0", "birthplace"):
        frames_of = release / "data" / sequence
        put(frames_of / "image" / "1552.25.png", sample_image())
        put(frames_of / "ground_truth" / "1552.25.png", steps(256))
        np.savetxt(frames_of / "K.txt", np.array([[20.0, 0, 8], [0, 21, 6], [0, 0, 1]]))
    made = "data/void_release/void_150/data/classroom0"  # the path on the machine of the authors
    (release / "test_image.txt").write_text(f"{made}/image/1552.25.png\n")
    (release / "test_ground_truth.txt").write_text(f"{made}/ground_truth/1552.25.png\n")
    samples = opened("void", release, split="test")
    assert len(samples) == 1
    agrees(samples[0])
    camera = samples[0].camera
    assert camera is not None and (camera.fx, camera.cy) == (20, 6)
    assert len(opened("void", release)) == 2


def test_hypersim_distance_becomes_depth(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    focal = 886.81 * W / 1024
    y, x = np.mgrid[0:H, 0:W]
    ray = np.sqrt(((x - (W - 1) / 2) / focal) ** 2 + ((y - (H - 1) / 2) / focal) ** 2 + 1)
    for scene, number in (("ai_001_001", 0), ("ai_001_001", 7), ("ai_055_010", 0)):
        images = tmp_path / scene / "images"
        put(
            images / "scene_cam_00_final_preview" / f"frame.{number:04d}.tonemap.jpg",
            sample_image(),
        )
        (images / "scene_cam_00_geometry_hdf5").mkdir(exist_ok=True)
        path = images / "scene_cam_00_geometry_hdf5" / f"frame.{number:04d}.depth_meters.hdf5"
        distance = np.where(truth() > 0, truth() * ray, np.nan)
        with h5py.File(path, "w") as file:
            file["dataset"] = distance.astype(np.float16)
    with (tmp_path / "metadata_images_split_scene_v1.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(
            ["scene_name", "camera_name", "frame_id", "included_in_public_release",
             "exclude_reason", "split_partition_name"]
        )  # fmt: skip
        rows.writerow(["ai_001_001", "cam_00", 0, "False", "empty", "test"])
        rows.writerow(["ai_001_001", "cam_00", 7, "True", "", "test"])
        rows.writerow(["ai_055_010", "cam_00", 0, "True", "", "train"])
    samples = opened("hypersim", tmp_path, split="test")
    assert names(samples) == ["ai_001_001/cam_00/0007"]
    agrees(samples[0])
    assert len(opened("hypersim", tmp_path)) == 3


@pytest.mark.parametrize("archives", [True, False])
def test_virtual_kitti_2(tmp_path: Path, archives: bool) -> None:
    rgb = tmp_path / ("vkitti_2.0.3_rgb" if archives else "")
    depth = tmp_path / ("vkitti_2.0.3_depth" if archives else "")
    stored = steps(100)
    stored[0] = 65535  # sky
    for variation in ("clone", "fog"):
        inner = Path("Scene01") / variation / "frames"
        put(rgb / inner / "rgb" / "Camera_0" / "rgb_00001.jpg", sample_image())
        put(depth / inner / "depth" / "Camera_0" / "depth_00001.png", stored)
    assert len(opened("vkitti2", tmp_path)) == 2
    samples = opened("vkitti2", tmp_path, split="fog")
    assert names(samples) == ["Scene01/fog/Camera_0/00001"]
    agrees(samples[0], atol=0.011)


# --- files that cannot be used --------------------------------------------------------------------


@pytest.mark.parametrize("end", ["jpg", "png", "bmp", "webp", "tiff"])
@pytest.mark.parametrize("damage", ["cut", "empty", "text"])
def test_a_damaged_picture_is_named(
    tmp_path: Path, end: str, damage: str, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / f"a.{end}"
    assert cv2.imwrite(str(path), noise())
    assert read_image(path).shape == noise().shape
    if damage == "cut":
        cut(path)
    else:
        path.write_text("" if damage == "empty" else "this is no image")
    samples = open_samples(DataConfig(kind="images", folder=str(tmp_path)))
    with pytest.raises(DataError, match=rf"a\.{end} cannot be read .*copy it again"):
        samples[0]


def test_a_jpeg_with_a_thumbnail_and_a_tail_is_whole(tmp_path: Path) -> None:
    """Cameras put a thumbnail JPEG into the header and their own bytes after the end."""
    done, image = cv2.imencode(".jpg", noise())
    assert done
    small = cv2.imencode(".jpg", noise()[:8, :8])[1].tobytes()
    header = b"\xff\xe1" + (len(small) + 2).to_bytes(2, "big") + small
    content = image.tobytes()
    path = tmp_path / "a.jpg"
    path.write_bytes(content[:2] + header + content[2:] + bytes(40))
    assert read_image(path).shape == noise().shape
    path.write_bytes(content[:2] + header + content[2 : len(content) // 2])
    with pytest.raises(DataError, match="damaged or cut"):
        read_image(path)


def test_damaged_depth_is_named(tmp_path: Path) -> None:
    cut(frame(tmp_path / "png" / "0001") / "depth.png")
    with pytest.raises(DataError, match=r"depth\.png cannot be decoded"):
        frames(tmp_path / "png")[0]
    cut(frame(tmp_path / "npz" / "0001", np.ones(noise().shape[:2], np.float32)) / "depth.npz")
    with pytest.raises(DataError, match=r"depth\.npz cannot be read"):
        frames(tmp_path / "npz")[0]
    cut(frame(tmp_path / "jpg" / "0001", image="rgb.jpg") / "rgb.jpg")
    with pytest.raises(DataError, match=r"rgb\.jpg cannot be decoded .*cut off"):
        frames(tmp_path / "jpg")[0]


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", b"no array"])
def test_a_damaged_array_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "s").mkdir()
    assert cv2.imwrite(str(tmp_path / "s" / "a.png"), noise())
    np.save(tmp_path / "s" / "a_depth_mask.npy", np.ones(noise().shape[:2]))
    (tmp_path / "s" / "a_depth.npy").write_bytes(content)
    samples = open_samples(DataConfig(kind="diode", folder=str(tmp_path)))
    with pytest.raises(DataError, match=r"a_depth\.npy cannot be read"):
        samples[0]


def test_eight_bit_depth_is_refused(tmp_path: Path) -> None:
    for name in ("rgb_1.png", "depth_1.png"):
        assert cv2.imwrite(str(tmp_path / name), noise())
    with pytest.raises(DataError, match=r"depth_1\.png cannot be read \(uint8 with 3"):
        open_samples(DataConfig(kind="nyuv2", folder=str(tmp_path)))[0]


def test_lists_of_void_that_do_not_belong_together_are_named(tmp_path: Path) -> None:
    (tmp_path / "test_image.txt").write_text("data/a/image/1.png\ndata/a/image/2.png\n")
    (tmp_path / "test_ground_truth.txt").write_text("data/a/ground_truth/1.png\n")
    with pytest.raises(DataError, match=r"test_image\.txt has 2 lines and .*1"):
        opened("void", tmp_path, split="test")


def test_a_list_of_kitti_may_name_files_anywhere(tmp_path: Path) -> None:
    drive = kitti(tmp_path / "set", merged=True)
    elsewhere = put(tmp_path / "elsewhere" / "69.png", steps(256))
    eigen = tmp_path / "list.txt"
    eigen.write_text(f"2011_09_26/{drive}/image_02/data/0000000069.png {elsewhere} 721.5377\n")
    agrees(opened("kitti", tmp_path / "set", list=str(eigen))[0])


def test_a_list_of_kitti_may_name_files_of_a_flat_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path / "image" / "1.png", sample_image())
    put(tmp_path / "depth" / "1.png", steps(256))
    (tmp_path / "list.txt").write_text("image/1.png depth/1.png\n")
    monkeypatch.chdir(tmp_path)
    for kind, depth in (("kitti", None), ("void", None), ("scannet", truth() * 0.256)):
        agrees(opened(kind, Path("."), list="list.txt")[0], depth)
