# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from depth_node.config import replace as settings
from depth_node.frame import FrameInput
from depth_node.geometry.camera import Camera
from depth_node.pipeline import DepthPipeline, PipelineConfig
from depth_node.prediction import Prediction
from depth_node.regions.propagation import RegionMemory
from depth_node.regions.segmentation import segment
from depth_node.regions.settings import SegmentationConfig
from depth_node.simulation.renderer import Scene
from depth_node.simulation.viewpoints import camera_path

CAMERA = Camera(160, 120, 120.0, 120.0, 79.5, 59.5)
ALWAYS = SegmentationConfig(every=0, change=1.0)


@pytest.fixture(scope="module")
def walk() -> list[Any]:
    """Render eight images of a walk through a room, with their exact regions."""
    scene = Scene.random(3)
    path = camera_path(scene, 240, 3)[:8]
    return [scene.render(CAMERA, pose, antialias=False) for pose in path]


def test_regions_follow_the_picture(walk: list[Any]) -> None:
    """Propagated regions agree better with the exact ones than the unmoved regions do."""
    memory = RegionMemory()
    memory.keep(walk[0].image, walk[0].labels)
    numbers = np.unique(walk[0].labels)
    for view in walk[1:]:
        found = memory.carried(view.image, ALWAYS)
        assert found is not None
        assert found.shape == (120, 160)
        assert found.dtype == np.int32
        assert set(np.unique(found)) == set(range(1, found.max() + 1))
    assert memory.changed < 0.3
    exact = walk[-1].labels
    # Carried labels are numbered anew: each is what most of its pixels are.
    right = sum(np.bincount(exact[found == k]).max() for k in range(1, found.max() + 1))
    assert right / exact.size > 0.87
    assert (walk[0].labels == exact).mean() < 0.75
    assert len(numbers) >= found.max()


@pytest.mark.parametrize("shape", [(40, 2000), (64, 2560), (2560, 64)])
def test_image_too_narrow_for_the_flow_is_segmented(shape: tuple[int, int]) -> None:
    """The flow is computed between reduced images, of which the shorter side counts."""
    memory = RegionMemory()
    image = np.full((*shape, 3), 90, np.uint8)
    memory.keep(image, np.ones(shape, np.int32))
    assert memory.carried(image, ALWAYS) is None


def test_standing_picture_keeps_its_regions(walk: list[Any]) -> None:
    memory = RegionMemory()
    labels = segment(walk[0].image)
    memory.keep(walk[0].image, labels)
    found = memory.carried(walk[0].image, ALWAYS)
    assert found is not None
    assert (found == labels).mean() > 0.999
    assert memory.changed == 0


def test_every_so_many_pictures(walk: list[Any]) -> None:
    memory = RegionMemory()
    config = SegmentationConfig(every=3, change=1.0)
    made = []
    for view in walk:
        if memory.carried(view.image, config) is None:
            memory.keep(view.image, view.labels)
            made.append(True)
        else:
            made.append(False)
    assert made == [True, False, False, True, False, False, True, False]


def test_another_picture_is_segmented(walk: list[Any]) -> None:
    memory = RegionMemory()
    memory.keep(walk[0].image, walk[0].labels)
    config = SegmentationConfig(every=0)
    assert memory.carried(walk[1].image, config) is not None
    other = Scene.random(9)
    pose = camera_path(other, 4, 9)[0]
    assert memory.carried(other.render(CAMERA, pose).image, config) is None
    assert memory.changed > config.change


def test_nothing_to_carry(walk: list[Any]) -> None:
    memory = RegionMemory()
    assert memory.carried(walk[0].image, ALWAYS) is None
    memory.keep(walk[0].image, walk[0].labels)
    assert memory.carried(walk[1].image, SegmentationConfig()) is None  # every image anew
    half = np.ascontiguousarray(walk[1].image[::2, ::2])
    assert memory.carried(half, ALWAYS) is None
    tiny = np.zeros((12, 16, 3), np.uint8)
    memory.keep(tiny, np.ones((12, 16), np.int32))
    assert memory.carried(tiny, ALWAYS) is None


# --- in the pipeline


def run(pipe: DepthPipeline, walk: list[Any], stamped: bool = True) -> list[Any]:
    results = []
    for number, view in enumerate(walk):
        points = CAMERA.backproject(view.depth)[::9, ::9].reshape(-1, 3)
        prediction = Prediction(view.depth / 2, "depth_affine_invariant")
        stamp = 100_000_000 * number if stamped else None
        results.append(
            pipe.process(
                FrameInput(
                    view.image, CAMERA, points, np.eye(4), prediction=prediction, stamp_ns=stamp
                )
            )
        )
    return results


def pipeline(**changes: Any) -> DepthPipeline:
    values = {"model.path": "", "fit.method": "slf", **changes}
    return DepthPipeline(settings(PipelineConfig(), values))


def test_pipeline_carries_regions_and_tells(walk: list[Any]) -> None:
    changes = {"segmentation.every": 4, "segmentation.change": 1.0}
    with pipeline(**changes) as pipe:
        first = run(pipe, walk)
        assert [one.segmentation for one in first] == ["classical", *["carried"] * 3] * 2
        assert all(np.isfinite(one.depth).all() for one in first)
        pipe.reset()
        again = run(pipe, walk)  # what is replayed is what was seen live
        for one, other in zip(first, again, strict=True):
            np.testing.assert_array_equal(one.labels, other.labels)
            np.testing.assert_array_equal(one.depth, other.depth)
        alone = run(pipe, walk, stamped=False)  # images of no sequence
        assert {one.segmentation for one in alone} == {"classical"}


def test_off_by_default_and_new_settings_begin_anew(walk: list[Any]) -> None:
    with pipeline() as pipe:
        assert {one.segmentation for one in run(pipe, walk[:3])} == {"classical"}
        pipe.reconfigure(settings(pipe.config, {"segmentation.every": 0}))
        found = [one.segmentation for one in run(pipe, walk[:3])]
        assert found == ["classical", "carried", "carried"]
        pipe.reconfigure(settings(pipe.config, {"segmentation.grow_cells": 20}))
        assert run(pipe, walk[:1])[0].segmentation == "classical"
        given = pipe.process(
            FrameInput(
                walk[0].image,
                CAMERA,
                None,
                None,
                labels=walk[0].labels,
                prediction=Prediction(walk[0].depth, "depth_metric"),
            )
        )
        assert given.segmentation == "given"
    with pipeline(**{"fit.method": "global_depth"}) as pipe:
        assert {one.segmentation for one in run(pipe, walk[:2])} == {""}
