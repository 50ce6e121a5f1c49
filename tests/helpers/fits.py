# SPDX-License-Identifier: Apache-2.0
"""`fit` without the refining network that a robot adds to method `field`."""

from __future__ import annotations

import functools

from depth_node import fitting

fit = functools.partial(fitting.fit, refiner=None)
