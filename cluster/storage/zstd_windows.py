"""Reads Zstandard files with windows above 128 MB (``zstd --long=31``), which pyarrow refuses.

The system's libzstd does, where there is one. Its memory is that of the window: up to 2 GB.
"""

import ctypes
import ctypes.util
import functools
from typing import Any

_USUAL = 2**27
"""Largest window that pyarrow reads."""
_WINDOW_LOG_MAX = 100
"""libzstd's name for the parameter."""
_LARGEST_LOG = 31
_BLOCK = 2**20


def is_long(head: bytes) -> bool:
    """Whether the first frame of a file needs a larger window than pyarrow reads (RFC 8878, section 3.1.1.1)."""
    if len(head) < 14:
        return False
    descriptor = head[4]
    if not descriptor & 0b100000:
        exponent, mantissa = head[5] >> 3, head[5] & 7
        return (1 << (10 + exponent)) // 8 * (8 + mantissa) > _USUAL
    # A single segment: the window is the whole content, whose size follows the dictionary's number.
    start = 5 + (0, 1, 2, 4)[descriptor & 3]
    size = (1, 2, 4, 8)[descriptor >> 6]
    return size >= 4 and int.from_bytes(head[start : start + size], "little") > _USUAL


def available() -> bool:
    """Whether this machine has the library."""
    return _library() is not None


class _Buffer(ctypes.Structure):
    """ZSTD_inBuffer and ZSTD_outBuffer."""

    _fields_ = (("data", ctypes.c_void_p), ("size", ctypes.c_size_t), ("position", ctypes.c_size_t))


class LongWindowStream:
    """The decompressed bytes of a stream.

    Raises:
        OSError: while it is read: the data is cut or damaged.
    """

    def __init__(self, raw: Any) -> None:
        self._raw, self._library = raw, _library()
        self._context = ctypes.c_void_p(self._library.ZSTD_createDCtx())
        self._check(self._library.ZSTD_DCtx_setParameter(self._context, _WINDOW_LOG_MAX, _LARGEST_LOG))
        self._given = ctypes.create_string_buffer(_BLOCK)
        self._source = _Buffer(ctypes.addressof(self._given), 0, 0)
        self._in_frame = 0

    def __del__(self) -> None:
        self._library.ZSTD_freeDCtx(self._context)

    def read(self, size: int) -> bytes:
        """At most this many bytes; none at the end."""
        out = ctypes.create_string_buffer(size)
        target = _Buffer(ctypes.addressof(out), size, 0)
        while not target.position:
            there_is_more = self._fill()
            if not there_is_more and not self._in_frame:
                break
            # Without input, it still gives what did not fit into the last output.
            code = self._library.ZSTD_decompressStream(self._context, ctypes.byref(target), ctypes.byref(self._source))
            self._in_frame = self._check(code)
            if not there_is_more and not target.position and self._in_frame:
                raise OSError("Truncated compressed stream")
        return ctypes.string_at(out, target.position)

    def _fill(self) -> bool:
        """Whether there is something to decompress."""
        if self._source.position < self._source.size:
            return True
        block = self._raw.read(_BLOCK)
        ctypes.memmove(self._given, block, len(block))
        self._source.size, self._source.position = len(block), 0
        return bool(block)

    def _check(self, code: int) -> int:
        if self._library.ZSTD_isError(code):
            raise OSError(f"ZSTD decompress failed: {self._library.ZSTD_getErrorName(code).decode()}")
        return code


@functools.cache
def _library() -> Any:
    name = ctypes.util.find_library("zstd")
    if name is None:
        return None
    library = ctypes.CDLL(name)
    pointer, size = ctypes.c_void_p, ctypes.c_size_t
    for function, result, arguments in (
        ("ZSTD_createDCtx", pointer, ()),
        ("ZSTD_freeDCtx", size, (pointer,)),
        ("ZSTD_DCtx_setParameter", size, (pointer, ctypes.c_int, ctypes.c_int)),
        ("ZSTD_decompressStream", size, (pointer, pointer, pointer)),
        ("ZSTD_isError", ctypes.c_uint, (size,)),
        ("ZSTD_getErrorName", ctypes.c_char_p, (size,)),
    ):
        found = getattr(library, function)
        found.restype, found.argtypes = result, arguments
    return library
