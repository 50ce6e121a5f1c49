# SPDX-License-Identifier: Apache-2.0
"""Engine builds in a child process, where that process cannot even be started."""

from __future__ import annotations

import os
import sys

import pytest

from depth_node.engine.build_process import BuildError, build_apart


def test_a_process_that_cannot_start_is_a_build_error_and_leaks_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    before = os.listdir("/proc/self/fd")
    with pytest.raises(BuildError) as caught:
        build_apart("depth_node.engine.trt", {}, lambda phase, done, total: None)
    assert caught.value.args == ("start", "/nowhere/python (No such file or directory)")
    assert os.listdir("/proc/self/fd") == before
