# SPDX-License-Identifier: Apache-2.0
"""The error message with which a call is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from depth_node.engine import EngineError


def refusal(call: Callable[[], Any]) -> str:
    """Return the message of the EngineError that a call raises; it must be one line."""
    with pytest.raises(EngineError) as caught:
        call()
    sentence = str(caught.value)
    assert "\n" not in sentence
    return sentence
