# SPDX-License-Identifier: Apache-2.0
"""Reading a rosbag2 as frames and writing results as a rosbag2, without a running ROS.

depth_node.recordings.bag_files reads the files, `rosbags` decodes their CDR, and
depth_node.ros.messages interprets the messages, so the ROS message packages must be importable.
"""

from depth_node.recordings.bag_files import BagError
from depth_node.ros.bags.reader import Bag, BagFrames
from depth_node.ros.bags.topics import BagTopics

__all__ = ["Bag", "BagError", "BagFrames", "BagTopics"]
