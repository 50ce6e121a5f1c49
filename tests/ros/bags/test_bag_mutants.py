# SPDX-License-Identifier: Apache-2.0
"""Damaged bags and decompression bombs: each ends in a sentence or in frames, in little memory."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rosbags", reason="rosbags is not installed")
pytest.importorskip("sensor_msgs", reason="the ROS message packages are not installed")

from tests.helpers.mutants import in_a_child
from tests.helpers.recordings import BagWriter

FORMS = ("mcap", "mcap-zstd", "mcap-file", "db3", "db3-message", "db3-file")


@pytest.mark.parametrize("form", FORMS)
def test_mutants(form: str, tmp_path: Path) -> None:
    got = in_a_child(form, 300, 1, tmp_path)
    assert got["answers"] + got["sentences"] == 300 and got["sentences"] > 50
    assert got["answers"] > 5
    assert got["peak_bytes"] < 400e6


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_thousands_of_mutants(form: str, tmp_path: Path) -> None:
    got = in_a_child(form, 3000, 2, tmp_path, timeout_s=600)
    assert got["answers"] + got["sentences"] == 3000


# --- bombs: 3 GB in a few hundred kilobytes -------------------------------------------------

BOMB = 3 << 30


@pytest.fixture(scope="module")
def zeros() -> dict[str, bytes]:
    """Return three gigabytes of zeros by codec; zstd with and without the size in its header."""
    from lz4.frame import LZ4FrameCompressor
    from rosbags.rosbag2.reader import zstd

    piece = bytes(1 << 22)
    packed = {}
    for name, compressor in (
        ("zstd", zstd.ZstdCompressor()),
        ("zstd-sized", zstd.ZstdCompressor()),
    ):
        if name == "zstd-sized":
            compressor.set_pledged_input_size(BOMB)
        parts = [compressor.compress(piece) for _ in range(BOMB // len(piece))]
        packed[name] = b"".join([*parts, compressor.flush()])
    lz4 = LZ4FrameCompressor()
    out = io.BytesIO()
    out.write(lz4.begin())
    for _ in range(BOMB // len(piece)):
        out.write(lz4.compress(piece))
    out.write(lz4.flush())
    return {**packed, "lz4": out.getvalue()}


def text(value: str) -> bytes:
    return struct.pack("<I", len(value)) + value.encode()


def record(op: int, body: bytes) -> bytes:
    return struct.pack("<BQ", op, len(body)) + body


def chunk(codec: str, announced: int, data: bytes) -> bytes:
    head = struct.pack("<QQQI", 0, 1, announced, 0) + text(codec) + struct.pack("<Q", len(data))
    return record(0x06, head + data)


@pytest.mark.parametrize("codec", ["zstd", "zstd-sized", "lz4"])
@pytest.mark.parametrize("announced", [1000, BOMB, 1 << 62])
def test_a_chunk_that_explodes_is_left_out(
    codec: str, announced: int, zeros: dict[str, bytes], tmp_path: Path
) -> None:
    path = tmp_path / "bag"
    writer = BagWriter(path, mcap=True)
    for time_s in (1.0, 1.1):
        writer.info(time_s)
        writer.cloud(time_s, frame="camera")
        writer.image(time_s)
    writer.close()
    (file,) = path.glob("*.mcap")
    whole = file.read_bytes()
    head = 8 + 9 + struct.unpack_from("<Q", whole, 9)[0]  # the magic and the header
    bomb = chunk(codec.partition("-")[0], announced, zeros[codec])
    file.write_bytes(whole[:head] + bomb + whole[head:])
    got = in_a_child("read", path)
    assert got["frames"] == 2
    (sentence,) = [s for s in got["sentences"] if "chunks" in s]
    assert "more than" in sentence
    assert got["cpu_s"] < 10


@pytest.mark.parametrize("codec", ["zstd", "zstd-sized"])
def test_a_message_that_explodes_is_left_out(
    codec: str, zeros: dict[str, bytes], tmp_path: Path
) -> None:
    import sqlite3

    path = tmp_path / "bag"
    writer = BagWriter(path)
    for time_s in (1.0, 1.1, 1.2):
        writer.info(time_s)
        writer.cloud(time_s, frame="camera")
        writer.image(time_s)
    writer.close()
    (file,) = path.glob("*.db3")
    with sqlite3.connect(file) as base:
        base.execute("UPDATE messages SET data = ? WHERE id = 6", (zeros[codec],))
    base.close()
    got = in_a_child("read", path)
    assert got["frames"] == 2
    (sentence,) = [s for s in got["sentences"] if "more than" in s]
    assert "/camera/image_raw" in sentence


@pytest.mark.parametrize("codec", ["zstd", "zstd-sized"])
@pytest.mark.parametrize("suffix", [".mcap", ".db3"])
def test_a_file_that_explodes_is_refused(
    codec: str, suffix: str, zeros: dict[str, bytes], tmp_path: Path
) -> None:
    from rosbags.rosbag2.reader import zstd

    path = tmp_path / f"bag{suffix}.zstd"
    path.write_bytes(zeros[codec])
    got = in_a_child("read", path)
    assert got["frames"] == 0 and "cannot be opened" in got["sentences"][-1]
    # It begins with valid data and then continues without end.
    head = {".mcap": b"\x89MCAP0\r\n", ".db3": b"SQLite format 3\x00"}[suffix]
    path.write_bytes(zstd.compress(head) + zeros["zstd"])
    got = in_a_child("read", path)
    assert got["frames"] == 0 and "cannot be opened" in got["sentences"][-1]


@pytest.mark.parametrize("sized", [True, False], ids=["announced", "not announced"])
def test_a_compressed_file_needs_room(
    sized: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is whole: what is missing is room on the disk, and nothing is unpacked at once."""
    import shutil

    from rosbags.rosbag2.reader import zstd

    from depth_node.recordings.bag_files import BagError, BagFiles, bag

    content = b"\x89MCAP0\r\n" + bytes(30 << 20)
    compressor = zstd.ZstdCompressor()
    if sized:
        compressor.set_pledged_input_size(len(content))
    path = tmp_path / "bag.mcap.zstd"
    path.write_bytes(compressor.compress(content) + compressor.flush())
    for free in (bag.ROOM_LEFT - 1000, bag.ROOM_LEFT + (10 << 20)):
        monkeypatch.setattr(
            shutil, "disk_usage", lambda folder, free=free: type("Usage", (), {"free": free})
        )
        with (
            pytest.raises(BagError, match=r"needs 0\.0\d GB or more in .*TMPDIR"),
            BagFiles(path, ()),
        ):
            pass


def png(width: int, height: int, content: bytes = b"") -> bytes:
    def part(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + part(b"IHDR", head) + part(
        b"IDAT", zlib.compress(content)
    ) + part(b"IEND", b"")  # fmt: skip


def test_a_monstrous_compressed_image_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "bag"
    writer = BagWriter(path)
    kind = "sensor_msgs/msg/CompressedImage"
    writer.info(1.0)
    writer.cloud(1.0, frame="camera")
    writer.compressed(1.0)
    data = np.frombuffer(png(32000, 32000), np.uint8)
    message = writer.types[kind](header=writer.header(1.1, "camera"), format="png", data=data)
    writer.write("/camera/image_raw/compressed", kind, 1.1, message)
    writer.close()
    got = in_a_child("read", path)
    assert got["frames"] == 1
    assert any("32000x32000" in sentence for sentence in got["sentences"])
