# SPDX-License-Identifier: Apache-2.0
"""The lifecycle node: topics, parameters and transitions; the method itself is DepthPipeline."""

from __future__ import annotations

import sys
import time
from contextlib import ExitStack
from typing import Any

from rcl_interfaces.msg import SetParametersResult
from rclpy.clock import Clock, ClockType
from rclpy.lifecycle import LifecycleState, TransitionCallbackReturn
from rclpy.parameter import Parameter
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import Header
from std_srvs.srv import SetBool, Trigger

from depth_node.config import ConfigError
from depth_node.engine.sharing import Opener
from depth_node.inference import open_configured
from depth_node.monitor import Monitor, Situation
from depth_node.pipeline import DepthPipeline
from depth_node.ros import messages
from depth_node.ros.image_work import ImageWork, Parts, PendingImage
from depth_node.ros.inputs.camera import CameraInput
from depth_node.ros.inputs.lidar import LidarInput, UnreadScan
from depth_node.ros.inputs.shared_topics import SharedTopics
from depth_node.ros.inputs.subscriptions import INPUTS, Inputs, input_types, topic_clashes
from depth_node.ros.messages import LidarScan, place
from depth_node.ros.outputs.extrinsics_watch import LiveWatch
from depth_node.ros.outputs.health import Health, backend, engine_facts
from depth_node.ros.outputs.publishers import Outputs, full_name
from depth_node.ros.outputs.results import OUTPUTS
from depth_node.ros.parameters import NodeParameters
from depth_node.ros.process.bond import ManagerBond
from depth_node.ros.process.guarded_node import (
    GuardedLifecycleNode,
    describe_exception,
    logged_transition,
)
from depth_node.ros.process.logs import forward_logs
from depth_node.ros.process.nodes import run
from depth_node.ros.process.worker import LatestWorker, Pace
from depth_node.ros.settings import NEEDS_CLEANUP, NEEDS_DEACTIVATE, NodeConfig
from depth_node.ros.transforms.extrinsics import Extrinsics
from depth_node.ros.transforms.poses import Poses
from depth_node.ros.transforms.tf import SharedTransforms, TfSource, TransformSource

_CLOSE_TIMEOUT_S = 30.0
_SUCCESS, _FAILURE = TransitionCallbackReturn.SUCCESS, TransitionCallbackReturn.FAILURE


class DepthNode(GuardedLifecycleNode):
    """A lifecycle node with camera images and LiDAR points as inputs and metric depth as output."""

    def __init__(
        self,
        opener: Opener = open_configured,
        lidars: SharedTopics | None = None,
        transforms: SharedTransforms | None = None,
        **node_arguments: Any,
    ) -> None:
        """opener: opens the networks. lidars: subscribes to the LiDARs. transforms: listens to TF.

        None: the node does it itself. The cameras of a process share all three
        (depth_node.ros.cameras).
        """
        super().__init__("depth_node", **node_arguments)
        self._opener, self._shared_lidars = opener, lidars
        self._transforms = transforms or SharedTransforms(self.make_transform_source)
        self._settings = NodeParameters(self)
        self._monitor = Monitor()
        self._camera = CameraInput(
            self.resolve_topic_name("image"),
            self.resolve_topic_name("camera_info"),
            self.warn_throttled,
        )
        self._enabled = True
        self._image_work = ImageWork(self, self._camera, self._monitor)
        self._health: Health | None = None
        self._pipeline: DepthPipeline | None = None
        self._lidar: LidarInput | None = None
        self._poses: Poses | None = None
        self._worker: LatestWorker[PendingImage] | None = None
        self._outputs: Outputs | None = None
        self._bond: ManagerBond | None = None
        self._watch: LiveWatch | None = None
        self._inputs: Inputs | None = None
        self._housekeeping: list[Any] = []
        self._newest_ns, self._pace = 0, Pace()
        self.add_on_set_parameters_callback(self._on_parameters)
        self.get_logger().info("depth_node is up and unconfigured")

    @property
    def config(self) -> NodeConfig:
        """The present settings."""
        return self._settings.config

    # --- life ------------------------------------------------------------------------------------

    @logged_transition
    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Check parameters, open engines and poses; FAILURE with a logged sentence on an error."""
        try:
            self._check_parameters()
            config = self._settings.config
            self._poses = Poses.of(config, self._transforms, self.warn_throttled)
            self._lidar = self._make_lidar(config, self._poses.extrinsics)
            with forward_logs(self.get_logger()):
                self._pipeline = DepthPipeline(config, opener=self._opener)
                self._pipeline.warm_up()
        except Exception as error:
            self._release()
            kind = "" if isinstance(error, (ConfigError, RuntimeError)) else f"{_kind(error)}: "
            self.get_logger().error(f"cannot be configured: {kind}{error}")
            return _FAILURE
        self._health = Health(self, self._monitor)
        self._housekeeping = [
            # A steady clock, so that the diagnostics continue while a simulation is paused.
            self.create_timer(1.0, self._on_timer, clock=Clock(clock_type=ClockType.STEADY_TIME)),
            self.create_service(Trigger, "~/reset", self._on_reset),
            self.create_service(SetBool, "~/enable", self._on_enable),
        ]
        self.get_logger().info(f"configured: {backend(self._pipeline)}, fit {config.fit.method}")
        return _SUCCESS

    @logged_transition
    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Create publishers and subscriptions, and start the worker."""
        config = self._settings.config
        self._forget()
        self._camera.forget()
        self._image_work.begin()
        self._monitor.reset(time.monotonic())
        self._worker = LatestWorker(self._work, self._image_work.failed, "depth_node_worker")
        try:
            self._outputs = Outputs(self)
            self._watch = LiveWatch(self, config.extrinsics_cpu_share, self._on_watch_failure)
            self._inputs = Inputs(self)
            # The image last: of messages that wait together, points are then taken before it.
            for topic, kind in input_types(config).items():
                if topic in config.lidar_sources:
                    self._subscribe_lidar(self._inputs, kind, topic)
                else:
                    callback = self._on_info if kind is CameraInfo else self._on_image
                    self._inputs.subscribe(kind, topic, callback)
            self._hear_latched_info()
            if config.bond:
                self._bond = ManagerBond(self)
        except Exception as error:
            self._stop_io()
            self.get_logger().error(f"cannot be activated: {_kind(error)}: {error}")
            return _FAILURE
        return _SUCCESS

    @logged_transition
    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """End the worker, remove publishers and subscriptions."""
        self._stop_io()
        return _SUCCESS

    @logged_transition
    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Free the engines, the services and the hold on TF."""
        self._release()
        return _SUCCESS

    @logged_transition
    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Release everything; may be called in any state."""
        self._release()
        return _SUCCESS

    @logged_transition
    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Release everything and return to unconfigured."""
        self._release()
        return _SUCCESS

    def destroy_node(self) -> None:
        """End the worker and free the engines before the node itself."""
        self._release()
        super().destroy_node()

    def bring_up(self) -> None:
        """Configure and, if that succeeds, activate; for the thread of the callbacks."""
        if self.trigger_configure() == _SUCCESS:
            self.trigger_activate()

    def _stop_io(self) -> None:
        with ExitStack() as steps:  # all run, the last one first, even if one raises
            steps.callback(self._forget)
            if self._outputs is not None:
                steps.callback(self._outputs.close)
                self._outputs = None
            if self._watch is not None:
                steps.callback(self._watch.take_down, _CLOSE_TIMEOUT_S)
                self._watch = None
            if self._inputs is not None:
                steps.callback(self._inputs.close)
                self._inputs = None
            if self._worker is not None:
                steps.callback(self._end_worker, self._worker)
                self._worker = None
            if self._bond is not None:
                steps.callback(self._bond.close)
                self._bond = None

    def _end_worker(self, worker: LatestWorker[PendingImage]) -> None:
        if not worker.close(_CLOSE_TIMEOUT_S):
            self.get_logger().error(f"the worker is still busy after {_CLOSE_TIMEOUT_S:g} s")

    def _release(self) -> None:
        with ExitStack() as steps:
            steps.callback(self._free)
            self._stop_io()

    def _free(self) -> None:
        with ExitStack() as steps:
            if self._pipeline is not None:
                steps.callback(self._pipeline.close)
                self._pipeline = None
            self._lidar = None
            if self._poses is not None:
                steps.callback(self._poses.close)
                self._poses = None
            if self._health is not None:
                steps.callback(self._health.close)
                self._health = None
            if self._housekeeping:
                timer, *services = self._housekeeping
                for service in services:
                    steps.callback(self.destroy_service, service)
                steps.callback(self.destroy_timer, timer)
                self._housekeeping = []

    def _forget(self) -> None:
        """Forget all earlier messages and results, at a new activation or a reset."""
        if self._lidar is not None:
            self._lidar.clear()
        if self._pipeline is not None:
            self._pipeline.reset()
        if self._watch is not None:
            self._watch.reset()
        self._image_work.forget()
        self._newest_ns, self._pace = 0, Pace()

    # --- parameters ------------------------------------------------------------------------------

    def _check_parameters(self) -> None:
        topics = {full_name(self, name): "publisher" for name in OUTPUTS}
        topics |= {self.resolve_topic_name(name): "subscription" for name in INPUTS}
        wrong, foreign = self._settings.unknown(topics)
        sentences = [
            *self._settings.problems.values(),
            *wrong,
            *topic_clashes(self, self._settings.config),
        ]
        if foreign:
            self.get_logger().warning(foreign)
        if sentences:
            raise ConfigError("; ".join(sentences))
        if not self._settings.config.model.path:
            raise ConfigError("model.path is empty: name an .onnx file, or embedded")

    def set_parameters_atomically(self, parameter_list: list[Parameter]) -> SetParametersResult:
        """See rclpy.node.Node. Values may have the types of the documentation, which ROS may not
        infer.

        A parameter that already has the value is not changed.
        """
        settings: NodeParameters | None = self.__dict__.get("_settings")
        if settings is None:  # rclpy's own parameters, before ours
            return super().set_parameters_atomically(parameter_list)
        for name in (parameter.name for parameter in parameter_list):
            if not self.has_parameter(name):  # rclpy accepts an empty name
                return SetParametersResult(successful=False, reason=settings.unknown_name(name))
        changes = settings.changes(parameter_list)
        if not changes:
            return SetParametersResult(successful=True)
        return super().set_parameters_atomically(changes)

    def _on_parameters(self, parameters: list[Parameter]) -> SetParametersResult:
        try:
            old, new = self._settings.config, self._settings.changed(parameters)
            self._refuse_what_needs_more(parameters)
            if self._lidar is not None and self._pipeline is not None and new != old:
                self._apply(self._lidar, self._pipeline, old, new)
        except ConfigError as error:
            return SetParametersResult(successful=False, reason=str(error))
        except Exception as error:
            return SetParametersResult(successful=False, reason=describe_exception(error))
        self._settings.accept(new, parameters)
        return SetParametersResult(successful=True)

    def _apply(
        self, lidar: LidarInput, pipeline: DepthPipeline, old: NodeConfig, new: NodeConfig
    ) -> None:
        """Apply other settings from the next frame on; all of them, or none if one is refused."""
        before = self._poses
        assert before is not None
        poses = before.changed(old, new, self._transforms, self.warn_throttled)
        try:
            pipeline.reconfigure(new)  # raises for a method that the network does not support
        except Exception:
            poses.close(kept=before)
            raise
        self._poses = poses
        before.close(kept=poses)
        extrinsics = poses.extrinsics
        if extrinsics is not lidar.extrinsics:
            pipeline.reset()  # its memory has metres of the old extrinsics
        extrinsics.set_tolerance(new.tf_tolerance_s)
        times = (new.max_scan_age_s, new.lidar_time_offset_s)
        if times != (old.max_scan_age_s, old.lidar_time_offset_s):
            self._lidar = self._make_lidar(new, extrinsics)
        else:
            lidar.extrinsics = extrinsics
            lidar.scans_per_image = new.scans_per_image
            lidar.relative_noise = new.relative_noise()
        if self._watch is not None:
            self._watch.share = new.extrinsics_cpu_share
            if times != (old.max_scan_age_s, old.lidar_time_offset_s):
                self._watch.reset()

    def _refuse_what_needs_more(self, parameters: list[Parameter]) -> None:
        for name in (parameter.name for parameter in parameters):
            if self._pipeline is not None and name.startswith(NEEDS_CLEANUP):
                raise ConfigError(
                    f"{name} needs a new engine: deactivate and clean up the node, set it, then"
                    " configure and activate again"
                )
            if self._worker is not None and name in NEEDS_DEACTIVATE:
                raise ConfigError(
                    f"{name} needs new subscriptions: deactivate the node, set it, activate again"
                )

    def make_transform_source(self) -> TransformSource:
        """Return the TF of a node that does not share it. Raises ImportError without tf2_ros."""
        return TfSource(self)

    def _make_lidar(self, config: NodeConfig, extrinsics: Extrinsics) -> LidarInput:
        lidar = LidarInput(
            extrinsics,
            config.max_scan_age_s,
            config.scans_per_image,
            self._on_scan_refusal,
            self.get_logger().warning,
        )
        lidar.time_offset_s = config.lidar_time_offset_s
        lidar.relative_noise = config.relative_noise()
        lidar.registered, lidar.echoing = frozenset({"depth"}), frozenset({"range"})
        return lidar

    # --- callbacks of the executor: they only store messages; the worker processes them ----------

    def _subscribe_lidar(self, inputs: Inputs, kind: type, topic: str) -> None:
        def take(scan: UnreadScan) -> None:
            self._on_lidar(scan, topic)

        readers = {"depth": self._depth_scan, "range": messages.range_scan}
        if topic in readers:  # never shared: a depth image needs this camera's calibration
            read = readers[topic]
            inputs.subscribe(kind, topic, lambda message: take(UnreadScan(message, read)))
        elif self._shared_lidars is None:
            inputs.subscribe(kind, topic, lambda message: take(UnreadScan(message)))
        else:
            inputs.share(self._shared_lidars, kind, topic, take)

    def _depth_scan(self, message: Image) -> LidarScan:
        return messages.depth_image_scan(message, self._camera.calibration(self._settings.config))

    def _on_info(self, message: CameraInfo) -> None:
        self._monitor.camera_info(time.monotonic())
        self._camera.info = message

    def _on_latched_info(self, message: CameraInfo) -> None:
        if self._camera.info is None:
            self._camera.info = message

    def _hear_latched_info(self) -> None:
        if self._inputs is not None and self._camera.info is None:
            self._inputs.subscribe_latched_info(self._on_latched_info)

    def _on_lidar(self, scan: UnreadScan, topic: str) -> None:
        self._monitor.scan(time.monotonic())
        lidar = self._lidar
        if lidar is None or not self._enabled:
            return
        stamp_ns = self._stamp(scan.header, "LiDAR")
        if messages.stamp_ns(scan.header.stamp) and topic not in lidar.registered:
            stamp_ns += round(lidar.time_offset_s * 1e9)
        idle = self._outputs is None or not self._outputs.topics_with_subscribers()
        lidar.offer(stamp_ns, scan, topic, self._clock_s(), idle)

    def _on_image(self, message: Image | CompressedImage) -> None:
        now_s = time.monotonic()
        self._monitor.image(now_s)
        if self._worker is None or not self._enabled:
            return
        stamp_ns = self._stamp(message.header, "image")
        behind_s = (self._newest_ns - stamp_ns) * 1e-9
        if behind_s > self._settings.config.max_scan_age_s:
            self.warn_throttled("jump", f"time jumped back by {behind_s:.1f} s (a bag that loops?)")
            self._newest_ns, self._pace = (
                0,
                Pace(),
            )  # LidarInput detects it by the scans' own stamps
            self._transforms.forget_moving()
        self._newest_ns = max(self._newest_ns, stamp_ns)
        if self._outputs is None or not self._outputs.topics_with_subscribers():
            self._monitor.skipped_no_subscribers(now_s)
        elif not self._pace.due(stamp_ns, self._settings.config.max_rate_hz):
            self._monitor.skipped_rate_limit(now_s)
        elif self._worker.offer(PendingImage(message, stamp_ns, now_s, self._clock_s())):
            self._monitor.dropped(now_s)

    def _clock_s(self) -> float:
        """Return the time for arrivals, s.

        This is simulated time where it is used, so that a bag may be played slowly or paused,
        otherwise a monotonic clock.
        """
        clock = self.get_clock()
        simulated = getattr(clock, "ros_time_is_active", False)
        return clock.now().nanoseconds * 1e-9 if simulated else time.monotonic()

    def _stamp(self, header: Header, what: str) -> int:
        """Return the stamp in ns; the time of arrival if the publisher sets none."""
        stamp_ns = messages.stamp_ns(header.stamp)
        if stamp_ns == 0:
            self.warn_throttled(
                f"zero {what}",
                f"{what} messages have stamp 0, so their time of arrival is taken for matching:"
                " let the driver set header.stamp",
            )
            stamp_ns = self.get_clock().now().nanoseconds
        return stamp_ns

    def _on_reset(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        self._forget()
        if self._poses is not None:
            self._poses.forget()
        self._transforms.forget_moving()
        if self._worker is not None:
            self._worker.clear()
        self._monitor.reset(time.monotonic())
        response.success, response.message = (
            True,
            "images, scans, transforms and counters forgotten",
        )
        return response

    def _on_enable(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        self._enabled = bool(request.data)
        if not self._enabled and self._worker is not None:
            self._worker.clear()
        response.success, response.message = True, "enabled" if self._enabled else "disabled"
        return response

    def _on_timer(self) -> None:
        self._hear_latched_info()
        active, health = self._worker is not None, self._health
        if health is None:
            return
        hint = ""
        if active:
            frames = self._lidar.frames() if self._lidar is not None else {}
            calibrated = self._camera.info is not None
            hint = health.doubt_inputs(self._settings.config, frames, calibrated)
        extrinsics, misplaced = self._watch.report() if self._watch is not None else ({}, "")
        subscribed = self._outputs.topics_with_subscribers() if self._outputs is not None else ()
        situation = Situation(
            active=active,
            enabled=self._enabled,
            subscribers=len(subscribed),
            backend=backend(self._pipeline),
            image_topic=self.resolve_topic_name("image"),
            engine=engine_facts(self._pipeline),
            input_hint=hint,
            extrinsics=extrinsics,
            misplaced=misplaced,
        )
        health.publish(situation, self._settings.config.model.path)

    # --- the worker's thread: see ImageWork ------------------------------------------------------

    def _work(self, pending: PendingImage) -> None:
        pipeline, lidar, poses, outputs = self._pipeline, self._lidar, self._poses, self._outputs
        if pipeline is None or lidar is None or poses is None or outputs is None:
            return  # deactivated meanwhile
        parts = Parts(self._settings.config, pipeline, lidar, poses, outputs, self._watch)
        self._image_work.run(pending, parts)

    def _on_scan_refusal(self, error: ValueError) -> None:
        self._monitor.scan_refused(time.monotonic(), str(error))
        self.warn_throttled(place(error), str(error))

    def _on_watch_failure(self, error: Exception) -> None:
        self.warn_throttled("extrinsics watch", f"a frame was not judged: {error!r}")


def _kind(error: BaseException) -> str:
    return type(error).__name__


def main(arguments: list[str] | None = None) -> int:
    """Run the node until SIGINT or SIGTERM; return the exit status 0 then."""
    return run(arguments, lambda: [DepthNode()])


if __name__ == "__main__":
    sys.exit(main())
