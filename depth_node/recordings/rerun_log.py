# SPDX-License-Identifier: Apache-2.0
"""Results of a replay as a recording for the Rerun viewer (rerun.io); needs rerun-sdk."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from depth_node.calibration.monitor import Verdict
from depth_node.pipeline import DepthResult
from depth_node.recordings.files import FrameError, UnfinishedFile
from depth_node.recordings.sources import ScoredFrame

DECIMATION = 2
"""Every n-th row and column of the depth becomes a point of the cloud."""


class RerunLog:
    """A .rrd file to which one result after another is written; a context manager.

    Entities: `camera` (pinhole) with `image`, `depth` and `deviation`; `points`, the depth as a
    cloud; `lidar` and `rejected`, the measured points that were accepted and rejected by the fit;
    `fit`, a sentence; `extrinsics`, the verdict on each LiDAR; `plots`. All are in the camera's
    optical frame (x right, y down, z forward), on the timelines `frame` and, for frames with one,
    `stamp`. Raises FrameError if rerun-sdk is missing or the file exists already.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = UnfinishedFile(path, "--rerun")
        self._count = 0

    def __enter__(self) -> RerunLog:
        try:
            import rerun
        except ImportError:
            raise FrameError(
                "--rerun needs rerun-sdk: pip install rerun-sdk (the extra `rerun`)."
            ) from None
        self._rr: Any = rerun
        folder = self._file.__enter__()
        self._part = folder / self.path.name
        self._log = rerun.RecordingStream("depth_node")
        self._log.save(str(self._part))
        axes = rerun.ViewCoordinates.RDF
        self._log.log("/", axes, static=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        with contextlib.suppress(Exception):
            self._log.disconnect()  # flushes and closes the file
        self._file.finish(self._part if kind is None and self._count else None)

    def add(self, frame: ScoredFrame, result: DepthResult, verdicts: Mapping[str, Verdict]) -> None:
        """Log the result of a frame, and the verdict on the extrinsics of each LiDAR."""
        rr, observed = self._rr, frame.input
        camera, stamp_ns = observed.camera, observed.stamp_ns
        log = self._log.log
        self._log.set_time("frame", sequence=self._count)
        if stamp_ns is not None:
            self._log.set_time("stamp", timestamp=np.datetime64(stamp_ns, "ns"))
        size = {"width": camera.width, "height": camera.height}
        log("camera", rr.Pinhole(image_from_camera=camera.matrix, **size))
        log("camera/image", rr.Image(observed.image).compress(jpeg_quality=90))
        # In Rerun a depth of 0 means unknown.
        log("camera/depth", rr.DepthImage(np.nan_to_num(result.depth, nan=0.0), meter=1.0))
        log("camera/deviation", rr.DepthImage(np.nan_to_num(result.std, nan=0.0), meter=1.0))
        every = (slice(None, None, DECIMATION),) * 2
        z = result.depth[every]
        known = np.isfinite(z)
        cloud = camera.rays()[every][known] * z[known][:, None]
        log("points", rr.Points3D(cloud, colors=observed.image[every][known]))
        sparse, rejected = result.sparse, result.rejected
        measured = camera.rays()[sparse.rows, sparse.cols] * sparse.depth[:, None]
        log("lidar", rr.Points3D(measured[~rejected], colors=(90, 200, 120)))
        log("rejected", rr.Points3D(measured[rejected], colors=(230, 70, 60)))
        log("fit", rr.TextLog(result.fit.message))
        for lidar, verdict in verdicts.items():
            log(f"extrinsics/{lidar.strip('/') or 'lidar'}", rr.TextLog(verdict.text()))
        log("plots/points", rr.Scalars(float(len(sparse))))
        log("plots/ms", rr.Scalars(result.stage_ms["total"]))
        self._count += 1
