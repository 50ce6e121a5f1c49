# SPDX-License-Identifier: Apache-2.0
"""Networks as functions of an image that return a depth map or label map in its coordinates."""

from depth_node.engine.options import ModelConfig
from depth_node.inference.depth import CompletionModel, DepthModel
from depth_node.inference.judge import judge_answer
from depth_node.inference.opening import build_engine, open_configured, open_engine
from depth_node.inference.regions import PromptedRegionModel, RegionModel

__all__ = [
    "CompletionModel",
    "DepthModel",
    "ModelConfig",
    "PromptedRegionModel",
    "RegionModel",
    "build_engine",
    "judge_answer",
    "open_configured",
    "open_engine",
]
