# SPDX-License-Identifier: Apache-2.0
"""Web page that asks, image by image, which of two points is nearer.

    python -m training annotate IMAGES --out labels.csv

Every answer is on the disk before the next question appears; the same command resumes where it
stopped. The points follow from the seed and the image's name: they lie in two different regions of
the image, away from the borders of the regions. Every image gets one question before any image gets
a second one, so that no image is left out if the user stops early.
"""

from __future__ import annotations

import argparse
import functools
import ipaddress
import json
import os
import re
import threading
import webbrowser
from collections import Counter
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from depth_node.regions.segmentation import segment
from training.data.open import DataConfig, open_samples
from training.data.ordinal_labels import (
    SIGNS,
    Pair,
    append_label,
    mended,
    read_labels,
    require_ours,
    write_labels,
)
from training.data.samples import DataError

PAGE = Path(__file__).with_name("annotate.html")
LONGEST_ASKED_PX = 320  # longest side at which the regions that points lie in are found
APART = 0.08  # smallest distance of the two points, as a fraction of the image's diagonal
ROOM_PX = 4.0  # at that size, the smallest distance to its border that a region must offer
LARGEST_ANSWER = 4096  # largest size of a request, bytes
READ_TIMEOUT_S = 20.0  # time after which a silent connection is closed


def propose(image: NDArray[np.uint8], rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Return x1, y1, x2, y2 (px) of two points of an image (H, W, 3), inside two of its regions.

    Points are drawn up to 50 times until they are far enough apart and from the borders of their
    regions; after that the last ones stay. An image of one region gets two points anywhere in it.
    """
    height, width = image.shape[:2]
    shrink = min(1.0, LONGEST_ASKED_PX / max(height, width))
    size = (max(round(width * shrink), 2), max(round(height * shrink), 2))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    labels = segment(np.ascontiguousarray(small, np.uint8))
    area = np.bincount(labels.ravel())[1:].astype(np.float64)
    weight = np.sqrt(area) / np.sqrt(area).sum()
    for _ in range(50):
        if len(area) > 1:
            one, other = rng.choice(len(area), 2, replace=False, p=weight) + 1
            first, room = _inside(labels == one, rng)
            second, more = _inside(labels == other, rng)
        else:
            first, second = rng.uniform(0, size, (2, 2))
            room = more = ROOM_PX
        apart = float(np.hypot(*(first - second)))
        if apart >= APART * np.hypot(*size) and min(room, more) >= ROOM_PX:
            break
    scale = np.array([width / size[0], height / size[1]])
    points = np.floor((np.stack([first, second]) + 0.5) * scale).astype(int)
    (x1, y1), (x2, y2) = np.clip(points, 0, [width - 1, height - 1])
    return int(x1), int(y1), int(x2), int(y2)


def _inside(mask: NDArray[np.bool_], rng: np.random.Generator) -> tuple[NDArray[np.float64], float]:
    """Return a random point (x, y) inside a mask (H, W), and the largest distance to its border.

    The point is at least half that distance (px) away from the border of the mask.
    """
    padded = np.pad(mask.astype(np.uint8), 1)  # the border of the image counts as well
    depth = cv2.distanceTransform(padded, cv2.DIST_L2, 3)[1:-1, 1:-1]
    rows, columns = np.nonzero(depth >= 0.5 * depth.max())
    k = int(rng.integers(len(rows)))
    return np.array([columns[k], rows[k]], np.float64), float(depth.max())


class Session:
    """Questions, answers and the label file of one labelling session.

    Its methods are not thread-safe: a server calls them while it holds `lock`.
    """

    def __init__(self, cfg: DataConfig, out: Path, per_image: int = 5, seed: int = 0) -> None:
        self.samples = open_samples(cfg)
        self.names = [item.name for item in self.samples.items]
        self.out, self.seed = out, seed
        self.lock = threading.Lock()
        # Question q is the (q // images)-th one of image q % images.
        self.total = per_image * len(self.names)
        require_ours(out)
        self.mended = mended(out)
        self.pairs = read_labels(out) if out.exists() else []
        self._answered = {_place(pair) for pair in self.pairs}
        self._skipped: list[int] = []
        # What can be undone, in order: (question, whether it was skipped).
        self._history: list[tuple[int, bool]] = []
        self._question = 0
        self._image = functools.lru_cache(8)(lambda index: self.samples[index].image)
        self._points = functools.lru_cache(None)(self._propose)
        # At first the answered questions are only counted by image: to know which ones they are,
        # every labelled image would have to be read. _forward corrects the set where a question was
        # skipped and a later one answered.
        self._done: set[int] = set()
        count = Counter(pair.image for pair in self.pairs)
        for index, name in enumerate(self.names):
            turns = range(min(count[name], per_image))
            self._done.update(turn * len(self.names) + index for turn in turns)
        self._forward()

    def _propose(self, question: int) -> tuple[int, int, int, int]:
        index, turn = question % len(self.names), question // len(self.names)
        rng = np.random.default_rng([self.seed, turn, *os.fsencode(self.names[index])])
        return propose(self._image(index), rng)

    def _is_answered(self, question: int) -> bool:
        name = self.names[question % len(self.names)]
        return (name, *self._points(question)) in self._answered

    def _forward(self) -> None:
        """Go to the first question that is neither answered nor skipped, else to a skipped one."""
        while True:
            passed = self._done | set(self._skipped)
            question = next((q for q in range(self.total) if q not in passed), -1)
            if question < 0 or not self._is_answered(question):
                break
            # It was answered in an earlier session, in which an earlier question was skipped.
            self._done.add(question)
            same = range(question % len(self.names), question, len(self.names))
            unanswered = [q for q in same if q in self._done and not self._is_answered(q)]
            self._done.difference_update(unanswered[:1])
        if question < 0 and self._skipped:
            question = self._skipped[0]
        self._question = question

    def state(self) -> dict[str, Any]:
        """Return what the page shows, as values for JSON."""
        base = {
            "done": len(self._done),
            "total": self.total,
            "undo": bool(self._history),
            "out": str(self.out),
            "labels": len(self.pairs),
        }
        if self._question < 0:
            return {**base, "finished": True}
        index = self._question % len(self.names)
        x1, y1, x2, y2 = self._points(self._question)
        height, width = self._image(index).shape[:2]
        return {
            **base,
            "finished": False,
            "question": self._question,
            "image": self.names[index],
            "url": f"image/{index}",
            "ahead": f"image/{(index + 1) % len(self.names)}",
            "width": width,
            "height": height,
            "again": self._question in self._skipped,
            "points": [[x1, y1], [x2, y2]],
        }

    def answer(self, question: int, relation: str) -> bool:
        """Store an answer to the current question.

        Returns False and stores nothing if another question is the current one, or for an unknown
        relation.
        """
        if question != self._question or question < 0 or relation not in SIGNS:
            return False
        x1, y1, x2, y2 = self._points(question)
        name = self.names[question % len(self.names)]
        pair = Pair(name, float(x1), float(y1), float(x2), float(y2), relation)
        append_label(self.out, pair)
        self.pairs.append(pair)
        self._answered.add(_place(pair))
        self._done.add(question)
        if question in self._skipped:
            self._skipped.remove(question)
        self._history.append((question, False))
        self._forward()
        return True

    def skip(self, question: int) -> bool:
        """Defer the current question until all others are answered; False for another question.

        After a restart it is asked in its normal order again.
        """
        if question != self._question or question < 0:
            return False
        if question in self._skipped:
            self._skipped.remove(question)
        self._skipped.append(question)
        self._history.append((question, True))
        self._forward()
        return True

    def undo(self) -> bool:
        """Undo the last answer or skip of this session and ask it again; False without one."""
        if not self._history:
            return False
        question, skipped = self._history.pop()
        if skipped:
            if question in self._skipped:
                self._skipped.remove(question)
        else:
            asked_pair = (self.names[question % len(self.names)], *self._points(question))
            self.pairs = [pair for pair in self.pairs if _place(pair) != asked_pair]
            write_labels(self.out, self.pairs)
            self._answered.discard(asked_pair)
            self._done.discard(question)
        self._question = question
        return True

    def image(self, index: int) -> bytes:
        """Return an image as JPEG, at the size in which the labels' pixels are counted."""
        image = self._image(index)
        done, content = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 93])
        assert done
        return content.tobytes()


def _place(pair: Pair) -> tuple[str, int, int, int, int]:
    return (pair.image, round(pair.x1), round(pair.y1), round(pair.x2), round(pair.y2))


class _Handler(BaseHTTPRequestHandler):
    session: Session
    hosts: frozenset[str]
    anywhere: bool
    timeout = READ_TIMEOUT_S

    def _is_local(self) -> bool:
        """Return whether the request's Host is this server; send 400 or 403 if it is not.

        A page of another site whose name resolves to this machine (DNS rebinding) must neither read
        nor answer.
        """
        names = self.headers.get_all("Host") or []
        if len(names) != 1 or not names[0].isascii():
            self._refuse(HTTPStatus.BAD_REQUEST, "The request must have one Host.")
            return False
        name = names[0].strip().lower()
        host = name.rpartition(":")[0] if re.search(r":\d*$", name) else name
        if host not in self.hosts and not _is_address(host, self.anywhere):
            self._refuse(
                HTTPStatus.FORBIDDEN, f"This page is served as {sorted(self.hosts)[0]} only."
            )
            return False
        return True

    def _refuse(self, status: HTTPStatus, sentence: str) -> None:
        self.close_connection = True  # the rest of the request is not read
        self._fail(status, sentence)

    def do_GET(self) -> None:
        if not self._is_local():
            return None
        session = self.session
        if self.path == "/":
            return self._send(PAGE.read_bytes(), "text/html; charset=utf-8")
        if self.path == "/state":
            return self._json(lambda: True)
        number = self.path.removeprefix("/image/")
        if self.path == "/favicon.ico":
            return self._send(b"", "image/x-icon", "max-age=86400", HTTPStatus.NO_CONTENT)
        if number != self.path and _is_count(number) and int(number) < len(session.names):
            try:
                with session.lock:
                    content = session.image(int(number))
            except DataError as error:
                return self._fail(HTTPStatus.INTERNAL_SERVER_ERROR, str(error))
            return self._send(content, "image/jpeg", "max-age=3600")
        return self._fail(HTTPStatus.NOT_FOUND, "There is no such page.")

    def do_POST(self) -> None:
        if not self._is_local():
            return None
        size = self.headers.get("Content-Length", "")
        # Pages of other sites in the same browser cannot send this type: the browser asks this
        # server first (CORS), which does not allow it.
        if self.headers.get("Content-Type") != "application/json":
            return self._refuse(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "Send application/json.")
        if not _is_count(size) or int(size) > LARGEST_ANSWER:
            return self._refuse(HTTPStatus.BAD_REQUEST, "The request has no or too large a size.")
        try:
            request = json.loads(self.rfile.read(int(size)) or b"{}")
            question = int(request.get("question", -1))
            relation = str(request.get("relation", ""))
        except TimeoutError:
            return self._refuse(HTTPStatus.REQUEST_TIMEOUT, "The request did not come to its end.")
        except (ValueError, AttributeError, TypeError, OverflowError, RecursionError):
            return self._refuse(HTTPStatus.BAD_REQUEST, "The request is no JSON object.")
        session = self.session
        if self.path == "/answer":
            return self._json(lambda: session.answer(question, relation))
        if self.path == "/skip":
            return self._json(lambda: session.skip(question))
        if self.path == "/undo":
            return self._json(session.undo)
        return self._fail(HTTPStatus.NOT_FOUND, "There is no such page.")

    def _json(self, act: Any) -> None:
        """Call `act` and send the state afterwards, with status 409 if `act` returned False."""
        try:
            with self.session.lock:
                status = HTTPStatus.OK if act() else HTTPStatus.CONFLICT
                state = self.session.state()
        except (DataError, OSError) as error:  # an unreadable image, a full disk
            return self._fail(HTTPStatus.INTERNAL_SERVER_ERROR, str(error))
        return self._send(json.dumps(state).encode(), "application/json", status=status)

    def _fail(self, status: HTTPStatus, sentence: str) -> None:
        self._send(json.dumps({"error": sentence}).encode(), "application/json", status=status)

    def _send(
        self,
        content: bytes,
        kind: str,
        cache: str = "no-store",
        status: HTTPStatus = HTTPStatus.OK,
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", cache)
        self.end_headers()
        if self.command != "HEAD" and status != HTTPStatus.NO_CONTENT:
            self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing: the terminal is for the user."""


def _is_count(text: str) -> bool:
    """Return whether a text is 1 to 9 ASCII digits: int() accepts more than HTTP allows."""
    return text.isascii() and text.isdigit() and len(text) <= 9


def _is_address(host: str, anywhere: bool) -> bool:
    """Return whether a host is an IP address: a loopback one, or with `anywhere` any.

    An address, unlike a name, cannot be pointed at this machine by another site's DNS server.
    """
    try:
        address = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    return anywhere or address.is_loopback


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print nothing if a browser disconnects or sends something other than HTTP."""


def serve(session: Session, host: str = "127.0.0.1", port: int = 0) -> ThreadingHTTPServer:
    """Return a server of the page that does not run yet.

    Port 0 takes any free port. Raises DataError if the address cannot be used.
    """
    hosts = frozenset({host.lower(), "localhost"} - {""})
    anywhere = host != "localhost" and not _is_address(host, anywhere=False)
    content = {"session": session, "hosts": hosts, "anywhere": anywhere}
    handler = type("Handler", (_Handler,), content)
    try:
        return _Server((host, port), handler)
    except OSError as error:
        raise DataError(
            f"The page cannot be served on {host}:{port} ({error.strerror}); choose another --port."
        ) from error


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `python -m training annotate`."""
    parser.add_argument("folder", type=Path, help="folder of images, or of RGB-D frames")
    parser.add_argument("--out", required=True, type=Path, help="label file, .csv or .json")
    parser.add_argument("--kind", default="images", help="layout of the folder: images or frames")
    parser.add_argument("--per-image", type=int, default=5, help="questions per image")
    parser.add_argument("--seed", type=int, default=0, help="seed of the points")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to serve on (default: this machine)"
    )
    parser.add_argument("--port", type=int, default=8642, help="port; 0: any free one")
    parser.add_argument(
        "--no-browser", action="store_true", help="print the address, open no browser"
    )


def command(args: argparse.Namespace, console: Console) -> None:
    """Serve the page until Ctrl-C. Raises DataError if images, labels or address cannot be used."""
    if args.per_image < 1:
        raise DataError("--per-image must be at least 1.")
    data = DataConfig(kind=args.kind, folder=str(args.folder))
    session = Session(data, args.out, args.per_image, args.seed)
    if session.mended:
        console.print(f"The last line of {args.out} was cut off and is gone; it is asked again.")
    server = serve(session, args.host, args.port)
    address = f"http://{args.host}:{server.server_address[1]}/"
    console.print(f"{len(session.pairs)} labels so far; {address} asks on. Ctrl-C ends it.")
    if not args.no_browser:
        webbrowser.open(address)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        console.print(f"\n{len(session.pairs)} labels in {args.out}.")
        if session.pairs:
            console.print(
                f"Next: python -m training labels split {args.out} --out-train train.csv --out-held"
                " held.csv"
            )
    finally:
        server.server_close()
