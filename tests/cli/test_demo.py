# SPDX-License-Identifier: Apache-2.0
"""The parts of the demo that need no ROS: the rendered room and its bookkeeping."""

from __future__ import annotations

import os
import queue
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from depth_node import live
from depth_node.cli import demo


@pytest.mark.parametrize("wrong", [{"seconds": 0.1}, {"rate_hz": 0.0}, {"size": (10, 640)}])
def test_options_out_of_range_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(live.DemoError):
        live.DemoOptions(**wrong)  # type: ignore[arg-type]


def test_rendered_frames_are_not_mixed_with_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """view_0000 of somebody's own recording was overwritten."""
    rendered: list[Path] = []

    class RenderedError(Exception):
        pass

    def render(folder: Path, *_: object) -> None:
        rendered.append(folder)
        raise RenderedError

    monkeypatch.setattr(demo, "render_walk", render)
    own, earlier = tmp_path / "own", tmp_path / "earlier"
    for folder in (own, earlier):
        (folder / "view_0000").mkdir(parents=True)
    (earlier / "rendered.json").write_text("{}")
    with pytest.raises(live.DemoError, match=r"other files.*--frames"):
        demo.run(live.DemoOptions(frames=own), tmp_path / "out", progress=nullcontext)  # type: ignore[arg-type]
    for folder in (earlier, tmp_path / "new"):
        with pytest.raises(RenderedError):
            demo.run(live.DemoOptions(frames=folder), tmp_path / "out", progress=nullcontext)  # type: ignore[arg-type]
    assert rendered == [earlier, tmp_path / "new"]


def test_difference_of_depth_maps() -> None:
    one = np.array([[1.0, 2.0, np.nan]], np.float32)
    assert demo.depth_difference(one, one) == 0.0
    assert demo.depth_difference(one * 1.01, one) == pytest.approx(0.01, rel=1e-4)
    assert demo.depth_difference(np.ones_like(one), one) == np.inf


def test_a_child_that_fails_is_told_with_its_log(tmp_path: Path) -> None:
    script = "import sys, json; print(json.dumps({'event': 'hello'}), flush=True);"
    script += "print('not json'); print(7); print('{}');"
    script += "print('the reason', file=sys.stderr); sys.exit(3)"
    child = live.Child("node", ["-c", script], tmp_path, {})
    events: queue.Queue[tuple[str, dict[str, object]]] = queue.Queue()
    child.events(events)
    end = time.monotonic() + 20
    assert live._next_event({"node": child}, events, end) == ("node", {"event": "hello"})
    with pytest.raises(live.DemoError, match=r"(?s)node ended early with status 3.*the reason"):
        live._next_event({"node": child}, events, end)
    child.end()


def test_a_child_that_does_not_listen_is_ended(tmp_path: Path) -> None:
    stubborn = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN);"
    stubborn += 'print(\'{"event": "up"}\', flush=True); time.sleep(60)'
    child = live.Child("stubborn", ["-c", stubborn], tmp_path, {})
    events: queue.Queue[tuple[str, dict[str, object]]] = queue.Queue()
    child.events(events)
    assert events.get(timeout=20)[1] == {"event": "up"}
    child.end(patience_s=0.3)
    assert child.process.returncode not in (None, 0)
    child.tell("word")  # nobody there: no exception


def test_a_camera_that_hangs_is_not_waited_for_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "STALLED_S", 0.5)
    script = "print('the log'); import sys; sys.stdin.readline()"
    children = {
        name: live.Child(name, ["-c", script], tmp_path, {})
        for name in ("publisher", "listener", "node")
    }
    for child in children.values():
        child.events(queue.Queue())
    events: queue.Queue[tuple[str, dict[str, object]]] = queue.Queue()
    for name, event in (("publisher", "loaded"), ("listener", "ready"), ("publisher", "published")):
        events.put((name, {"event": event}))
    ended: list[BaseException] = []

    def conduct() -> None:
        def progress(text: str, steps: int) -> AbstractContextManager[Any]:
            return nullcontext(lambda word: None)

        try:
            live._conduct(live.DemoOptions(), children, events, progress)
        except BaseException as error:
            ended.append(error)

    thread = threading.Thread(target=conduct, daemon=True)
    thread.start()
    thread.join(20.0)
    for child in children.values():
        child.end()
    assert ended and isinstance(ended[0], live.DemoError), "it waits for ever"
    assert "the publisher sent nothing for 0.6 s" in str(ended[0])


def test_the_environment_of_the_processes_stays_on_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROS_LOCALHOST_ONLY", "0")
    monkeypatch.setenv("ROS_DOMAIN_ID", "0")
    env = live.environment(tmp_path)
    assert env["ROS_AUTOMATIC_DISCOVERY_RANGE"] == "LOCALHOST"
    assert 1 <= int(env["ROS_DOMAIN_ID"]) <= 50
    assert "ROS_LOCALHOST_ONLY" not in env
    assert Path(env["FASTRTPS_DEFAULT_PROFILES_FILE"]).read_text().startswith("<?xml")


def test_a_domain_in_which_somebody_talks_is_left_to_them() -> None:
    first = live.free_domain(range(90, 93))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as talker:
        talker.bind(("", 7410 + 250 * first))
        others = {live.free_domain(range(90, 93)) for _ in range(3)}
        assert first not in others and others <= {90, 91, 92}
        assert live.free_domain(range(first, first + 1)) == first, "better there than nowhere"


# ------------------------------------------------------------ processes that hang or die silently


LOADED = 'print(\'{"event": "loaded"}\', flush=True); '
READY = 'print(\'{"event": "ready"}\', flush=True); '
PLAY = """
for number in range(3):
    print(json.dumps({"event": "published", "number": number}), flush=True)
"""
FINISH = "print(json.dumps({'event': 'finished'}), flush=True)\n"
DEPTH = "print(json.dumps({'event': 'depth', 'number': 0}), flush=True)\n"
REPORT = "print(json.dumps({'event': 'report'}), flush=True)\n"
WAIT = "time.sleep(60)\n"
GO = "sys.stdin.readline()\n"
QUIET = "os.close(1); os.close(2)\n"


def conduct(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, publisher: str, listener: str
) -> dict[str, live.Child]:
    """Start processes that play the demo's and conduct them; return them after the failure."""
    monkeypatch.setattr(live, "PATIENCE_S", 2.0)
    monkeypatch.setattr(live, "STALLED_S", 1.0)
    monkeypatch.setattr(live, "HUNG_S", 1.0)
    head = "import json, os, sys, time\n"
    scripts = {"node": WAIT, "listener": READY + listener, "publisher": LOADED + GO + publisher}
    events: queue.Queue[tuple[str, dict[str, Any]]] = queue.Queue()
    children = {
        name: live.Child(name, ["-c", head + script], tmp_path, dict(os.environ))
        for name, script in scripts.items()
    }
    try:
        for child in children.values():
            child.events(events)
        live._conduct(live.DemoOptions(seconds=1), children, events, silent)
    finally:
        for child in children.values():
            child.end(patience_s=1.0)
        assert all(child.process.returncode is not None for child in children.values())
    return children


@contextmanager
def silent(what: str, total: int) -> Iterator[Callable[[str], None]]:
    yield lambda word: None


CASES = {
    "the publisher hangs": (
        PLAY + WAIT,
        WAIT,
        r"publisher sent nothing for [0-9.]+ s: end what .*--rate",
    ),
    "the publisher hangs at once": (WAIT, WAIT, r"publisher sent nothing for [0-9.]+ s"),
    "the publisher closes its output": (PLAY + QUIET + WAIT, WAIT, r"publisher closed its output"),
    "the publisher dies": (PLAY + "os.kill(os.getpid(), 9)", WAIT, r"publisher ended.* SIGKILL"),
    "the node gives nothing": (PLAY + FINISH + WAIT, GO + REPORT + WAIT, "published no depth"),
    "the listener hangs": (PLAY + FINISH + WAIT, DEPTH + WAIT, r"listener gave no report.* 2 s"),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_process_that_hangs_or_dies_ends_the_demo(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within a bounded time, with a sentence, and with all processes ended."""
    publisher, listener, sentence = CASES[case]
    begin = time.monotonic()
    with pytest.raises(live.DemoError, match=f"(?s){sentence}"):
        conduct(tmp_path, monkeypatch, publisher, listener)
    assert time.monotonic() - begin < 30


@pytest.mark.slow
def test_a_process_that_never_gets_ready_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules[__name__], "LOADED", WAIT)
    with pytest.raises(live.DemoError, match="publisher did not get ready within 2 s"):
        conduct(tmp_path, monkeypatch, "", WAIT)


@pytest.mark.slow
def test_a_node_that_hangs_halfway_is_no_slow_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its depth images came every 0.1 s, and then none for seconds while images went out."""
    publisher = """
for number in range(40):
    print(json.dumps({"event": "published", "number": number}), flush=True)
    time.sleep(0.1)
"""
    listener = """
for number in range(5):
    print(json.dumps({"event": "depth", "number": number}), flush=True)
    time.sleep(0.1)
"""
    with pytest.raises(live.DemoError, match=r"the node gave no depth in the last [0-9.]+ s"):
        conduct(tmp_path, monkeypatch, publisher + FINISH + WAIT, listener + GO + REPORT + WAIT)


def test_a_child_that_cannot_be_ended_does_not_keep_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a process that waits for a disk that does not answer."""
    child = live.Child("stuck", ["-c", f"import time\n{WAIT}"], tmp_path, {})
    monkeypatch.setattr(live, "KILLED_S", 0.1)
    real = child.process.wait

    def wait(timeout: float | None = None) -> int:
        raise subprocess.TimeoutExpired("stuck", timeout or 0)

    monkeypatch.setattr(child.process, "wait", wait)
    child.end(patience_s=0.1)
    real(20)
    assert child.process.stdout is not None
    child.process.stdout.close()
