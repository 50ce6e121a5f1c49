# SPDX-License-Identifier: Apache-2.0
"""`fit` of a method as it is defined, without the network that refines it on a robot."""

from __future__ import annotations

import functools

from depth_node import fitting

fit = functools.partial(fitting.fit, refiner=None)
