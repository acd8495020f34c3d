"""The head's CUDA kernel: its argument, its launch, and what a compiled one takes.

The source is ``native/cuda/``; ``head_pixel.h`` holds the arithmetic, which a host loop shares so
that its numbers are proven without a GPU. Nothing here needs CUDA.
"""

import ctypes
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final

import numpy as np
import numpy.typing as npt

from edgeseg.errors import ArtefactError
from edgeseg.scoring.head import HEAD_KINDS, Head
from edgeseg.scoring.scorers import FLOAT16_MAX, SCORERS, score_range

__all__ = ["SOURCES", "CudaHead", "Launch", "Resources", "kernel_argument", "launch", "resources"]

SOURCES: Final = Path(__file__).parent / "native" / "cuda"
KERNEL: Final = "edgeseg_head"

_THREADS: Final = 128
_ROWS: Final = 4
_REGISTER_COUNT: Final = 0x2F  # EIATTR_REGCOUNT
_FRAME_SIZE: Final = 0x11  # EIATTR_FRAME_SIZE
_KERNEL_SIZES: Final = {"deconv2x2": 2, "deconv3x3": 3}

Float32 = npt.NDArray[np.float32]


class CudaHead(ctypes.Structure):
    """``struct cuda_head`` of ``head_pixel.h``; pointers are addresses on the GPU, or on the host
    for the host loop.
    """

    _fields_: ClassVar[Sequence[tuple[str, Any]]] = [
        ("features", ctypes.c_void_p),
        ("channel_stride", ctypes.c_int),
        ("row_stride", ctypes.c_int),
        ("column_stride", ctypes.c_int),
        ("channels", ctypes.c_int),
        ("height", ctypes.c_int),
        ("width", ctypes.c_int),
        ("kind", ctypes.c_int),
        ("factor", ctypes.c_int),
        ("known", ctypes.c_int),
        ("void_index", ctypes.c_int),
        ("scorer", ctypes.c_int),
        ("weight", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("prototypes", ctypes.c_void_p),
        ("negative_scale", ctypes.c_float),
        ("temperature", ctypes.c_float),
        ("inverse_temperature", ctypes.c_float),
        ("lowest", ctypes.c_float),
        ("highest", ctypes.c_float),
        ("class_map", ctypes.c_void_p),
        ("score_half", ctypes.c_void_p),
        ("score_float", ctypes.c_void_p),
    ]


@dataclass(frozen=True, slots=True)
class Launch:
    """Grid, block and shared memory of one frame."""

    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared_bytes: int


@dataclass(frozen=True, slots=True)
class Resources:
    """What a compiled kernel takes, as its cubin says."""

    registers: int
    """Of a thread."""
    static_shared_bytes: int
    """Of a block, beside :attr:`Launch.shared_bytes`."""
    local_bytes: int
    """Of a thread: registers that were spilled to memory, and arrays that found no registers."""


def packed_weights(head: Head) -> tuple[Float32, Float32, Float32]:
    """Weights ``[k, k, C_in, C_out]``, bias and prototypes as the kernel reads them; empty arrays
    where the head has none.
    """
    none = np.zeros(0, np.float32)
    weight = none if head.weight is None else head.weight.transpose(2, 3, 0, 1)
    bias = none if head.bias is None else head.bias
    prototypes = none if head.isomax is None else head.isomax.prototypes
    return (
        np.ascontiguousarray(weight, np.float32),
        np.ascontiguousarray(bias, np.float32),
        np.ascontiguousarray(prototypes, np.float32),
    )


def kernel_argument(
    head: Head, height: int, width: int, scorer: str, temperature: float
) -> CudaHead:
    """The kernel's argument for frames of ``height`` x ``width``, its pointers still null."""
    rows, columns = height // head.factor, width // head.factor
    channels = head.channels_in
    low, high = score_range(scorer, head.num_known)
    first = head.layout == "nchw"
    return CudaHead(
        channel_stride=rows * columns if first else 1,
        row_stride=columns if first else columns * channels,
        column_stride=1 if first else channels,
        channels=channels,
        height=rows,
        width=columns,
        kind=HEAD_KINDS.index(head.kind),
        factor=head.factor,
        known=head.num_known,
        void_index=-1 if head.void_index is None else head.void_index,
        scorer=SCORERS.index(scorer),
        negative_scale=0.0 if head.isomax is None else -abs(head.isomax.distance_scale),
        temperature=temperature,
        inverse_temperature=1 / temperature,
        lowest=max(low, -FLOAT16_MAX),
        highest=high,
    )


def launch(head: Head, height: int, width: int) -> Launch:
    """How to start the kernel on frames of ``height`` x ``width``.

    A block takes 128 pairs of pixels in four rows of one parity, with those kernel rows of a
    transposed convolution in shared memory that rows of this parity use.
    """
    size = _KERNEL_SIZES.get(head.kind, 0)
    # Odd rows of a 3x3 kernel need all of it, rows of a 2x2 kernel half.
    taps = {0: 0, 2: 2, 3: 9}[size]
    return Launch(
        grid=(-(-width // (2 * _THREADS)), 2 * -(-height // (2 * _ROWS)), 1),
        block=(_THREADS, 1, 1),
        shared_bytes=4 * taps * head.channels_in * head.num_outputs,
    )


def resources(cubin: bytes) -> Resources:
    """Registers, shared and local memory of the kernel in a cubin.

    Raises:
        ArtefactError: it is no cubin, or holds another kernel.
    """
    try:
        sections = _sections(cubin)
        info = sections[".nv.info"]
        registers, local = _largest(info, _REGISTER_COUNT), _largest(info, _FRAME_SIZE)
        if f".text.{KERNEL}" not in sections:
            raise KeyError(KERNEL)
    except (KeyError, IndexError, ValueError, struct.error, UnicodeDecodeError):
        raise ArtefactError(
            f"this is not a cubin with the kernel '{KERNEL}'; compile native/cuda/head.cu again"
        ) from None
    return Resources(registers, len(sections.get(f".nv.shared.{KERNEL}", b"")), local)


def _sections(cubin: bytes) -> dict[str, bytes]:
    """Sections of a 64-bit little-endian ELF file, by name."""
    if cubin[:6] != b"\x7fELF\x02\x01":
        raise ValueError("ELF")
    (offset,) = struct.unpack_from("<Q", cubin, 0x28)
    size, count, names = struct.unpack_from("<HHH", cubin, 0x3A)
    headers = []
    for index in range(count):
        name, kind, _, _, at, length = struct.unpack_from("<IIQQQQ", cubin, offset + index * size)
        headers.append((name, kind, at, length))
    _, _, at, length = headers[names]
    strings = cubin[at : at + length]
    found = {}
    for name, kind, at, length in headers:
        text = strings[name : strings.index(b"\0", name)].decode()
        no_bits = 8  # takes memory and no room in the file
        found[text] = bytes(length) if kind == no_bits else cubin[at : at + length]
    return found


def _largest(info: bytes, wanted: int) -> int:
    """An attribute of the kernel, or of a function that it calls where that has more.

    Entries: format, attribute, and a value or a size and its bytes; here a symbol and a number.
    """
    at, found = 0, []
    while at + 4 <= len(info):
        form, attribute, size = struct.unpack_from("<BBH", info, at)
        at += 4
        sized = 4
        if form == sized:
            if attribute == wanted:
                found.append(int(struct.unpack_from("<II", info, at)[1]))
            at += size
    return max(found)
