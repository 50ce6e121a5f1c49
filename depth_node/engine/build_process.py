# SPDX-License-Identifier: Apache-2.0
"""Engine builds in a child process, so that a crash in a library or a signal does not end the node.

The child process writes lines of JSON to a pipe (steps, a failure, or the size of the engine) and
after them the engine itself, so it can never leave an incomplete file. It ends when its parent
ends.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from depth_node.engine.protocol import Progress


class BuildError(Exception):
    """A build failed; arguments: the kind of failure and the reason.

    Kinds: "start" (the process cannot be started; the reason is the interpreter and the system's
    error), "read" (the builder cannot read the file), "memory" and "workspace" (out of memory),
    "build" (any other failure of the builder), "stopped" (by a signal) and "ended" (the process
    ended by itself; the reason is its signal or exit status).
    """


_END_S = 5.0  # time that a build has to end after SIGTERM, before it gets SIGKILL
_POLL_S = 0.2


def build_apart(module: str, given: Mapping[str, Any], progress: Progress) -> bytes:
    """Run a module that calls serve() in a child process, and return the engine that it builds.

    given: arguments of the build, plain JSON values. In the main thread SIGINT and SIGTERM end the
    build first; then this process handles them as it would have without a build.

    Raises BuildError, and every exception of the progress callback.
    """
    reading, writing = os.pipe()
    command = [sys.executable, "-m", module, str(writing), str(os.getpid())]
    root = str(Path(__file__).resolve().parents[2])
    paths = [root, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    with _noted_signals() as noted, open(reading, "rb", buffering=0) as answers:
        try:
            child = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=sys.stderr.fileno() if _is_file(sys.stderr) else subprocess.DEVNULL,
                pass_fds=[writing],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            )
        except OSError as error:  # no memory, no process left, no interpreter
            raise BuildError("start", f"{sys.executable} ({error.strerror})") from error
        finally:
            os.close(writing)
        try:
            assert child.stdin is not None
            with contextlib.suppress(BrokenPipeError), child.stdin:
                child.stdin.write(json.dumps(given).encode())
            answer = _received(answers, progress, noted)
        finally:
            _end(child)
    if answer is None:
        kind, reason = "ended", _exit_text(child.returncode)
        raise BuildError("stopped" if noted else kind, reason)
    if isinstance(answer, bytes):
        return answer
    raise BuildError(*answer)


def _received(
    answers: Any, progress: Progress, noted: Sequence[int]
) -> bytes | tuple[str, str] | None:
    """Return the engine, or (kind, reason) of a failure.

    None: the child process ended without an answer, or a signal was received (`noted`).
    """
    content = bytearray()
    size = -1
    while not noted:
        if not select.select([answers], [], [], _POLL_S)[0]:
            continue
        part = answers.read(1 << 20)
        if not part:
            return None
        content += part
        while size < 0 and b"\n" in content:
            line, _, content = content.partition(b"\n")
            message = json.loads(line)
            if "step" in message:
                progress(*message["step"])
            elif "failed" in message:
                return message["failed"][0], message["failed"][1]
            else:
                size = message["plan"]
        if 0 <= size == len(content):
            return bytes(content)
    return None


def _end(child: subprocess.Popen[bytes]) -> None:
    """Wait briefly for the child process to end; if it does not, end it by a signal."""
    try:
        child.wait(_POLL_S)
        return
    except subprocess.TimeoutExpired:
        child.terminate()
    try:
        child.wait(_END_S)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def _exit_text(status: int) -> str:
    if status >= 0:
        return f"exit status {status}"
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"signal {-status}"


def _is_file(stream: Any) -> bool:
    try:
        return bool(stream.fileno() >= 0)
    except (AttributeError, OSError, ValueError):
        return False


@contextlib.contextmanager
def _noted_signals() -> Iterator[list[int]]:
    """Only record SIGINT and SIGTERM during the block, and handle them when the block is left.

    Yields the list of the signals received. Only the main thread can set signal handlers; in other
    threads the list stays empty. rclpy installs its handlers in C, unknown to Python's signal
    module, so the C structure of each handler (struct sigaction) is saved and restored as bytes.
    """
    noted: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield noted
        return
    libc = ctypes.CDLL(None)
    before: dict[int, tuple[Any, Any]] = {}
    for number in map(int, (signal.SIGINT, signal.SIGTERM)):
        action = ctypes.create_string_buffer(256)  # larger than any struct sigaction
        libc.sigaction(number, None, action)
        before[number] = signal.getsignal(number), action
        signal.signal(number, lambda received, frame: noted.append(received))
    try:
        yield noted
    finally:
        for number, (handler, action) in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
            libc.sigaction(number, action, None)
        for number in noted[:1]:
            handler, action = before[number]
            default = action.raw[: ctypes.sizeof(ctypes.c_void_p)].strip(b"\0") == b""
            if number == signal.SIGTERM and default:
                raise SystemExit(128 + number)  # an exception, so that `with` blocks clean up
            signal.raise_signal(number)


def _die_with(parent: int) -> None:
    """Ask Linux to end this process when its parent process ends."""
    libc = ctypes.CDLL(None)
    with contextlib.suppress(AttributeError):
        libc.prctl(1, int(signal.SIGKILL))  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        raise SystemExit(1)


def serve(build: Callable[[Mapping[str, Any], Progress, Callable[[], bool]], bytes]) -> None:
    """Run the child process of a build: read its arguments from stdin, build, write the answer.

    build(given, progress, stop): gets the values that were given to build_apart(), a progress
    callback, and a function that returns whether the build should end. It returns the engine or
    raises BuildError. The command-line arguments of the process are the file descriptor of the pipe
    to write to and the id of the parent process.
    """
    noted: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda received, frame: noted.append(received))
    _die_with(int(sys.argv[2]))
    given = json.load(sys.stdin)
    with open(int(sys.argv[1]), "wb") as answers:

        def tell(content: Mapping[str, Any]) -> None:
            answers.write(json.dumps(content).encode() + b"\n")
            answers.flush()

        def report(phase: str, done: int, total: int) -> None:
            tell({"step": [phase, done, total]})

        try:
            plan = build(given, report, lambda: bool(noted))
        except BuildError as error:
            tell({"failed": error.args})
            return
        except BrokenPipeError:  # the parent does not wait for the engine any more
            return
        tell({"plan": len(plan)})
        answers.write(plan)
