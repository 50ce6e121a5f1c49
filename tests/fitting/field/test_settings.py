# SPDX-License-Identifier: Apache-2.0
"""Settings are checked, and ablations are no parameters of a robot."""

from __future__ import annotations

import dataclasses

import pytest

from depth_node.config import ConfigError, describe, replace
from depth_node.fitting.field.settings import FieldAblation, FieldConfig
from tests.helpers.field_room import FIELD


def test_settings_are_checked() -> None:
    with pytest.raises(ConfigError, match="compiler"):
        FieldConfig(compiler="fortran")
    with pytest.raises(ConfigError, match="neighbours"):
        FieldAblation(neighbours=1)


def test_ablations_are_no_parameters() -> None:
    parameters = {option.name for option in describe(FieldConfig)}
    switches = {field.name for field in dataclasses.fields(FieldAblation)}
    assert "max_extrapolation" in parameters and "residual" in switches
    assert not parameters & switches
    with pytest.raises(ConfigError, match="residual"):
        replace(FIELD, {"field.residual": False})
