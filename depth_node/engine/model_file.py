# SPDX-License-Identifier: Apache-2.0
"""What a file is that stands where a network should be: empty, a web page, a pointer."""

from __future__ import annotations

from pathlib import Path

from depth_node.engine import depth_tools

_HEAD_BYTES = 512


def fault_of(model: Path) -> str:
    """Why a file is certainly no network, with the cure; "" if it may be one.

    A download that failed leaves such files; an ONNX reader takes an empty one for a network
    without nodes, and says of the others only that they cannot be parsed.
    """
    try:
        with model.open("rb") as file:
            head = file.read(_HEAD_BYTES)
    except OSError as error:
        return f"{model} cannot be read ({error.strerror}): check the file and its permissions"
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not text:
        return f"{model} is empty: its download or export was cut off; fetch or export it again"
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return (
            f"{model} is a web page and no network: what was downloaded is the page that shows the"
            f" file, or one that asks to log in; fetch it with `{depth_tools('models fetch')}`, not"
            " through a mirror or proxy that answers so, or take the link of the file itself"
        )
    if text.startswith(b"version https://git-lfs"):
        return (
            f"{model} is a pointer of Git LFS and no network: run `git lfs pull` in its repository,"
            " or download the file itself"
        )
    return ""
