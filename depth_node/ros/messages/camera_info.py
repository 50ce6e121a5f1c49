# SPDX-License-Identifier: Apache-2.0
"""CameraInfo to the camera of its image and back, with warnings of what looks wrong."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from sensor_msgs.msg import CameraInfo
from std_msgs.msg import Header

from depth_node.geometry.camera import Camera, model_name
from depth_node.ros.messages.errors import brief


def is_rectified(topic: str, info: CameraInfo, setting: str = "auto") -> bool:
    """Return whether the images of a topic are rectified; P of their CameraInfo is used then, D is
    not.

    topic: the image's, with or without the suffix of its transport. setting: "yes", "no" or "auto";
    auto means yes if the topic is called image_rect..., or if nothing is left to rectify: D is
    zero, R the identity and P equal to K.
    """
    if setting != "auto":
        return setting == "yes"
    *_, before, last = ("", *topic.rstrip("/").split("/"))
    base = last if last.startswith("image") else before  # image_rect/compressed
    if base.startswith("image_rect"):
        return True
    k, r, p = (np.asarray(values, np.float64) for values in (info.k, info.r, info.p))
    fisheye = model_name(info.distortion_model) == "equidistant"
    same = np.array_equal(p.reshape(3, 4)[:, :3], k.reshape(3, 3))
    return bool(
        not fisheye and not any(info.d) and same and np.array_equal(r.reshape(3, 3), np.eye(3))
    )


def rectified_doubt(topic: str, info: CameraInfo, setting: str = "auto") -> str:
    """Return a sentence if auto takes images for distorted whose topic sounds rectified; or "".

    That is a name which says so in other words than image_rect... Arguments: see is_rectified().
    """
    if setting != "auto" or is_rectified(topic, info) or not any(info.d):
        return ""
    *_, before, last = ("", *topic.rstrip("/").removesuffix("/compressed").split("/"))
    words = set(last.lower().split("_"))
    if last == "image":
        words |= set(before.lower().split("_"))
    if not words & {"rect", "rectified"}:
        return ""
    return (
        f"the image topic {brief(topic)!r} is named like a rectified image, but camera_info has"
        " distortion, which the node corrects once more: set image_rectified to yes if the image"
        " is rectified, otherwise to no"
    )


def other_camera(info_frame: str, image_frame: str) -> str:
    """Return a sentence if a camera_info may belong to another camera than the image's; or ""."""
    if not info_frame or not image_frame or info_frame.lstrip("/") == image_frame.lstrip("/"):
        return ""
    return (
        f"camera_info is in frame {brief(info_frame)!r} but the image in {brief(image_frame)!r}:"
        " of two cameras all depth would be off; remap camera_info to the one of this image, or let"
        " the driver give both one frame_id"
    )


def calibration_warning(info: CameraInfo, rectified: bool) -> str:
    """Return a sentence on what looks wrong in a camera_info or is not used; or "".

    A principal point outside the image belongs to another image size, as a cropped image is
    described by roi. The camera of a rectified image is P, without R and without the offset of a
    stereo pair, and depth is published in the image's own frame.
    """
    parts = []
    p = [float(value) for value in info.p]
    k = [p[0], p[2], p[5], p[6]] if rectified and p[0] > 0 else [info.k[i] for i in (0, 2, 4, 5)]
    beside = min(k[1], k[3]) < -0.5 or k[1] > info.width or k[3] > info.height
    if beside and not (info.roi.width and info.roi.height):
        parts.append(
            f"the principal point of camera_info ({k[1]:.6g}, {k[3]:.6g}) lies beside its image of"
            f" {info.width}x{info.height}, so it is probably that of another image size, and points"
            " fall on wrong pixels: publish the calibration of this size, or set roi for a part of"
            " a larger image"
        )
    if rectified:
        parts += _stereo_warnings(info, p)
    if rectified and not p[0] > 0 and any(info.d):
        parts.append(
            "P of camera_info is 0, so K is taken for the rectified image, which has another"
            " calibration where the camera has distortion: publish P"
        )
    return "; ".join(parts)


def _stereo_warnings(info: CameraInfo, p: list[float]) -> list[str]:
    R: npt.NDArray[np.float64] = np.array(info.r, np.float64).reshape(3, 3)
    turned = np.isfinite(R).all() and R.any()
    angle = np.degrees(np.arccos(np.clip((np.trace(R) - 1) / 2, -1, 1))) if turned else 0.0
    parts = []
    if p[0] > 0 and np.hypot(p[3], p[7]) > 1e-6 * p[0]:
        metres = float(np.hypot(p[3] / p[0], p[7] / p[0]))
        parts.append(
            f"P of camera_info is that of the second camera of a stereo pair ({metres:.3f} m from"
            " the first), and this offset is not used: the image's frame_id must be the optical"
            " frame of this camera and not of the first"
        )
    if angle > 0.05:
        parts.append(
            f"R of camera_info rotates the image by {angle:.2f} degrees from the camera, which the"
            " node does not apply: T_camera_lidar, or TF of the image's frame_id, must be that of"
            " the rectified image"
        )
    return parts


def camera_of(info: CameraInfo, rectified: bool = False) -> Camera:
    """Return the camera of the image of this CameraInfo, with region of interest and binning
    applied.

    For a rectified image it is P without distortion, otherwise K with D. Raises ValueError with one
    sentence for a calibration that cannot be used.
    """
    k: npt.NDArray[np.float64] = np.array(info.k, dtype=np.float64).reshape(3, 3)
    if rectified:
        p = np.array(info.p, dtype=np.float64).reshape(3, 4)
        k = p[:, :3].copy() if p[0, 0] > 0 else k
    roi = info.roi
    region = roi.width > 0 and roi.height > 0
    width, height = (roi.width, roi.height) if region else (info.width, info.height)
    if region:
        k[0, 2] -= roi.x_offset
        k[1, 2] -= roi.y_offset
    binning = np.array([max(info.binning_x, 1), max(info.binning_y, 1)])
    k[:2] /= binning[:, None]
    width, height = width // int(binning[0]), height // int(binning[1])
    if rectified:
        return Camera.from_matrix(k, (), "pinhole", width, height)
    return Camera.from_matrix(k, tuple(info.d), info.distortion_model, width, height)


def camera_info_message(camera: Camera, header: Header) -> CameraInfo:
    """Return the CameraInfo of a camera, with R the identity and P = K."""
    model = "plumb_bob" if camera.model == "pinhole" else camera.model
    if len(camera.distortion) > 5:  # with 12 and 14, OpenCV's thin prism and tilt follow
        model = "rational_polynomial"
    d = camera.distortion or (0.0,) * 5
    k = camera.matrix
    return CameraInfo(
        header=header,
        width=camera.width,
        height=camera.height,
        distortion_model=model,
        d=list(d),
        k=k.reshape(-1).tolist(),
        r=np.eye(3).reshape(-1).tolist(),
        p=np.hstack([k, np.zeros((3, 1))]).reshape(-1).tolist(),
    )
