# SPDX-License-Identifier: Apache-2.0
"""The room that the tests of method `field` measure."""

from __future__ import annotations

import pytest

from tests.helpers.field_room import Room, make_room


@pytest.fixture(scope="package")
def room() -> Room:
    return make_room()
