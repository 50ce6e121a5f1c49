# SPDX-License-Identifier: Apache-2.0
"""The annotation page: questions, the server over HTTP, and the page in a browser."""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from depth_node.regions.segmentation import segment
from depth_node.simulation.renderer import Scene
from depth_node.simulation.viewpoints import random_view
from tests.helpers import REPO
from training.data.open import DataConfig
from training.data.ordinal_labels import Pair, append_label, read_labels, write_labels
from training.data.samples import DataError
from training.tools import annotate
from training.tools.annotate import Session, propose, serve

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


def image(k: int) -> np.ndarray:
    """Return an image of four areas of different colours."""
    image = np.zeros((90, 120, 3), np.uint8)
    image[:45, : 50 + 10 * k] = (200, 30, 30)
    image[:45, 50 + 10 * k :] = (30, 200, 30)
    image[45:, :40] = (30, 30, 200)
    image[45:, 40:] = (220, 220, 220)
    return image


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder of three images, one of them in a subfolder."""
    where = tmp_path / "images"
    (where / "more").mkdir(parents=True)
    for k, name in enumerate(("a.png", "b.png", "more/ü.png")):
        done, content = cv2.imencode(".png", image(k)[..., ::-1])
        assert done
        (where / name).write_bytes(content.tobytes())
    return where


def opened(folder: Path, **more: Any) -> Session:
    return Session(DataConfig(folder=str(folder)), folder.parent / "labels.csv", **more)


def locations(session: Session) -> list[tuple[Any, ...]]:
    return [(p.image, p.x1, p.y1, p.x2, p.y2) for p in session.pairs]


@pytest.mark.parametrize("seed", range(5))
def test_points_lie_inside_two_different_regions(seed: int) -> None:
    scene = Scene.random(np.random.default_rng(seed))
    image = scene.render(*random_view(scene, np.random.default_rng(seed), 320, 240)).image
    labels = segment(image)
    for scale in (1, 2):
        large = np.ascontiguousarray(image.repeat(scale, 0).repeat(scale, 1))
        points = propose(large, np.random.default_rng(seed))
        x1, y1, x2, y2 = (value // scale for value in points)
        assert labels[y1, x1] != labels[y2, x2]
        assert np.hypot(x1 - x2, y1 - y2) > 0.07 * 400
        for x, y in ((x1, y1), (x2, y2)):
            around = labels[max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2]
            assert len(np.unique(around)) == 1, "away from the borders"


def test_a_picture_of_one_colour_is_asked_too() -> None:
    x1, y1, x2, y2 = propose(np.full((40, 60, 3), 9, np.uint8), np.random.default_rng(0))
    assert (x1, y1) != (x2, y2)
    assert min(x1, x2) >= 0 and max(x1, x2) < 60 and min(y1, y2) >= 0 and max(y1, y2) < 40


def test_every_picture_is_asked_once_before_any_is_asked_twice(folder: Path) -> None:
    session = opened(folder, per_image=2)
    names = []
    while not session.state()["finished"]:
        state = session.state()
        names.append(state["image"])
        assert session.answer(state["question"], "closer")
    assert names == ["a.png", "b.png", "more/ü.png"] * 2
    assert len(set(locations(session))) == 6
    assert read_labels(session.out) == session.pairs


def test_it_goes_on_where_it_stopped_also_after_skips_and_a_cut_line(folder: Path) -> None:
    first = opened(folder, per_image=3)
    order = []
    for turn in range(7):
        question = first.state()["question"]
        if turn == 1:
            assert first.skip(question)
        else:
            assert first.answer(question, "farther")
            order.append(question)
    before = first.out.read_bytes()
    first.out.write_bytes(before + b"a.png,1,2")
    again = opened(folder, per_image=3)
    assert again.mended
    assert first.out.read_bytes() == before
    assert again.state()["done"] == len(order) == 6
    while not again.state()["finished"]:
        assert again.answer(again.state()["question"], "equal")
    assert len(set(locations(again))) == len(locations(again)) == 9
    assert opened(folder, per_image=3).state()["finished"]


def test_labels_of_other_hands_stay(folder: Path) -> None:
    other = Pair("b.png", 1, 2, 3, 4, "equal")
    append_label(folder.parent / "labels.csv", other)
    session = opened(folder)
    session.answer(session.state()["question"], "closer")
    assert session.undo()
    assert read_labels(session.out) == [other]


def test_undo_takes_back_answers_and_skips_one_by_one(folder: Path) -> None:
    session = opened(folder)
    assert not session.undo()
    first = session.state()["question"]
    session.answer(first, "closer")
    second = session.state()["question"]
    session.skip(second)
    assert session.state()["question"] not in (first, second)
    assert session.undo()
    assert session.state()["question"] == second
    assert session.undo()
    assert session.state()["question"] == first
    assert read_labels(session.out) == []
    session.answer(first, "equal")
    assert [p.relation for p in read_labels(session.out)] == ["equal"]
    assert session.state()["question"] == second


def test_skipped_ones_come_last(folder: Path) -> None:
    session = opened(folder, per_image=1)
    skipped = session.state()["question"]
    session.skip(skipped)
    for _ in range(2):
        assert session.state()["question"] != skipped
        session.answer(session.state()["question"], "closer")
    state = session.state()
    assert state["question"] == skipped and state["again"] and not state["finished"]
    session.answer(skipped, "farther")
    assert session.state()["finished"]


def test_only_the_current_question_is_answered(folder: Path) -> None:
    session = opened(folder)
    question = session.state()["question"]
    assert session.answer(question, "closer")
    assert not session.answer(question, "closer"), "a key pressed twice"
    assert not session.answer(session.state()["question"], "clooser")
    assert not session.skip(question)
    assert len(session.pairs) == 1


@contextmanager
def served(session: Session) -> Iterator[str]:
    server = serve(session)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def ask(url: str, body: Any = None, kind: str = "application/json") -> tuple[int, Any]:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": kind})
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read())


def test_over_http(folder: Path) -> None:
    session = opened(folder)
    with served(session) as url:
        with urllib.request.urlopen(url) as page:
            assert "nearer" in page.read().decode()
        state = ask(url + "state")[1]
        with urllib.request.urlopen(url + state["url"]) as answer:
            content = np.frombuffer(answer.read(), np.uint8)
        decoded = cv2.imdecode(content, cv2.IMREAD_COLOR)[..., ::-1]
        assert np.abs(decoded.astype(int) - image(0)).mean() < 3
        status, state = ask(url + "answer", {"question": state["question"], "relation": "closer"})
        assert (status, state["done"]) == (200, 1)
        assert len(read_labels(session.out)) == 1
        assert ask(url + "answer", {"question": 0, "relation": "closer"})[0] == 409
        assert ask(url + "undo", {})[1]["done"] == 0
        assert ask(url + "skip", {"question": 0})[1]["question"] == 1


def test_what_a_stranger_sends_changes_nothing(folder: Path) -> None:
    session = opened(folder)
    with served(session) as url:
        body = {"question": 0, "relation": "closer"}
        assert ask(url + "answer", body, "text/plain")[0] == 415
        assert ask(url + "answer", [1])[0] == 400
        assert ask(url + "answer", {"question": "x" * 9000})[0] == 400
        assert ask(url + "answer", {"question": None})[0] == 400
        assert ask(url + "elsewhere", body)[0] == 404
        assert ask(url + "image/99")[0] == 404
        assert ask(url + "image/../labels.csv")[0] == 404
    assert not session.out.exists()


def test_a_full_disk_and_a_bad_picture_are_said_on_the_page(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = opened(folder)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with served(session) as url:
        with monkeypatch.context() as patch:
            patch.setattr("training.tools.annotate.append_label", full)
            status, answer = ask(url + "answer", {"question": 0, "relation": "closer"})
        assert (status, session.pairs) == (500, [])
        assert "No space left" in answer["error"]
        assert ask(url + "state")[1]["question"] == 0
        (folder / "b.png").write_bytes(b"no image")
        status, answer = ask(url + "answer", {"question": 0, "relation": "closer"})
        assert status == 500 and "b.png" in answer["error"]
    assert len(read_labels(session.out)) == 1


def test_a_port_in_use_and_an_empty_folder_are_refused(folder: Path, tmp_path: Path) -> None:
    server = serve(opened(folder))
    try:
        with pytest.raises(DataError, match="--port"):
            serve(opened(folder), port=server.server_address[1])
    finally:
        server.server_close()
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds nothing"):
        opened(tmp_path / "empty")
    write_labels(folder.parent / "labels.csv", [])
    assert opened(folder).state()["done"] == 0


def test_the_command_serves_until_it_is_interrupted(folder: Path) -> None:
    pytest.importorskip("torch", reason="training needs torch (requirements-training.txt)")
    out = folder.parent / "labels.csv"
    command = [sys.executable, "-m", "training", "annotate", str(folder), "--out", str(out)]
    with subprocess.Popen(
        [*command, "--port", "0", "--no-browser"], cwd=REPO, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1", "COLUMNS": "200"},
    ) as process:  # fmt: skip
        assert process.stdout is not None
        line = process.stdout.readline()
        url = next(word for word in line.split() if word.startswith("http"))
        assert ask(url + "answer", {"question": 0, "relation": "closer"})[0] == 200
        process.send_signal(signal.SIGINT)
        assert "1 labels in" in process.stdout.read()
    assert process.returncode == 0
    assert len(read_labels(out)) == 1


class Browser:
    """Headless Chromium, controlled over its pipe (DevTools protocol)."""

    def __init__(self, path: str, profile: Path) -> None:
        ours, theirs = os.pipe(), os.pipe()
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"]
        options += [
            "--window-size=1200,800",
            "--remote-debugging-pipe",
            f"--user-data-dir={profile}",
        ]

        def on_three_and_four() -> None:
            os.dup2(ours[0], 3)
            os.dup2(theirs[1], 4)

        self.process = subprocess.Popen(
            [path, *options, "about:blank"], pass_fds=(3, 4), preexec_fn=on_three_and_four,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(ours[0])
        os.close(theirs[1])
        self.writer, self.reader = os.fdopen(ours[1], "wb"), os.fdopen(theirs[0], "rb")
        self.number, self.session = 0, ""

    def __call__(self, method: str, **parameters: Any) -> Any:
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        self.writer.write(json.dumps(message).encode() + b"\0")
        self.writer.flush()
        while True:
            content = bytearray()
            while (byte := self.reader.read(1)) != b"\0":
                assert byte, "the browser ended"
                content += byte
            answer = json.loads(content)
            if answer.get("id") == self.number:
                assert "error" not in answer, answer
                return answer["result"]

    def open(self, url: str) -> None:
        target = self("Target.createTarget", url=url)["targetId"]
        self.session = self("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]

    def evaluate(self, script: str) -> Any:
        return self("Runtime.evaluate", expression=script, returnByValue=True)["result"].get(
            "value"
        )

    def until(self, script: str, value: Any = True, seconds: float = 30) -> None:
        end = time.monotonic() + seconds
        while self.evaluate(script) != value:
            assert time.monotonic() < end, f"{script} is {self.evaluate(script)!r}, not {value!r}"
            time.sleep(0.02)

    def key(self, key: str) -> None:
        for kind in ("keyDown", "keyUp"):
            self("Input.dispatchKeyEvent", type=kind, key=key)

    def pixel(self, canvas: str, x: float, y: float) -> list[int]:
        script = f"Array.from($('{canvas}').getContext('2d').getImageData({x},{y},1,1).data)"
        return self.evaluate(script)[:3]

    def close(self) -> None:
        self("Browser.close")
        self.process.wait(timeout=20)
        self.writer.close()
        self.reader.close()


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    """Return DEPTH_NODE_BROWSER, or a Chromium of this machine."""
    names = [os.environ.get("DEPTH_NODE_BROWSER", ""), *BROWSERS]
    path = next((executable for name in names if name and (executable := shutil.which(name))), None)
    if path is None:
        reason = "no Chromium on this machine (DEPTH_NODE_BROWSER may name one)"
        if os.environ.get("REQUIRE_BROWSER") == "1":
            pytest.fail(f"{reason} (REQUIRE_BROWSER=1 promises it)")
        pytest.skip(reason)
    started = Browser(str(path), tmp_path / "profile")
    yield started
    started.close()


def test_in_a_real_browser(folder: Path, browser: Browser) -> None:
    """All that a person can do: keys, buttons, undo, skip, reload, the end."""
    session = opened(folder, per_image=2)
    ready = "document.body.dataset.ready"
    question = "document.body.dataset.question"
    with served(session) as url:
        browser.open(url)
        browser.until(ready, "image/0")
        assert browser.evaluate("$('undo').disabled")
        # The marks are at the points: their centres show the colours of the image there.
        (x1, y1), _ = session.state()["points"]
        assert browser.pixel("lens0", 100, 100)[2] > 200, "the mark's centre is A's blue"
        browser.evaluate("dispatchEvent(new KeyboardEvent('keydown', {key: 'h'}))")
        shown = browser.pixel("lens0", 100, 100)
        colours = np.unique(image(0).reshape(-1, 3), axis=0).astype(int)
        nearest = colours[np.abs(colours - shown).sum(axis=1).argmin()]
        assert nearest.tolist() == image(0)[y1, x1].tolist(), "hidden: the image"
        browser.evaluate("dispatchEvent(new KeyboardEvent('keyup', {key: 'h'}))")
        for k, (key, relation) in enumerate((("a", "closer"), ("ArrowRight", "farther"))):
            browser.key(key)
            browser.until(question, str(k + 1))
            browser.until(ready, f"image/{k + 1}")
            assert read_labels(session.out)[-1].relation == relation
        browser.key("s")
        browser.until(question, "3")
        browser.until(ready, "image/0")
        browser.evaluate("$('equal').click()")
        browser.until(question, "4")
        assert read_labels(session.out)[-1].relation == "equal"
        browser.key("z")
        browser.until(question, "3")
        assert len(read_labels(session.out)) == 2
        shot = base64.b64decode(browser("Page.captureScreenshot")["data"])
        if os.environ.get("DEPTH_NODE_SCREENSHOT"):
            Path(os.environ["DEPTH_NODE_SCREENSHOT"]).write_bytes(shot)
        browser("Page.reload")
        browser.until(question, "3")
        for _ in range(4):
            before = browser.evaluate(question)
            browser.until(f"{ready} != ''")
            browser.key("e")
            browser.until(f"{question} != '{before}'")
        browser.until("document.body.classList.contains('done')")
        assert browser.evaluate("$('labels').textContent") == "6"
        browser.key("a")
        browser.key("u")
        browser.until("document.body.classList.contains('done')", False)
        browser.until(f"{ready} != ''")
        browser.evaluate("$('closer').click()")
        browser.until("document.body.classList.contains('done')")
    labels = read_labels(session.out)
    assert len(labels) == 6
    assert labels[-1].relation == "closer"
    browser.evaluate("state.finished = false; image = new Image(); act('equal')")
    browser.until("$('message').textContent.includes('does not answer')")


def said(session: annotate.Session, request: bytes, wait: float = 5.0) -> bytes:
    """Return the answer of the server to raw bytes, until it closes or for a while."""
    server = serve(session)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with socket.create_connection(server.server_address[:2], timeout=wait) as connection:
            connection.sendall(request.replace(b"PORT", str(server.server_address[1]).encode()))
            out = b""
            try:
                while b"\r\n\r\n" not in out:
                    part = connection.recv(4096)
                    if not part:
                        break
                    out += part
            except TimeoutError:
                pass
            return out
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    ("host", "status"),
    [
        (b"127.0.0.1:PORT", b"200"), (b"localhost:PORT", b"200"), (b"LOCALHOST", b"200"),
        (b"[::1]:PORT", b"200"), (b"evil.example:PORT", b"403"), (b"evil.example", b"403"),
        (b"127.0.0.1.evil.example", b"403"), (b"8.8.8.8", b"403"), (b"", b"403"),
        (b"\xff\xfe", b"400"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("method", [b"GET /state", b"POST /undo"])
def test_only_this_machines_names_are_served(
    folder: Path, host: bytes, status: bytes, method: bytes
) -> None:
    head = method + b" HTTP/1.1\r\nHost: " + host + b"\r\nContent-Type: application/json\r\n"
    answer = said(opened(folder), head + b"Content-Length: 2\r\n\r\n{}")
    expected = b"409" if method.startswith(b"POST") and status == b"200" else status
    assert answer.split(b" ", 2)[1] == expected


def test_a_request_without_a_host_or_with_two_is_refused(folder: Path) -> None:
    for hosts in (b"", b"Host: localhost\r\nHost: evil.example\r\n"):
        assert b" 400 " in said(opened(folder), b"GET / HTTP/1.1\r\n" + hosts + b"\r\n")[:20]


@pytest.mark.parametrize(
    ("line", "more", "status"),
    [
        (b"GET /image/\xb2", b"", b" 404 "),
        (b"GET /image/\xff\x00", b"", b" 40"),
        (b"GET /image/" + b"9" * 5000, b"", b" 404 "),
        (b"POST /answer", b"Content-Length: \xb2\r\n", b" 400 "),
        (b"POST /answer", b"Content-Length: -1\r\n", b" 400 "),
        (b"POST /answer", b"Content-Length: 99999999999999\r\n", b" 400 "),
        (b"POST /answer", b'Content-Length: 19\r\n\r\n{"question": 1e999}', b" 400 "),
        (b"POST /answer", b"Content-Length: 4000\r\n\r\n" + b"[" * 4000, b" 400 "),
        (b"POST /answer", b"Content-Length: 2\r\n\r\n[]", b" 400 "),
    ],
)
def test_bad_bytes_get_an_answer_and_no_traceback(
    folder: Path, line: bytes, more: bytes, status: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    head = line + b" HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    assert status in said(opened(folder), head + more + b"\r\n")[:30]
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("rest", [b"", b"Content-Length: 50\r\n\r\n{"])
def test_who_says_nothing_is_hung_up(
    folder: Path, rest: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(annotate._Handler, "timeout", 0.3)
    began = time.monotonic()
    head = b"POST /answer HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    said(opened(folder), head + rest, wait=10)
    assert time.monotonic() - began < 5


def test_a_file_of_another_kind_is_left_as_it_is(folder: Path) -> None:
    for name, content in (("notes.csv", b"milk,eggs\nbread"), ("photo.jpg", b"\xff\xd8 x")):
        out = folder.parent / name
        out.write_bytes(content)
        with pytest.raises(DataError):
            annotate.Session(DataConfig(folder=str(folder)), out)
        assert out.read_bytes() == content
