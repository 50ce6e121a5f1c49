# SPDX-License-Identifier: Apache-2.0
"""The one sentence with which something is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from depth_node.engine import EngineError


def refusal(call: Callable[[], Any]) -> str:
    """The EngineError of a call; it must be one line."""
    with pytest.raises(EngineError) as caught:
        call()
    sentence = str(caught.value)
    assert "\n" not in sentence
    return sentence
