# SPDX-License-Identifier: Apache-2.0
"""Download of one file over HTTP: continues after a break and limits the number of bytes."""

from __future__ import annotations

import os
import shutil
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from depth_node.model_zoo.registry import FetchError
from depth_node.sentences import quoted

BLOCK = 1 << 20
_RECEIVED = 1 << 13  # bytes read from a connection at once, for clients that need a number
_MAX_BYTES = 16 * 10**9  # largest file if the server does not announce its size
_KEPT_FREE = 500 * 10**6  # bytes of the disk that stay free if the size is not announced
_RETRIES = 5  # consecutive attempts without a new byte
_TIMEOUT_S = 30.0  # time without a new byte


class Download:
    """Download of one body into a file, never more bytes than were announced.

    huggingface_hub's own download writes everything that it receives, even more than was announced,
    and decompresses a few kB to any size. Here every byte is counted after decompression.
    """

    def __init__(
        self, hub: Any, url: str, headers: dict[str, str], total: int | None, file: IO[bytes],
        target: Path,
    ) -> None:  # fmt: skip
        self._hub, self._url, self._total = hub, url, total
        # A compressed body could not be continued in the middle.
        self._headers = {**headers, "accept-encoding": "identity"}
        self._file, self._target = file, target
        self._received = file.seek(0, os.SEEK_END)
        self._packed = False

    def run(self, report: Callable[[int], None]) -> None:
        """Receive the rest of the file.

        report: called with the number of bytes received. Raises FetchError if the file must not be
        kept, and exceptions of the HTTP library and OSError for other failures.
        """
        report(self._received)
        failures = 0
        while self._total is None or self._received < self._total:
            before = self._received
            try:
                self._attempt(report)
                if self._total is None or self._received == self._total:
                    return
                raise ConnectionError(f"only {self._received} of {self._total} bytes came")
            except FetchError:
                raise
            except Exception as error:  # of httpx or requests, depending on huggingface_hub
                refused = isinstance(error, self._hub.errors.HfHubHTTPError)
                disk = (
                    isinstance(error, OSError)
                    and error.errno
                    and not isinstance(error, (ConnectionError, TimeoutError))
                )
                failures = 0 if self._received > before else failures + 1
                if refused or disk or self._packed or failures >= _RETRIES:
                    raise
            time.sleep(1.0)

    def _attempt(self, report: Callable[[int], None]) -> None:
        """Open one connection and receive until it ends."""
        headers = dict(self._headers)
        if self._received:
            headers["range"] = f"bytes={self._received}-"
        with _opened(self._hub, self._url, headers) as (response, blocks):
            self._hub.utils.hf_raise_for_status(response)
            if response.status_code != 206:  # the server ignored the range: the body is the whole
                self._received = self._file.seek(0)
                self._file.truncate()
            encoding = str(response.headers.get("content-encoding", "")).strip().lower()
            self._packed = encoding not in ("", "identity")
            if encoding in ("gzip", "x-gzip", "deflate") and response.status_code != 206:
                blocks = _unpacked(blocks)
            elif self._packed:
                raise FetchError(
                    f"{self._target.name} is sent packed ({quoted(encoding)}), which was not asked"
                    " for, and was not kept: look at the proxy between here and the hub"
                )
            for block in blocks:
                self._write(block)
                report(self._received)

    def _write(self, block: bytes) -> None:
        limit = _MAX_BYTES if self._total is None else self._total
        if self._received + len(block) > limit:
            raise FetchError(
                f"more comes for {self._target.name} than the {limit} bytes that"
                f" {'a network can have' if self._total is None else 'were announced'}, so it was"
                " deleted: fetch it again, and if it stays so, do not trust the place it comes from"
            )
        if self._total is None:
            check_disk_space(self._target, len(block) + _KEPT_FREE)
        view = memoryview(block)
        while view:
            written = self._file.write(view)
            self._received += written
            view = view[written:]


@contextmanager
def _opened(hub: Any, url: str, headers: dict[str, str]) -> Iterator[tuple[Any, Iterator[bytes]]]:
    """Yield a response of huggingface_hub's HTTP client, and its body without decompression."""
    client = hub.utils.get_session()
    if hasattr(client, "stream"):  # httpx, from huggingface_hub 1.0 on
        with client.stream(
            "GET", url, headers=headers, timeout=_TIMEOUT_S, follow_redirects=True
        ) as response:
            yield response, response.iter_raw()  # without a block size, so no byte waits for more
        return
    with client.get(url, headers=headers, timeout=_TIMEOUT_S, stream=True) as response:
        yield response, response.raw.stream(_RECEIVED, decode_content=False)


def _unpacked(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """Decompress the blocks of a gzip or zlib stream; yield at most BLOCK bytes at once.

    Raises ConnectionError if the stream is incomplete.
    """
    unpack = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)  # 32: gzip or zlib, by the header
    for block in blocks:
        rest = block
        while rest and not unpack.eof:
            yield unpack.decompress(rest, BLOCK)
            rest = unpack.unconsumed_tail
    if not unpack.eof:
        raise ConnectionError("the packed contents stop before their end")


def check_disk_space(target: Path, needed: int) -> None:
    """Raise FetchError if the disk of `target` has no room for `needed` more bytes."""
    free = shutil.disk_usage(target.parent).free
    if needed > free:
        raise FetchError(
            f"{target.name} needs {needed / 1e6:.0f} MB more, and {target.parent} has only"
            f" {free / 1e6:.0f} MB free: make room, or set XDG_DATA_HOME to another disk"
        )
