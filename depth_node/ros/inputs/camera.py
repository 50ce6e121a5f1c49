# SPDX-License-Identifier: Apache-2.0
"""The camera input of a node: turns image messages into RGB arrays with their calibration."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from depth_node.engine.preprocess import resize_image
from depth_node.geometry.camera import Camera
from depth_node.ros import messages
from depth_node.ros.settings import NodeConfig


class CameraInput:
    """The camera's last calibration, and how many bits its images use.

    image_topic, info_topic: full names. warn: is called with (kind, sentence) for each doubt.
    """

    def __init__(self, image_topic: str, info_topic: str, warn: Callable[[str, str], None]) -> None:
        self._image_topic, self._info_topic = image_topic, info_topic
        self._warn = warn
        self.info: CameraInfo | None = None
        self._depth_bits = messages.BitDepth(warn)

    def forget(self) -> None:
        """Forget calibration and bit depth, because another camera may follow."""
        self.info = None
        self._depth_bits = messages.BitDepth(self._warn)

    def decode(
        self, message: Image | CompressedImage, config: NodeConfig
    ) -> tuple[npt.NDArray[np.uint8], Camera]:
        """Return the image (H, W, 3) RGB and its camera, at the size that is processed.

        Raises ValueError for a message or a calibration that cannot be used.
        """
        camera = self.calibration(config)
        if self.info is not None:
            info_frame, frame = self.info.header.frame_id, message.header.frame_id
            if doubt := messages.other_camera(info_frame, frame):
                self._warn("other camera", doubt)
        size = (camera.width, camera.height)
        if isinstance(message, Image):
            image = messages.image_to_rgb(message, self._depth_bits)
        else:
            image = messages.compressed_to_rgb(message, self._depth_bits, size)
        height, width = image.shape[:2]
        messages.check_size(width, height, size)
        if 0 < config.max_width_px < width:
            size = (config.max_width_px, max(1, round(height * config.max_width_px / width)))
            image = resize_image(image, size[1], size[0])
            camera = camera.resized(*size)
        return image, camera

    def calibration(self, config: NodeConfig) -> Camera:
        """Return the camera of the last camera_info.

        Raises ValueError if there is none, or none that can be used.
        """
        info = self.info
        if info is None:
            raise messages.MessageError(
                f"no camera_info on {self._info_topic} yet: start its publisher or remap"
                " `camera_info`"
            )
        rectified = messages.is_rectified(self._image_topic, info, config.image_rectified)
        doubt = messages.calibration_warning(info, rectified)
        if doubt:
            self._warn("calibration", doubt)
        if doubt := messages.rectified_doubt(self._image_topic, info, config.image_rectified):
            self._warn("rectified", doubt)
        return messages.camera_of(info, rectified)
