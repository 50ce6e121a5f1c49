# SPDX-License-Identifier: Apache-2.0
"""The allocator of the node's process: the next frame reuses the pages of one frame."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys

import pytest

pytest.importorskip("rclpy", reason="ROS 2 is not installed")

PEAKS = """
import threading
import numpy as np
from depth_node.ros.process.allocator import Memory
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 >> 20
memory, held = Memory(), []
def peak():
    for _ in range(5):  # small things that live on lie between large ones that are freed
        images = [(np.ones((480, 640, 3), np.float32), bytearray(2000)) for _ in range(60)]
        held.extend(small for _, small in images)
def frames():
    for _ in range(5):
        images = [np.ones((720, 1280), np.float32) for _ in range(6)]
        del images
def run(work):
    worker = threading.Thread(target=work)
    worker.start()
    worker.join()
    return resident()
run(frames)
memory.look(0.0)
start, calm = run(frames), memory.look(5.0)
high, given = run(peak), memory.look(10.0)
low = resident()
again, after = run(frames), memory.look(15.0)
print(start, high, low, again, calm, given, after)
looks = []
for seconds in range(20, 4000, 5):
    looks.append(memory.look(seconds))
    frames()
print(*[5 * i for i, given in enumerate(looks) if given])
"""

FAULTS = """
import resource, sys, threading
import numpy as np
from depth_node.ros.process.allocator import keep_memory
kept = keep_memory() if sys.argv[1] == "keep" else False
def frames():
    for _ in range(20):
        images = [np.ones((720, 1280), np.float32) for _ in range(6)]
        del images
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        images = [np.ones((720, 1280), np.float32) for _ in range(6)]
        del images
    print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
worker = threading.Thread(target=frames)
worker.start()
worker.join()
"""


def python(code: str, *words: str, **environment: str) -> list[str]:
    """Run code in a process of its own; return the lines that it prints."""
    others = {name: text for name, text in os.environ.items() if not name.startswith("MALLOC_")}
    command = [sys.executable, "-c", code, *words]
    env = {**others, **environment}
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def faults(word: str, **environment: str) -> tuple[bool, int]:
    """Return whether memory was kept, and the page faults of 20 frames in a worker's thread."""
    kept, count = python(FAULTS, word, **environment)
    return kept == "True", int(count)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="not glibc")
def test_images_take_no_page_faults_once_their_memory_is_kept() -> None:
    kept, count = faults("keep")
    assert kept
    assert count < 900, "not even the pages of one image are new"
    assert faults("leave")[1] > 20 * 100, "else there is nothing to gain"


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="not glibc")
def test_memory_of_a_past_peak_is_given_back_and_that_of_frames_is_not() -> None:
    printed = python(PEAKS)
    *megabytes, calm, given, after = printed[:7]
    start, high, low, again = map(int, megabytes)
    assert high > start + 100, "else there was no peak"
    assert low < start + 30
    assert again < start + 60
    assert (calm, given, after) == ("False", "True", "False")
    times = [int(second) for second in printed[7:]]
    assert times, "what was needed may have been measured in a peak"
    assert 2 * len(times) < 4000 / 60, "frames that are alike do not pay for it every minute"


def test_memory_that_a_user_governs_is_left_alone() -> None:
    assert python(PEAKS, MALLOC_ARENA_MAX="1")[4:] == ["False"] * 3


def test_a_users_own_settings_stay() -> None:
    assert not faults("keep", MALLOC_ARENA_MAX="8")[0]


ARENAS = """
import ctypes, re, sys, threading
from depth_node.ros import main
libc = ctypes.CDLL(None)
def arenas():
    libc.tmpfile.restype = ctypes.c_void_p
    file = ctypes.c_void_p(libc.tmpfile())
    libc.malloc_info(0, file)
    libc.rewind(file)
    told = ctypes.create_string_buffer(1 << 20)
    libc.fread(told, 1, len(told) - 1, file)
    return len(re.findall(rb"<heap nr", told.value))
if sys.argv[1] == "executable":
    sys.argv[1:] = ["--ros-args", "-p", "no such thing"]
    main.main()
import depth_node.ros.node
threads = [threading.Thread(target=lambda: bytes(100_000)) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(arenas())
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_info"), reason="not glibc")
def test_the_threads_of_the_executable_share_one_arena() -> None:
    assert python(ARENAS, "executable") == ["1"]
    assert int(python(ARENAS, "import")[0]) > 1, "else nothing needs to be done before the import"


LARGE = """
import numpy as np
from depth_node.ros.process.allocator import Memory
resident = lambda: int(open("/proc/self/statm").read().split()[1]) * 4096 >> 20
memory = Memory()
start = resident()
images = [(np.ones((720, 1280, 3), np.float32), bytearray(2000)) for _ in range(20)]
high, held = resident(), [small for _, small in images]
del images
print(start, high, resident())
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="not glibc")
def test_arrays_of_several_megabytes_are_gone_when_they_are_freed() -> None:
    start, high, low = map(int, python(LARGE))
    assert high > start + 150
    assert low < start + 10
