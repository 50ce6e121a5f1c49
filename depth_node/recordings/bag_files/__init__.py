# SPDX-License-Identifier: Apache-2.0
"""Readers of the files of a rosbag2, MCAP and SQLite3: topics and the bytes of their messages, in
the order of recording.

The files are untrusted: sizes that a file announces are compared with its real size and with
limits, compressed data is decompressed in pieces up to the announced size, and checksums are
verified. A damaged part is left out and reported (`damage`), the others are read. These modules do
not interpret the messages.
"""

from depth_node.recordings.bag_files.bag import BagFiles
from depth_node.recordings.bag_files.damage import BagError, RawMessage

__all__ = ["BagError", "BagFiles", "RawMessage"]
