# SPDX-License-Identifier: Apache-2.0
"""Optional compilation by numba. Every compiled loop has a NumPy form of the same result.

Machine code is cached beside the source or, if that is read-only, in the user's cache folder.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any


@functools.cache
def find_numba() -> tuple[Any, str]:
    """The module numba and "", or None and the reason why it cannot be used."""
    if find_spec("numba") is None:
        return None, "numba is not installed"
    try:
        import numba
    except Exception as error:  # a version that does not fit NumPy or LLVM fails in many ways
        reason = " ".join(str(error).split())
        return None, f"numba is installed but cannot be loaded ({type(error).__name__}: {reason})"
    return numba, ""


def compiled(
    loop: Callable[..., None], signature: Any = None, **options: Any
) -> Callable[..., None]:
    """The loop as machine code of numba, which must be there.

    signature: numba's, such as numba.types.void(numba.types.float64[::1]): with it the loop is
    compiled at once, without it at its first call. Raises RuntimeError without numba.
    """
    numba, why_not = find_numba()
    if numba is None:
        raise RuntimeError(why_not)
    signatures = [] if signature is None else [signature]
    fast: Callable[..., None]
    try:
        fast = numba.njit(*signatures, cache=True, nogil=True, **options)(loop)
    except RuntimeError as error:
        if "cannot cache" not in str(error):
            raise
        _warn_once(
            "no folder for machine code can be written, so every start compiles again (seconds):"
            " set NUMBA_CACHE_DIR to a folder that can be written."
        )
        fast = numba.njit(*signatures, nogil=True, **options)(loop)
    return fast


@functools.cache
def _warn_once(text: str) -> None:
    logging.getLogger(__name__).warning(text)
