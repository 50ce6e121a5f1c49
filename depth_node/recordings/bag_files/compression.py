# SPDX-License-Identifier: Apache-2.0
"""Decompression of a bag's data, in pieces and up to a limit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from depth_node.recordings.bag_files.damage import BagError, DamagedError
from depth_node.recordings.files import reason_of

ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_PIECE = 1 << 20
_MOST_ZSTD_FRAMES = 100_000


def _zstd() -> Any:
    try:
        from compression import zstd  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        try:
            from backports import zstd  # type: ignore[no-redef,unused-ignore]
        except ImportError:
            raise BagError("Reading a compressed bag needs zstd: pip install rosbags.") from None
    return zstd


def announced_size(head: bytes) -> int | None:
    """Return the size that the first zstd frame announces, None if it announces none.

    Raises DamagedError for other data, BagError without a zstd library.
    """
    try:
        size = _zstd().get_frame_info(head).decompressed_size
    except BagError:
        raise
    except Exception as error:
        raise DamagedError(f"zstd: {reason_of(error)}") from None
    return None if size is None else int(size)


def zstd_pieces(read: Callable[[int], bytes], ceiling: int) -> Iterator[bytes]:
    """Yield decompressed data in pieces of at most a megabyte.

    Raises DamagedError beyond the ceiling, at damaged data and at a cut end, after all data before
    it has been yielded.
    """
    zstd = _zstd()
    decoder, waiting, total, frames = None, b"", 0, 0
    while True:
        compressed = waiting or read(1 << 16)
        waiting = b""
        if not compressed:
            if decoder is None or not decoder.eof:
                raise DamagedError("its zstd data is cut off")
            return
        if decoder is None or decoder.eof:
            decoder, frames = zstd.ZstdDecompressor(), frames + 1
            if frames > _MOST_ZSTD_FRAMES:
                raise DamagedError(f"more than {_MOST_ZSTD_FRAMES} zstd frames")
        while True:
            piece = _next_piece(decoder, compressed, "zstd", total, ceiling)
            total += len(piece)
            if piece:
                yield piece
            if decoder.eof or decoder.needs_input:
                break
            compressed = b""
        if decoder.eof:
            waiting = decoder.unused_data


def _next_piece(decoder: Any, compressed: bytes, kind: str, total: int, ceiling: int) -> bytes:
    """Return the next decompressed piece, after `total` bytes that were decompressed before."""
    try:
        piece: bytes = decoder.decompress(compressed, min(_PIECE, ceiling - total + 1))
    except (Exception, MemoryError) as error:
        raise DamagedError(f"its {kind} data is damaged ({reason_of(error)})") from None
    if total + len(piece) > ceiling:
        raise DamagedError(f"its {kind} data becomes more than {ceiling} bytes")
    return piece


def _reader(data: bytes | memoryview) -> Callable[[int], bytes]:
    view, place = memoryview(data), 0

    def read(count: int) -> bytes:
        nonlocal place
        part = view[place : place + count]
        place += len(part)
        return bytes(part)

    return read


def zstd_pieces_of(data: bytes, ceiling: int) -> Iterator[bytes]:
    """Yield as zstd_pieces(); raises DamagedError at once if too large a size is announced."""
    announced = announced_size(data[:64])
    if announced is not None and announced > ceiling:
        raise DamagedError(f"its zstd data announces {announced} bytes, more than {ceiling}")
    yield from zstd_pieces(_reader(data), ceiling)


def _lz4_pieces_of(data: bytes, ceiling: int) -> Iterator[bytes]:
    try:
        from lz4.frame import LZ4FrameDecompressor  # type: ignore[import-untyped,unused-ignore]
    except ImportError:
        raise BagError("Reading this bag needs lz4: pip install lz4.") from None
    decoder, compressed, total = LZ4FrameDecompressor(), data, 0
    while not decoder.eof:
        piece = _next_piece(decoder, compressed, "lz4", total, ceiling)
        total += len(piece)
        if piece:
            yield piece
        elif not decoder.eof:
            raise DamagedError("its lz4 data is cut off")
        compressed = b""


def _plain_pieces(data: bytes, ceiling: int) -> Iterator[bytes]:
    yield data


CODECS = {"": _plain_pieces, "zstd": zstd_pieces_of, "lz4": _lz4_pieces_of}
