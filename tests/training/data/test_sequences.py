# SPDX-License-Identifier: Apache-2.0
"""Video triplets: rendered walks, and readers of published layouts on tiny imitations."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("torch", reason="training needs torch (requirements-training.txt)")

from depth_node import config
from training.data.samples import DataError
from training.data.sequences import SequenceConfig, open_triplets

HEIGHT, WIDTH = 24, 32


def opened(layout: str, folder: Path, need_poses: bool = True, **more: object):
    cfg = SequenceConfig(layout=layout, folder=str(folder), **more)
    return open_triplets(cfg, HEIGHT, WIDTH, need_poses)


def image(path: Path, value: int, shape: tuple[int, ...] = (48, 64, 3)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full(shape, value, np.uint8))


def depth_map(path: Path, value: int, shape: tuple[int, int] = (48, 64)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    stored = np.full(shape, value, np.uint16)
    stored[:2] = 0  # the first row of a view of half the size
    cv2.imwrite(str(path), stored)


def make_scannet(folder: Path, frames: int = 4) -> Path:
    scene = folder / "scene0000_00"
    for k in range(frames):
        image(scene / "color" / f"{k}.png", 10 * k)
        depth_map(scene / "depth" / f"{k}.png", 1500)
        pose = np.eye(4)
        pose[0, 3] = 0.1 * k
        (scene / "pose").mkdir(exist_ok=True)
        np.savetxt(scene / "pose" / f"{k}.txt", pose)
    (scene / "intrinsic").mkdir()
    K = np.eye(4)
    K[:2, :3] = [[60, 0, 31.5], [0, 62, 23.5]]
    np.savetxt(scene / "intrinsic" / "intrinsic_color.txt", K)
    return scene


def make_tum(folder: Path, name: str = "rgbd_dataset_freiburg1_desk", frames: int = 4) -> Path:
    sequence = folder / name
    rows: dict[str, list[str]] = {"rgb": [], "depth": [], "groundtruth": []}
    for k in range(frames):
        stamp = 100 + 0.1 * k
        image(sequence / "rgb" / f"{stamp:.6f}.png", 10 * k)
        depth_map(sequence / "depth" / f"{stamp:.6f}.png", 10_000)
        rows["rgb"].append(f"{stamp:.6f} rgb/{stamp:.6f}.png")
        rows["depth"].append(f"{stamp + 0.01:.6f} depth/{stamp:.6f}.png")
        # A rotation by 90 degrees about z, and 0.5 m/s along y.
        half = np.sqrt(0.5)
        rows["groundtruth"].append(f"{stamp + 0.005:.4f} 0 {0.05 * k} 0 0 0 {half} {half}")
    for name_, lines in rows.items():
        (sequence / f"{name_}.txt").write_text("# stamp ...\n" + "\n".join(lines) + "\n")
    return sequence


def make_kitti(folder: Path, frames: int = 3) -> Path:
    day = folder / "2011_09_26"
    drive = day / "2011_09_26_drive_0001_sync"
    for k in range(frames):
        image(drive / "image_02" / "data" / f"{k:010d}.png", 10 * k)
        oxts = drive / "oxts" / "data" / f"{k:010d}.txt"
        oxts.parent.mkdir(parents=True, exist_ok=True)
        # The vehicle moves and points north (yaw 90 degrees from east), by 1e-5 degrees per frame.
        row = [49.0 + 1e-5 * k, 8.0, 100.0, 0.0, 0.0, np.pi / 2] + [0.0] * 24
        oxts.write_text(" ".join(f"{x:.10f}" for x in row))
    depth_map(drive / "proj_depth" / "groundtruth" / "image_02" / f"{1:010d}.png", 256 * 5)
    eye = "1 0 0 0 1 0 0 0 1"
    (day / "calib_cam_to_cam.txt").write_text(
        "calib_time: 09-Jan-2012 13:57:47\n"
        f"R_rect_00: {eye}\nP_rect_02: 60 0 31.5 0 0 60 23.5 0 0 0 1 0\n"
    )
    # Camera x right, y down, z forward of LiDAR x forward, y left, z up.
    (day / "calib_velo_to_cam.txt").write_text("R: 0 -1 0 0 0 -1 1 0 0\nT: 0 0 0\n")
    (day / "calib_imu_to_velo.txt").write_text(f"R: {eye}\nT: 0 0 0\n")
    return drive


def test_walks_repeat_themselves_and_move_a_little() -> None:
    cfg = SequenceConfig(scenes=1, views=4, seed=7)
    first, again = (open_triplets(cfg, HEIGHT, WIDTH, True) for _ in range(2))
    assert len(first) == 2
    a, b = first[1], again[1]
    np.testing.assert_array_equal(a.target.image, b.target.image)
    np.testing.assert_array_equal(a.poses(), b.poses())
    step = np.linalg.norm(a.poses()[:, :3, 3], axis=1)
    assert (step > 0.005).all() and (step < 0.4).all()
    np.testing.assert_array_equal(first[0].target.image, first[1].sources[0].image)
    assert np.isfinite(a.target.depth).all()


def test_scannet(tmp_path: Path) -> None:
    make_scannet(tmp_path)
    triplets = opened("scannet", tmp_path)
    assert len(triplets) == 2
    triplet = triplets[0]
    assert triplet.target.image.shape == (HEIGHT, WIDTH, 3) and (triplet.target.image == 10).all()
    # At half the size the focal length is half, and the principal point stays in the middle.
    np.testing.assert_allclose(
        triplet.target.K, [[30, 0, 15.5], [0, 31, 11.5], [0, 0, 1]], atol=1e-9
    )
    np.testing.assert_allclose(triplet.poses()[:, 0, 3], [0.1, -0.1])
    assert np.isnan(triplet.target.depth[0]).all()
    np.testing.assert_allclose(triplet.target.depth[1:], 1.5)
    assert len(opened("scannet", tmp_path, spacing=1, views=3)) == 2


def test_frames_without_a_finite_pose_are_left_out(tmp_path: Path) -> None:
    scene = make_scannet(tmp_path, frames=6)
    np.savetxt(scene / "pose" / "5.txt", np.full((4, 4), -np.inf))
    assert len(opened("scannet", tmp_path)) == 3
    for k in range(5):
        np.savetxt(scene / "pose" / f"{k}.txt", np.full((4, 4), -np.inf))
    with pytest.raises(DataError, match="No three neighbouring frames"):
        opened("scannet", tmp_path)
    assert len(opened("scannet", tmp_path, need_poses=False)) == 4


def test_tum(tmp_path: Path) -> None:
    make_tum(tmp_path)
    triplet = opened("tum", tmp_path)[0]
    assert triplet.target.K[0, 0] == pytest.approx(517.3 / 2)
    np.testing.assert_allclose(triplet.target.depth[1:], 2.0)
    # After a quarter turn the world's y is the camera's x: the earlier frame lies at -x.
    np.testing.assert_allclose(triplet.poses()[:, :3, 3], [[0.05, 0, 0], [-0.05, 0, 0]], atol=1e-12)


def test_kitti(tmp_path: Path) -> None:
    make_kitti(tmp_path)
    triplet = opened("kitti", tmp_path)[0]
    np.testing.assert_allclose(
        triplet.target.K, [[30, 0, 15.5], [0, 30, 11.5], [0, 0, 1]], atol=0.3
    )
    # On the sphere of KITTI's devkit 1e-5 degrees of latitude are 1.113 m, straight ahead.
    expected = np.deg2rad(1e-5) * 6_378_137
    np.testing.assert_allclose(
        triplet.poses()[:, :3, 3], [[0, 0, expected], [0, 0, -expected]], atol=1e-4
    )
    np.testing.assert_allclose(triplet.target.depth[1:], 5.0)
    assert triplet.sources[0].depth is None


def test_depth_is_where_the_image_and_its_camera_are(tmp_path: Path) -> None:
    """Of 3 x 3 stored pixels the middle one counts: the ray of the view goes through it."""
    scene = make_scannet(tmp_path)
    rows, cols = np.mgrid[0 : 3 * HEIGHT, 0 : 3 * WIDTH]
    for k in range(4):
        image(scene / "color" / f"{k}.png", 10, (3 * HEIGHT, 3 * WIDTH, 3))
        stored = (1000 + 100 * rows + cols).astype(np.uint16)
        cv2.imwrite(str(scene / "depth" / f"{k}.png"), stored)
    depth = opened("scannet", tmp_path)[0].target.depth
    np.testing.assert_allclose(depth, (stored[1::3, 1::3] / 1000).astype(np.float32))


@pytest.mark.parametrize("layout", ["kitti", "scannet", "tum"])
def test_missing_poses_are_named_and_not_needed_with_a_pose_network(
    layout: str, tmp_path: Path
) -> None:
    if layout == "kitti":
        next((make_kitti(tmp_path) / "oxts" / "data").glob("*1.txt")).unlink()
    elif layout == "scannet":
        (make_scannet(tmp_path) / "pose" / "2.txt").unlink()
    else:
        (make_tum(tmp_path) / "groundtruth.txt").unlink()
    with pytest.raises(DataError, match="poses: network"):
        opened(layout, tmp_path)
    triplet = opened(layout, tmp_path, need_poses=False)[0]
    with pytest.raises(DataError, match="no poses"):
        triplet.poses()


def test_missing_intrinsics_are_named(tmp_path: Path) -> None:
    (make_scannet(tmp_path / "s") / "intrinsic" / "intrinsic_color.txt").unlink()
    with pytest.raises(DataError, match="intrinsics is missing"):
        opened("scannet", tmp_path / "s")
    sequence = make_tum(tmp_path / "t", name="my_desk")
    with pytest.raises(DataError, match="write fx fy cx cy"):
        opened("tum", tmp_path / "t")
    (sequence / "intrinsics.txt").write_text("60 61 31.5 23.5")
    assert opened("tum", tmp_path / "t")[0].target.K[1, 1] == pytest.approx(30.5)
    drive = make_kitti(tmp_path / "k")
    (drive.parent / "calib_cam_to_cam.txt").write_text("R_rect_00: 1 0 0 0 1 0 0 0 1\n")
    with pytest.raises(DataError, match="no P_rect_02"):
        opened("kitti", tmp_path / "k")


@pytest.mark.parametrize(("frames", "message"), [(1, "has 1 frame "), (2, "has 2 frames ")])
def test_a_sequence_too_short_for_a_triplet(tmp_path: Path, frames: int, message: str) -> None:
    make_scannet(tmp_path, frames=frames)
    with pytest.raises(DataError, match=message):
        opened("scannet", tmp_path)


def test_folders_that_hold_no_sequence(tmp_path: Path) -> None:
    for layout in ("kitti", "scannet", "tum"):
        with pytest.raises(DataError, match="holds no"):
            opened(layout, tmp_path)
        with pytest.raises(DataError, match="There is no folder"):
            opened(layout, tmp_path / "absent")
    with pytest.raises(DataError, match="seed"):
        open_triplets(SequenceConfig(), HEIGHT, WIDTH, True)
    with pytest.raises(config.ConfigError, match="at least 7"):
        SequenceConfig(spacing=3, views=6)


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    scene = make_scannet(tmp_path)
    (scene / "color" / "1.png").write_bytes(b"cut")
    with pytest.raises(DataError, match=r"1\.png cannot be read"):
        opened("scannet", tmp_path)[0]
    image(scene / "color" / "1.png", 10)
    image(scene / "depth" / "1.png", 10)
    with pytest.raises(DataError, match="16 bit"):
        opened("scannet", tmp_path)[0]


@pytest.mark.filterwarnings("ignore::UserWarning")  # NumPy warns of an empty file
@pytest.mark.parametrize("content", ["", "49.0 8.0 100.0\n", "49.0 8.0\n1 2 3\n"])
@pytest.mark.parametrize("number", [0, 1])
def test_a_damaged_pose_of_kitti_is_named(tmp_path: Path, content: str, number: int) -> None:
    (make_kitti(tmp_path) / "oxts" / "data" / f"{number:010d}.txt").write_text(content)
    with pytest.raises(DataError, match=rf"{number:010d}\.txt .*copy it again"):
        opened("kitti", tmp_path)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("pose", [np.eye(3), np.eye(4)[:3], np.ones((1, 16)), np.empty((0, 4))])
def test_a_damaged_pose_of_scannet_is_named(tmp_path: Path, pose: np.ndarray) -> None:
    np.savetxt(make_scannet(tmp_path) / "pose" / "2.txt", pose)
    with pytest.raises(DataError, match=r"2\.txt .*copy it again"):
        opened("scannet", tmp_path)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_empty_lists_of_tum_are_named(tmp_path: Path) -> None:
    sequence = make_tum(tmp_path)
    (sequence / "groundtruth.txt").write_text("# stamp tx ty tz qx qy qz qw\n")
    with pytest.raises(DataError, match=r"groundtruth\.txt .*copy it again"):
        opened("tum", tmp_path)
