# SPDX-License-Identifier: Apache-2.0
"""Loops shared between threads: the same numbers to the bit, and nobody waits for a busy helper."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from depth_node.config import replace
from depth_node.fitting.field.threads import SharedLoop
from tests.helpers.field_room import FIELD, Room, measure, solved


@pytest.mark.parametrize("count", [60, 1000, 10000])
def test_depth_is_the_same_to_the_bit_with_any_number_of_threads(room: Room, count: int) -> None:
    pytest.importorskip("numba")
    points = measure(room, count)
    alone = solved(room, points, replace(FIELD, {"threads": 1}))
    for threads in (0, 2, 3):
        shared = solved(room, points, replace(FIELD, {"threads": threads}))
        np.testing.assert_array_equal(shared.depth, alone.depth)
        np.testing.assert_array_equal(shared.std, alone.std)
        np.testing.assert_array_equal(shared.point_inlier, alone.point_inlier)


def test_every_number_is_done_once_by_several_threads() -> None:
    done = np.zeros(1000, int)
    by: set[int] = set()
    together = threading.Barrier(3, timeout=10)

    def loop(counts: np.ndarray, begin: int, end: int) -> None:
        if threading.get_ident() not in by:
            by.add(threading.get_ident())
            together.wait()  # only three threads at once get past it
        counts[begin:end] += 1

    SharedLoop(loop, len, 50, 3)(done)
    assert (done == 1).all()
    assert len(by) == 3


def test_little_work_stays_in_its_thread() -> None:
    by: set[int] = set()
    loop = SharedLoop(lambda *_: by.add(threading.get_ident()), len, 100, 4)
    loop(np.zeros(199))
    assert by == {threading.get_ident()}


def test_two_cameras_at_once_wait_for_no_helper_that_the_other_holds() -> None:
    """Both ask for the same helpers; while the one holds them, the other works alone."""
    held, free = threading.Semaphore(0), threading.Event()

    def holding(counts: np.ndarray, begin: int, end: int) -> None:
        held.release()
        free.wait(10)

    slow = threading.Thread(target=SharedLoop(holding, len, 1, 2), args=(np.zeros(2),))
    slow.start()
    assert held.acquire(timeout=10)
    assert held.acquire(timeout=10)  # the only helper, and the camera's own thread
    done = np.zeros(100, int)

    def loop(counts: np.ndarray, begin: int, end: int) -> None:
        counts[begin:end] += 1

    SharedLoop(loop, len, 10, 2)(done)
    assert (done == 1).all()
    free.set()
    slow.join(10)
    assert not slow.is_alive()


def test_an_error_in_a_helper_reaches_the_caller() -> None:
    main = threading.get_ident()
    tried = threading.Event()

    def loop(counts: np.ndarray, begin: int, end: int) -> None:
        if threading.get_ident() != main:
            tried.set()
            raise ValueError("in a helper")
        tried.wait(10)

    with pytest.raises(ValueError, match="in a helper"):
        SharedLoop(loop, len, 1, 2)(np.zeros(2))


def test_two_fits_at_once_with_shared_loops_equal_each_alone(room: Room) -> None:
    pytest.importorskip("numba")
    config = replace(FIELD, {"threads": 2})
    frames = [measure(room, 500), measure(room, 3000)]
    alone = [solved(room, points, config).depth for points in frames]
    found: list[list[np.ndarray]] = [[], []]

    def camera(which: int) -> None:
        for _ in range(5):
            found[which].append(solved(room, frames[which], config).depth)

    cameras = [threading.Thread(target=camera, args=(which,)) for which in (0, 1)]
    for each in cameras:
        each.start()
    for each in cameras:
        each.join()
    for depths, expected in zip(found, alone, strict=True):
        assert len(depths) == 5
        for depth in depths:
            np.testing.assert_array_equal(depth, expected)
