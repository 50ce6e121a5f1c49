# SPDX-License-Identifier: Apache-2.0
"""numba, where it is installed and goes with this NumPy. Whoever compiles has a NumPy form too."""

from __future__ import annotations

import functools
from importlib.util import find_spec
from typing import Any


@functools.cache
def find_numba() -> tuple[Any, str]:
    """The module and "", or None and why it cannot be used."""
    if find_spec("numba") is None:
        return None, "numba is not installed"
    try:
        import numba
    except Exception as error:  # of another age than NumPy or LLVM it fails in many ways
        said = " ".join(str(error).split())
        return None, f"numba is installed but cannot be loaded ({type(error).__name__}: {said})"
    return numba, ""
