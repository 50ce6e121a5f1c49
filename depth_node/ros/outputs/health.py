# SPDX-License-Identifier: Apache-2.0
"""The health of a node on /diagnostics: the monitor's report, and doubts about the inputs."""

from __future__ import annotations

import time
from collections.abc import Mapping

from diagnostic_msgs.msg import DiagnosticArray

from depth_node.engine.opening import summary
from depth_node.monitor import Monitor, Situation
from depth_node.pipeline import DepthPipeline
from depth_node.ros.inputs.subscriptions import input_types
from depth_node.ros.outputs.diagnostics import SeveralPublishers, type_mismatch
from depth_node.ros.outputs.results import DIAGNOSTICS, diagnostics_message
from depth_node.ros.process.guarded_node import GuardedNode
from depth_node.ros.settings import NodeConfig


class Health:
    """Publishes the status of a configured node."""

    def __init__(self, node: GuardedNode, monitor: Monitor) -> None:
        self._node, self._monitor = node, monitor
        self._several = SeveralPublishers()
        self._publisher = node.create_publisher(DiagnosticArray, DIAGNOSTICS, 10)

    def doubt_inputs(
        self, config: NodeConfig, lidar_frames: Mapping[str, int], calibrated: bool
    ) -> str:
        """Warn of inputs with several publishers; return which input is published as another type
        than is read, where something is missing; or "".

        lidar_frames: LiDAR topic -> number of frame_ids of its messages. calibrated: whether a
        camera_info has been received.
        """
        sources = {"image": 1, "camera_info": 1} | dict(lidar_frames)
        if doubt := self._several.doubt(self._node, sources):
            self._node.warn_throttled("publishers", doubt)
        if calibrated and all(map(self._monitor.recent, ("image", "scan"))):
            return ""
        kinds = input_types(config)
        inputs = {
            name: f"sensor_msgs/msg/{kind.__name__}"
            for name, kind in sorted(kinds.items(), key=lambda item: item[0] != "image")
        }
        hint = type_mismatch(self._node, inputs)
        if hint:
            self._node.warn_throttled("input type", hint)
        return hint

    def publish(self, situation: Situation, hardware_id: str) -> None:
        """Publish the monitor's report of the last seconds."""
        report = self._monitor.report(time.monotonic(), situation)
        array = diagnostics_message(report, self._node.get_fully_qualified_name(), hardware_id)
        array.header.stamp = self._node.get_clock().now().to_msg()
        self._publisher.publish(array)

    def close(self) -> None:
        """Remove the topic from the graph."""
        self._node.destroy_publisher(self._publisher)


def backend(pipeline: DepthPipeline | None) -> str:
    """Return the network and the back end of a pipeline, or ""."""
    model = pipeline.depth_model if pipeline is not None else None
    return f"{model.engine.manifest.name} on {model.engine.backend}" if model else ""


def engine_facts(pipeline: DepthPipeline | None) -> dict[str, str]:
    """Return the diagnostics lines about the engines of a pipeline."""
    if pipeline is None:
        return {}
    depth, regions = pipeline.depth_model, pipeline.region_model
    facts = summary(depth.engine) if depth else {}
    if regions:
        facts |= {f"of regions: {key}": text for key, text in summary(regions.engine).items()}
    return facts
