# SPDX-License-Identifier: Apache-2.0
"""The files of a rosbag2, MCAP and SQLite3: topics and the bytes of their messages, in the order
of recording.

Nothing is believed: what a file says of its own sizes is held against its real size and against
ceilings, what is compressed is decompressed in pieces up to what was announced, checksums are
compared. A part that is damaged is left out and told about (`damage`), the others are read. What
a message means is not known here.
"""

from depth_node.recordings.bag_files.bag import BagFiles
from depth_node.recordings.bag_files.damage import BagError, RawMessage

__all__ = ["BagError", "BagFiles", "RawMessage"]
