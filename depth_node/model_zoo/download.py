# SPDX-License-Identifier: Apache-2.0
"""The body of one file over HTTP: continued after a break, every byte counted after unpacking."""

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
_RECEIVED = 1 << 13  # bytes taken from a connection at once, where it must be said
_MAX_BYTES = 16 * 10**9  # of a file whose size nobody announces
_KEPT_FREE = 500 * 10**6  # on the disk, where nobody announces how much will come
_RETRIES = 5  # in a row without a new byte
_TIMEOUT_S = 30.0  # without a new byte


class Download:
    """The body of one file, received into a file and never beyond what was announced.

    huggingface_hub's own download writes whatever comes: more than was announced, and what a few
    kB unpack to. Here every byte is counted after unpacking.
    """

    def __init__(
        self, hub: Any, url: str, headers: dict[str, str], total: int | None, file: IO[bytes],
        target: Path,
    ) -> None:  # fmt: skip
        self._hub, self._url, self._total = hub, url, total
        # Packed contents could not be continued in the middle.
        self._headers = {**headers, "accept-encoding": "identity"}
        self._file, self._target = file, target
        self._received = file.seek(0, os.SEEK_END)
        self._packed = False

    def run(self, report: Callable[[int], None]) -> None:
        """Receive the rest. Raises FetchError for what must not be kept, or what HTTP raises."""
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
            except Exception as error:  # of httpx or requests, whichever huggingface_hub uses
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
        """One connection: take from it until it ends."""
        headers = dict(self._headers)
        if self._received:
            headers["range"] = f"bytes={self._received}-"
        with _opened(self._hub, self._url, headers) as (response, blocks):
            self._hub.utils.hf_raise_for_status(response)
            if response.status_code != 206:  # from the start, whatever was asked for
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
    """A response of huggingface_hub's HTTP client and its body as it is sent, still packed."""
    client = hub.utils.get_session()
    if hasattr(client, "stream"):  # httpx, from huggingface_hub 1.0 on
        with client.stream(
            "GET", url, headers=headers, timeout=_TIMEOUT_S, follow_redirects=True
        ) as response:
            yield response, response.iter_raw()  # as it comes, so that nothing waits for more
        return
    with client.get(url, headers=headers, timeout=_TIMEOUT_S, stream=True) as response:
        yield response, response.raw.stream(_RECEIVED, decode_content=False)


def _unpacked(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """The blocks of a gzip or zlib stream unpacked, never more than BLOCK bytes at once."""
    unpack = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)  # told by its head
    for block in blocks:
        rest = block
        while rest and not unpack.eof:
            yield unpack.decompress(rest, BLOCK)
            rest = unpack.unconsumed_tail


def check_disk_space(target: Path, needed: int) -> None:
    """Raise FetchError where so many more bytes have no room beside `target`."""
    free = shutil.disk_usage(target.parent).free
    if needed > free:
        raise FetchError(
            f"{target.name} needs {needed / 1e6:.0f} MB more, and {target.parent} has only"
            f" {free / 1e6:.0f} MB free: make room, or set XDG_DATA_HOME to another disk"
        )
