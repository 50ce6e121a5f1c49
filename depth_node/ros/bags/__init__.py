# SPDX-License-Identifier: Apache-2.0
"""A rosbag2 as frames, and results as a rosbag2 (writer), without a running ROS.

The files are read by depth_node.recordings.bag_files, their CDR is taken apart by `rosbags`; what
a message means is known to depth_node.ros.messages alone, so the ROS message packages must be
importable.
"""

from depth_node.recordings.bag_files import BagError
from depth_node.ros.bags.reader import Bag, BagFrames
from depth_node.ros.bags.topics import BagTopics

__all__ = ["Bag", "BagError", "BagFrames", "BagTopics"]
