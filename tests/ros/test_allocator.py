# SPDX-License-Identifier: Apache-2.0
"""The allocator of the node's process: pages of one frame serve the next."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys

import pytest

pytest.importorskip("rclpy", reason="ROS 2 is not installed")

FAULTS = """
import resource, sys, threading
import numpy as np
from depth_node.ros.allocator import keep_memory
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


def faults(word: str, **environment: str) -> tuple[bool, int]:
    """Whether memory was kept, and the page faults of 20 frames in a worker's thread."""
    others = {name: text for name, text in os.environ.items() if not name.startswith("MALLOC_")}
    command = [sys.executable, "-c", FAULTS, word]
    env = {**others, **environment}
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stderr
    kept, count = done.stdout.split()
    return kept == "True", int(count)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="not glibc")
def test_images_take_no_page_faults_once_their_memory_is_kept() -> None:
    kept, count = faults("keep")
    assert kept
    assert count < 900, "not even the pages of one image are new"
    assert faults("leave")[1] > 20 * 100, "else there is nothing to gain"


def test_a_users_own_settings_stay() -> None:
    assert not faults("keep", MALLOC_ARENA_MAX="8")[0]
