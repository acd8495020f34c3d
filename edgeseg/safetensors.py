"""A small reader and writer of the safetensors format, numpy arrays only.

The device needs to read one file of a few kilobytes; this keeps the format's own package off it.
The format: little-endian uint64 header length, a JSON header that maps names to dtype, shape and
byte range, then the data. Only the dtypes that the bundle uses are known.
"""

import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from edgeseg.errors import ArtefactError

__all__ = ["read_safetensors", "write_safetensors"]

_DTYPES: Final = {"F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I8": "<i1", "U8": "<u1"}
_NAMES: Final = {np.dtype(code): name for name, code in _DTYPES.items()}
_MAX_HEADER: Final = 16 << 20
_MAX_BYTES: Final = 512 << 20
_MAX_SIDES: Final = 8


def write_safetensors(tensors: Mapping[str, npt.NDArray[Any]]) -> bytes:
    """Serialize ``tensors`` in sorted order; the same tensors give the same bytes."""
    header: dict[str, Any] = {}
    chunks: list[bytes] = []
    offset = 0
    for name in sorted(tensors):
        array = np.asarray(tensors[name])
        dtype = array.dtype.newbyteorder("<")
        content = array.astype(dtype).tobytes()  # in C order, whatever the strides are
        header[name] = {
            "dtype": _NAMES[dtype],
            "shape": list(array.shape),
            "data_offsets": [offset, offset + len(content)],
        }
        chunks.append(content)
        offset += len(content)
    text = json.dumps(header, separators=(",", ":"), sort_keys=True).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + b"".join(chunks)


def read_safetensors(path: Path) -> dict[str, npt.NDArray[Any]]:
    """Read every tensor of a file.

    Raises:
        ArtefactError: the file is missing, truncated, malformed, larger than 512 MiB or holds a
            dtype that is not known here.
    """
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ValueError("size")
        return _parse(path.read_bytes())
    except OSError as error:
        raise ArtefactError(
            f"'{path}' cannot be read ({error.strerror}); copy it again or export it again"
        ) from None
    except (
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        OverflowError,
        RecursionError,
        struct.error,
    ):
        raise ArtefactError(
            f"'{path}' is not a valid safetensors file; copy it again or export it again"
        ) from None


def _parse(content: bytes) -> dict[str, npt.NDArray[Any]]:
    (length,) = struct.unpack_from("<Q", content)
    if length > min(_MAX_HEADER, len(content) - 8):
        raise ValueError("header length")
    header = json.loads(content[8 : 8 + length])
    data = memoryview(content)[8 + length :]
    tensors: dict[str, npt.NDArray[Any]] = {}
    ranges: list[tuple[int, int]] = []
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        dtype = np.dtype(_DTYPES[entry["dtype"]])
        shape = [_integer(side) for side in entry["shape"]]
        begin, end = (_integer(v) for v in entry["data_offsets"])
        # Bounded before they are multiplied: products of a file's numbers could be as long as it.
        if len(shape) > _MAX_SIDES or not all(0 <= side <= len(data) for side in shape):
            raise ValueError("shape")
        if not 0 <= begin <= end <= len(data):
            raise ValueError("range")
        count = math.prod(shape)
        if count * dtype.itemsize != end - begin:
            raise ValueError("size")
        ranges.append((begin, end))
        tensors[name] = np.frombuffer(data[begin:end], dtype=dtype).reshape(shape)
    # The format allows neither holes nor overlaps. Only now is anything copied: many names for
    # the same bytes must not fill the memory.
    ends = [0, *(end for _, end in sorted(ranges))]
    if [begin for begin, _ in sorted(ranges)] != ends[:-1] or ends[-1] != len(data):
        raise ValueError("holes or overlaps")
    return {name: tensor.copy() for name, tensor in tensors.items()}


def _integer(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError("not an integer")
    return value
