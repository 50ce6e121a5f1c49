# SPDX-License-Identifier: Apache-2.0
"""The choice of the camera's and the sensors' topics in a bag."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from depth_node.recordings.bag_files import BagError
from depth_node.ros.outputs.results import OUTPUTS

IMAGE = "sensor_msgs/msg/Image"
COMPRESSED = "sensor_msgs/msg/CompressedImage"
CAMERA_INFO = "sensor_msgs/msg/CameraInfo"
CLOUD = "sensor_msgs/msg/PointCloud2"
SCAN = "sensor_msgs/msg/LaserScan"
RANGE = "sensor_msgs/msg/Range"
TF = "tf2_msgs/msg/TFMessage"
KNOWN = (IMAGE, COMPRESSED, CAMERA_INFO, CLOUD, SCAN, RANGE, TF)

# Words in the name of a topic whose images are no input of a monocular network.
_OTHER_IMAGES = ("depth", "disparity", "confidence", "mask", "label", "infra", "thermal")
_OWN = tuple(f"/depth_node/{name.removeprefix('~/')}" for name in OUTPUTS)
_LISTED_TOPICS = 12


@dataclass(frozen=True)
class BagTopics:
    """The topics of a bag that are used; an empty name means: find the topic by its type.

    Landmarks, depth images and ranges are used only if they are named.
    """

    image: str = ""
    camera_info: str = ""
    points: str = ""
    scan: str = ""
    landmarks: str = ""
    depth: str = ""
    range: str = ""


@dataclass(frozen=True)
class TopicChooser:
    """Finds the topics that are not named. types: topic -> type, of the bag at `path`."""

    path: Path
    types: Mapping[str, str]

    def choose(self, wanted: BagTopics) -> BagTopics:
        """Return the topics that are used.

        Raises BagError for a name that is missing or of another type, and if a topic is not named
        and there are none or several of its type.
        """
        image = self._named("image", wanted.image, (IMAGE, COMPRESSED))
        if not image:
            every = self._recorded(IMAGE, COMPRESSED)
            image = self._only("image", _of_a_camera(every), "image")
        camera_info = self._named("camera-info", wanted.camera_info, (CAMERA_INFO,))
        if not camera_info:
            candidates = self._recorded(CAMERA_INFO)
            beside = [t for t in candidates if _same_camera(t, image)]
            camera_info = self._only("camera-info", beside or candidates, "camera_info")
        points = self._named("points", wanted.points, (CLOUD,))
        scan = self._named("scan", wanted.scan, (SCAN,))
        others = [
            self._named("landmarks", wanted.landmarks, (CLOUD,)),
            self._named("depth", wanted.depth, (IMAGE,)),
            self._named("range", wanted.range, (RANGE,)),
        ]
        if not (points or scan or any(others)):
            clouds, scans = self._recorded(CLOUD), self._recorded(SCAN)
            if clouds or not scans:
                points = self._only("points", clouds, "LiDAR (PointCloud2 or LaserScan)")
            else:
                scan = self._only("scan", scans, "LaserScan")
        chosen = BagTopics(image, camera_info, points, scan, *others)
        self._check_distinct(chosen)
        return chosen

    def _check_distinct(self, chosen: BagTopics) -> None:
        """Refuse two inputs on one topic, as the node does."""
        option_of: dict[str, str] = {}
        for name, topic in vars(chosen).items():
            option = f"--{name.replace('_', '-')}-topic"
            if topic and topic in option_of:
                raise BagError(
                    f"{option_of[topic]} and {option} are both {topic}: name a topic of its own for"
                    " each, or leave one out."
                )
            option_of[topic] = option

    def _recorded(self, *kinds: str) -> list[str]:
        """Return topics of these types, without outputs of a depth_node: they are not measured."""
        return [t for t, kind in self.types.items() if kind in kinds and not t.endswith(_OWN)]

    def _named(self, option: str, name: str, kinds: tuple[str, ...]) -> str:
        """Return the topic that the user named, checked; "" if none was named."""
        if not name:
            return ""
        topic = name if name in self.types else f"/{name}"
        if topic not in self.types:
            raise BagError(
                f"{self.path} has no topic {name} (--{option}-topic); it has: {self._listing()}."
            )
        if self.types[topic] not in kinds:
            raise BagError(
                f"{self.path}: {topic} is {self.types[topic]}, --{option}-topic needs"
                f" {' or '.join(kinds)}."
            )
        return topic

    def _only(self, option: str, candidates: list[str], what: str) -> str:
        """Return the one candidate. Raises BagError if there are none or several."""
        if len(candidates) == 1:
            return candidates[0]
        if not candidates:
            raise BagError(
                f"{self.path} has no {what} topic; it has: {self._listing()}. Name one with"
                f" --{option}-topic if it is among them."
            )
        raise BagError(
            f"{self.path} has several {what} topics ({_listed(sorted(candidates))}): choose one"
            f" with --{option}-topic."
        )

    def _listing(self) -> str:
        return _listed([f"{topic} ({kind})" for topic, kind in sorted(self.types.items())])


def _listed(names: list[str]) -> str:
    """Return the first names, and the number of the others."""
    more = len(names) - _LISTED_TOPICS
    shown = [*names[:_LISTED_TOPICS], *([f"and {more} others"] if more > 0 else [])]
    return ", ".join(shown) or "nothing"


def _of_a_camera(topics: list[str]) -> list[str]:
    """Return image topics without those of depth and masks, which their names show.

    Topics without such a word anywhere are preferred; otherwise the first part of the name may have
    one (/depth_camera/color/image_raw), otherwise those that name colour are returned.
    """

    def hints(name: str) -> bool:
        return any(word in name.lower() for word in _OTHER_IMAGES)

    # /camera/image_raw/compressed and its like repeat the images of /camera/image_raw.
    topics = [topic for topic in topics if topic.rpartition("/")[0] not in topics]
    whole = [topic for topic in topics if not hints(topic)]
    if whole:
        return whole
    # /depth_camera/color/image_raw and /depth_camera/depth/image_raw
    parts = {topic: topic.strip("/").split("/") for topic in topics}
    return [topic for topic in topics if not any(hints(part) for part in parts[topic][1:])] or (
        [topic for topic in topics if "color" in topic.lower() or "rgb" in topic.lower()]
    )


def _same_camera(info_topic: str, image_topic: str) -> bool:
    """Return whether the topics belong together: /a/camera_info to /a/image_raw[/compressed]."""
    return image_topic.startswith(namespace(info_topic))


def namespace(topic: str) -> str:
    """Return the namespace of a topic: /robot1/ for /robot1/tf_static."""
    return topic.rpartition("/")[0] + "/"
