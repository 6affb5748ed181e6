"""The few calls of the CUDA driver that take and give back memory; needs no package, only the driver."""

from __future__ import annotations

import ctypes

_LIBRARY = "libcuda.so.1"


class CudaError(OSError):
    """The CUDA driver refused a call."""


class Cuda:
    """A context on the first visible device, and the memory taken in it."""

    __slots__ = ("_blocks", "_library")

    def __init__(self) -> None:
        """
        Raises:
            OSError: There is no CUDA driver or no device.
        """
        self._library = ctypes.CDLL(_LIBRARY)
        self._blocks: list[ctypes.c_uint64] = []
        device, context = ctypes.c_int(), ctypes.c_void_p()
        self._call("cuInit", ctypes.c_uint(0))
        self._call("cuDeviceGet", ctypes.byref(device), ctypes.c_int(0))
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        self._call("cuCtxSetCurrent", context)

    def take(self, size: int) -> None:
        """Takes ``size`` bytes of the device's memory and writes to all of them."""
        block = ctypes.c_uint64()
        self._call("cuMemAlloc_v2", ctypes.byref(block), ctypes.c_size_t(size))
        self._blocks.append(block)
        self._call("cuMemsetD8_v2", block, ctypes.c_ubyte(1), ctypes.c_size_t(size))
        self._call("cuCtxSynchronize")

    def give_back(self) -> None:
        """Gives the block back that was taken last."""
        self._call("cuMemFree_v2", self._blocks.pop())

    def _call(self, name: str, *arguments: object) -> None:
        code: int = getattr(self._library, name)(*arguments)
        if code != 0:
            raise CudaError(f"{name} failed with code {code}")
