# SPDX-License-Identifier: Apache-2.0
"""Diagnosis of model files: not a network, without their weights, or refused by an ONNX reader.

Readers report only that something failed; the functions here return the cause and the cure in one
sentence. External weights are found by parsing the file's protocol buffer (the fields of
onnx.proto), because robots do not have the onnx package.
"""

from __future__ import annotations

import mmap
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath

from depth_node.engine import depth_tools
from depth_node.sentences import one_line, quoted

_HEAD_BYTES = 512
_MAX_FIELDS = 2_000_000  # of one file; the largest networks have some tens of thousands
EXPORT_OPSETS = "opset 17 to 20"

_FORMATS = (
    (0, b"PK\x03\x04", "a ZIP archive, as PyTorch's checkpoints are,"),
    (0, b"\x80\x02", "a Python pickle, as PyTorch's older checkpoints are,"),
    (4, b"TFL3", "a TensorFlow Lite network"),
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file, as Keras writes,"),
    (8, b'{"', "a file of weights (safetensors)"),
)


def fault_of(model: Path) -> str:
    """Return why a file cannot be a usable network, with the cure; "" if it may be one.

    Failed downloads leave such files. An ONNX reader takes an empty file for a network without
    nodes, and reports for the others only that they cannot be parsed.
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
    for start, mark, what in _FORMATS:
        if head[start : start + len(mark)] == mark:
            return (
                f"{model} is {what} and no ONNX network: name the .onnx file, or export the network"
                f" to ONNX ({EXPORT_OPSETS})"
            )
    return _fault_of_weights(model)


def _fault_of_weights(model: Path) -> str:
    """Return what is wrong with a model's external weights, with the cure; "" if nothing."""
    for name, needed_bytes in external_weights(model).items():
        if not is_beside(name):
            return (
                f"{model} takes weights from {quoted(name)}, outside its own folder, which no"
                " reader allows: put that file beside the model and export it again; if the model"
                " came from somewhere else, do not trust it"
            )
        file = model.parent / name
        if not file.is_file():
            return (
                f"{model} keeps its weights in {one_line(name)}, which is not beside it: fetch or"
                " copy both files into one folder under these names, or export the model into one"
                " file"
            )
        size = file.stat().st_size
        if size < needed_bytes:
            return (
                f"{file} holds {size} bytes of the {needed_bytes} of weights of {model.name}: it"
                " was cut off or belongs to another export; fetch or export both files again"
            )
    return ""


def is_beside(name: str) -> bool:
    """Return whether a file name in a model stays inside the model's folder, on any system."""
    return bool(name) and not any(
        path.is_absolute() or path.drive or ".." in path.parts
        for path in (PurePosixPath(name), PureWindowsPath(name))
    )


def external_weights(model: Path) -> dict[str, int]:
    """Return the files of weights that an ONNX file names, with the least size of each in bytes.

    Empty for a file that contains its weights, and for one that is not ONNX: a reader reports that.
    """
    try:
        with model.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _external_weights(data)
    except (OSError, ValueError, IndexError):
        return {}


# Field numbers in onnx.proto
_MODEL_GRAPH, _GRAPH_INITIALIZER, _TENSOR_EXTERNAL, _ENTRY_KEY, _ENTRY_VALUE = 7, 5, 13, 1, 2


def _external_weights(data: mmap.mmap) -> dict[str, int]:
    budget = [_MAX_FIELDS]
    needed: dict[str, int] = {}
    for graph in _messages(data, (0, len(data)), _MODEL_GRAPH, budget):
        for tensor in _messages(data, graph, _GRAPH_INITIALIZER, budget):
            entries: dict[str, str] = {}
            for entry in _messages(data, tensor, _TENSOR_EXTERNAL, budget):
                parts = [
                    data[slice(*next(_messages(data, entry, number, budget), (0, 0)))].decode()
                    for number in (_ENTRY_KEY, _ENTRY_VALUE)
                ]
                entries[parts[0]] = parts[1]
            if "location" in entries:
                end = int(entries.get("offset", 0)) + int(entries.get("length", 0))
                needed[entries["location"]] = max(needed.get(entries["location"], 0), end)
    return needed


def _messages(
    data: mmap.mmap, span: tuple[int, int], number: int, budget: list[int]
) -> Iterator[tuple[int, int]]:
    """Yield (start, end) of every length-delimited field with this number in a message.

    span: (start, end) of the message. budget: fields that may still be read, counted down in place.
    Raises ValueError or IndexError if the bytes are not a protocol buffer.
    """
    at, end = span
    while at < end:
        budget[0] -= 1
        if budget[0] < 0:
            raise ValueError("more fields than a network has")
        key, at = _varint(data, at)
        kind = key & 7
        if kind == 2:
            length, at = _varint(data, at)
            if at + length > end:
                raise ValueError("a field ends beyond its message")
            if key >> 3 == number:
                yield at, at + length
            at += length
        elif kind == 0:
            _, at = _varint(data, at)
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
        else:
            raise ValueError("no protocol buffer")


def _varint(data: mmap.mmap, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("no protocol buffer")


# --- errors of ONNX readers ----------------------------------------------------------------------

_OPERATOR = (
    r"No Op registered for (?P<op>\w+) with domain_version of (?P<opset>\d+)",
    r"Fatal error: (?P<domain>[\w.]+):(?P<op>\w+)\(-?\d+\) is not a registered",
    r"Op registered for (?P<op>\w+) is deprecated in domain_version of (?P<opset>\d+)",
)


def reader_fault(model: Path, reader: str, error: BaseException) -> str:
    """Return one sentence with cause and cure for an exception of an ONNX reader on a model file.

    reader: its name and version, such as "onnxruntime 1.23.0".
    """
    text = " ".join(str(error).split())
    for pattern in _OPERATOR:
        match = re.search(pattern, text)
        if match is None:
            continue
        groups = match.groupdict()
        operator, opset, domain = groups["op"], groups.get("opset"), groups.get("domain")
        if not domain:
            named = re.search(rf'In Node, \("[^"]*", {operator}, "([^"]+)"', text)
            domain = named.group(1) if named else ""
        if domain:
            return (
                f"{model} uses the operator {operator} of {domain}, which {reader} does not have:"
                " export it with operators of ONNX alone, without plug-ins or custom ones"
            )
        return (
            f"{model} uses the operator {operator}, which is none of ONNX opset {opset} in"
            f" {reader}: export it with operators of ONNX alone and {EXPORT_OPSETS}, or install a"
            " newer version"
        )
    match = re.search(r"Opset (\d+) is under development.*?(?:is till opset (\d+))?\.?$", text)
    if match:
        limit = f" reads up to {match.group(2)}" if match.group(2) else " is older"
        return (
            f"{model} is of ONNX opset {match.group(1)} and {reader}{limit}: export it with"
            f" {EXPORT_OPSETS}, or install a newer version"
        )
    match = re.search(r"Unsupported model IR version: (\d+), max supported IR version: (\d+)", text)
    if match:
        return (
            f"{model} is of ONNX IR version {match.group(1)} and {reader} reads up to"
            f" {match.group(2)}: install a newer version, or save the model with ir_version"
            f" {match.group(2)}"
        )
    match = re.search(r"Could not find an implementation for (\w+)\((\d+)\)", text)
    if match:
        return (
            f"{model} uses the operator {match.group(1)} with a type for which {reader} has none"
            " here: export the network in float32"
        )
    match = re.search(r"Type '(tensor\(\w+\))' of input parameter .* of operator \((\w+)\)", text)
    if match:
        return (
            f"{model} gives its operator {match.group(2)} a {match.group(1)}, which ONNX does not"
            " allow: export the network in float32"
        )
    # ONNX Runtime 1.31 and 1.23
    if "No graph was found" in text or "does not have a graph" in text:
        return f"{model} holds no network: its download or export was cut off; do it again"
    if re.search(r"invalid model|INVALID_GRAPH|ShapeInferenceError|Invalid model", text):
        return (
            f"{model} is no valid ONNX network ({_short(text)}): what wrote it made a mistake;"
            " export it again, with another version of the exporter"
        )
    return (
        f"{model} cannot be read as an ONNX model: it is truncated or of another format; fetch or"
        f" export it again ({reader}: {_short(text)})"
    )


def _short(text: str) -> str:
    """Return the reader's message without its prefixes, at most 200 characters."""
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", text)
    text = re.sub(r"^Load model from .*? failed:\s*", "", text)
    text = re.sub(r"^(This is an invalid model\.|Invalid model\.)\s*", "", text)
    return text if len(text) <= 200 else text[:200] + "…"
