"""A small reader and writer of the safetensors format, numpy arrays only.

The device needs to read one file of a few kilobytes; this keeps the format's own package off it.
The format: little-endian uint64 header length, a JSON header that maps names to dtype, shape and
byte range, then the data. Only the dtypes that the bundle uses are known.
"""

import json
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


def write_safetensors(tensors: Mapping[str, npt.NDArray[Any]]) -> bytes:
    """Serialize ``tensors`` in sorted order; the same tensors give the same bytes."""
    header: dict[str, Any] = {}
    chunks: list[bytes] = []
    offset = 0
    for name in sorted(tensors):
        array = np.ascontiguousarray(tensors[name])
        content = array.astype(array.dtype.newbyteorder("<")).tobytes()
        header[name] = {
            "dtype": _NAMES[array.dtype],
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
        ArtefactError: the file is truncated, malformed or holds a dtype that is not known here.
    """
    content = path.read_bytes()
    try:
        return _parse(content)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, struct.error):
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
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        dtype = np.dtype(_DTYPES[entry["dtype"]])
        shape = [int(side) for side in entry["shape"]]
        begin, end = (int(v) for v in entry["data_offsets"])
        if min(shape, default=0) < 0 or not 0 <= begin <= end <= len(data):
            raise ValueError("range")
        count = 1
        for side in shape:
            count *= side
        if count * dtype.itemsize != end - begin:
            raise ValueError("size")
        tensors[name] = np.frombuffer(data[begin:end], dtype=dtype).reshape(shape).copy()
    return tensors
