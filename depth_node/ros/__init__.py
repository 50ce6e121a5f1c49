# SPDX-License-Identifier: Apache-2.0
"""The ROS 2 side: the only place that knows topics, frames, parameters and message fields."""
