# SPDX-License-Identifier: Apache-2.0
"""Optional compilation by numba. Every compiled loop has a NumPy form with the same result.

Machine code is cached beside the source or, if that is read-only, in the user's cache folder. A
cache that is damaged, full or writable by others makes every start take seconds longer, but never
prevents it. The files are pickles and machine code: whoever can write them can run code here. The
checksums below detect damage (by a power cut), not malice.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import os
import stat
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from depth_node.regular_files import read_bytes
from depth_node.sentences import one_line

LANES = 8  # float64 numbers in a vector
_SUMS = ".sums"  # suffix of the file with the checksums of a loop's cache files
_CURE = "set NUMBA_CACHE_DIR to a folder that only you can write"


@functools.cache
def find_numba() -> tuple[Any, str]:
    """Return the module numba and "", or None and the reason why it cannot be used."""
    if find_spec("numba") is None:
        return None, "numba is not installed"
    try:
        import numba
    except Exception as error:  # a version that does not fit NumPy or LLVM fails in many ways
        reason = f"{type(error).__name__}: {one_line(error)}"
        return None, f"numba is installed but cannot be loaded ({reason})"
    return numba, ""


def tuple_of(types: Any, cls: type, *members: Any) -> Any:
    """Return numba's type of a named tuple `cls` with members of these types.

    types: numba.types.
    """
    return types.BaseTuple.from_types(members, cls)


def compiled(
    loop: Callable[..., None], signature: Any = None, *, distinct: bool = False, **options: Any
) -> Callable[..., None]:
    """Return the loop as machine code of numba.

    signature: numba's, such as numba.types.void(numba.types.float64[::1]), or a tuple of several:
    with it the loop is compiled at once, without it at its first call. distinct: the array that the
    loop writes overlaps none of its other arguments, so the code need not check for that (which
    halves the time if rows are short). Raises RuntimeError if numba cannot be used.
    """
    numba, why_not = find_numba()
    if numba is None:
        raise RuntimeError(why_not)
    fast = numba.njit(nogil=True, **options)(loop)
    try:
        fast.enable_caching()
        fast._cache = _CarefulCache(fast._cache, loop.__qualname__)
    except Exception as error:  # no writable folder, or a version of numba with other internals
        _warn_once(
            "no folder",
            "no folder for machine code can be used, so every start compiles again (seconds):"
            f" {_CURE} ({one_line(error)}).",
        )
        fast = numba.njit(nogil=True, **options)(loop)
    if distinct:
        with contextlib.suppress(AttributeError):  # with other internals it is only slower
            fast._compiler._customize_flags = _distinct  # numba has no public option for it
    if signature is not None:
        for each in signature if isinstance(signature, tuple) else (signature,):
            fast.compile(each)
        fast.disable_compile()
    compiled_loop: Callable[..., None] = fast
    return compiled_loop


def _distinct(flags: Any) -> Any:
    with contextlib.suppress(AttributeError):
        flags.noalias = True
    return flags


class _CarefulCache:
    """numba's cache of one loop; faults of the cache do not reach the caller.

    Only completely written files are loaded: a power cut leaves files that are truncated or contain
    zeros, and machine code of zeros would end the process. If a file does not agree with its
    checksum, the loop's files are deleted and it is compiled again.
    """

    def __init__(self, cache: Any, name: str) -> None:
        self._cache = cache
        self._name = name
        self._index = Path(cache._cache_file._index_path)
        self._sums = self._index.with_name(self._index.name + _SUMS)
        self._usable = True
        folder = Path(cache.cache_path)
        # numba has just created this folder with the umask's rights; nobody else needs to read it.
        if folder.name != "__pycache__" and not os.listdir(folder):
            folder.chmod(0o700)
        if folder.stat().st_mode & stat.S_IWOTH:
            raise OSError(f"everybody can write into {folder}")

    def __getattr__(self, name: str) -> Any:  # enable, disable, flush, cache_path
        return getattr(self._cache, name)

    def load_overload(self, signature: Any, context: Any) -> Any:
        """Return the compiled loop, or None if it must be compiled."""
        if not self._usable:
            return None
        try:
            reason = self._fault()
            if not reason:
                return self._cache.load_overload(signature, context)
        except Exception as error:  # pickle and LLVM raise many types
            reason = f"{self._index} ({type(error).__name__}: {one_line(error)})"
        _warn_once(
            f"damaged {self._index}",
            f"numba's cache of the loop {self._name} is damaged, so the loop is compiled anew"
            f" (seconds) and the file replaced: {reason}.",
        )
        self._drop()
        return None

    def save_overload(self, signature: Any, result: Any) -> None:
        """Store a compiled loop; if that fails, warn, and the next start compiles again."""
        if not self._usable:
            return
        try:
            self._cache.save_overload(signature, result)
            temporary = self._sums.with_name(f"{self._sums.name}.{os.getpid()}")
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
            with open(os.open(temporary, flags, 0o600), "w", encoding="utf-8") as file:
                file.writelines(f"{path.name} {_sha256(path)}\n" for path in self._files())
            os.replace(temporary, self._sums)
        except Exception as error:
            self._usable = False
            self._drop()
            _warn_once(
                f"not kept in {self._index.parent}",
                f"machine code cannot be kept in {self._index.parent} ({one_line(error)}), so"
                f" every start compiles again (seconds): make room, or {_CURE}.",
            )

    def _files(self) -> list[Path]:
        """Return the loop's index and machine code files, one per processor and signature."""
        code = self._index.parent.glob(f"{self._index.stem}.*.nbc")
        return sorted(path for path in (self._index, *code) if os.path.lexists(path))

    def _fault(self) -> str:
        """Return which file is not as it was written; "" if none, or if there are no files yet."""
        files = self._files()
        if not files:
            return ""
        if not os.path.lexists(self._sums):
            return f"{self._index} (no checksums, {self._sums.name}, beside it)"
        sums = dict(
            line.rsplit(" ", 1)
            for line in read_bytes(self._sums, 100_000).decode("utf-8").splitlines()
        )
        for path in files:
            if sums.get(path.name) != _sha256(path):
                return f"{path} (its checksum is another)"
        return ""

    def _drop(self) -> None:
        """Delete the loop's files, as far as possible, so that the next start finds none."""
        for path in (*self._files(), self._sums):
            with contextlib.suppress(OSError):
                path.unlink()


def _sha256(path: Path) -> str:
    return hashlib.sha256(read_bytes(path)).hexdigest()


_warned: set[str] = set()


def _warn_once(key: str, text: str) -> None:
    """Warn once per key; the texts of one key may differ, as they name one of a dozen loops."""
    if key not in _warned:
        _warned.add(key)
        logging.getLogger(__name__).warning(text)
