"""Arrays and a JSON header in one zip file, read without trust.

The file is an ``.npz`` that ``numpy.load(allow_pickle=False)`` opens too; the reader here also
bounds what a damaged or hostile file can make it allocate.
"""

import io
import json
import math
import zipfile
import zlib
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from edgeseg.errors import ArtefactError, InputError

__all__ = ["ArchiveReader", "ArchiveWriter"]

_HEADER: Final = "header.json"
_MAX_ENTRY_BYTES: Final = 512 << 20
_DTYPES: Final = frozenset(("uint8", "uint32", "int64", "float16", "float32"))


class ArchiveWriter:
    """Writes entries as they come; the same entries give the same bytes."""

    def __init__(self, path: Path) -> None:
        # Level 1: score maps are large and hardly shrink further.
        self._zip = zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1)

    def array(self, name: str, array: npt.NDArray[Any]) -> None:
        """Add an array under ``name``."""
        content = io.BytesIO()
        np.lib.format.write_array(content, np.ascontiguousarray(array), allow_pickle=False)
        self._zip.writestr(_entry(f"{name}.npy"), content.getvalue())

    def header(self, header: dict[str, Any]) -> None:
        """Add the header, once."""
        text = json.dumps(header, sort_keys=True, allow_nan=False)
        self._zip.writestr(_entry(_HEADER), text.encode())

    def close(self) -> None:
        """Close the file."""
        self._zip.close()


class ArchiveReader:
    """Reads what :class:`ArchiveWriter` wrote.

    Raises:
        InputError: there is no such file.
        ArtefactError: it is not such a file, or an entry is damaged or too large.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        if not path.is_file():
            raise InputError(f"metric state '{path}' does not exist; check the name")
        try:
            self._zip = zipfile.ZipFile(path)
        except (OSError, zipfile.BadZipFile, NotImplementedError, ValueError):
            raise self._damaged() from None
        self.names = frozenset(self._zip.namelist())

    def header(self) -> dict[str, Any]:
        """The header as :meth:`ArchiveWriter.header` got it."""
        try:
            header = json.loads(self._bytes(_HEADER))
        except (ValueError, RecursionError):
            raise self._damaged() from None
        if not isinstance(header, dict):
            raise self._damaged()
        return header

    def array(self, name: str) -> npt.NDArray[Any]:
        """The array under ``name``."""
        content = self._bytes(f"{name}.npy")
        stream = io.BytesIO(content)
        try:
            if np.lib.format.read_magic(stream) != (1, 0):
                raise ValueError("version")
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
            rest = content[stream.tell() :]
            # The header's word is checked against the bytes before anything is allocated by it.
            if dtype.name not in _DTYPES or math.prod(shape) * dtype.itemsize != len(rest):
                raise ValueError("size")
            array = np.frombuffer(rest, dtype=dtype)
            return array.reshape(shape, order="F" if fortran else "C")
        except (ValueError, TypeError, SyntaxError, EOFError, OverflowError):
            raise self._damaged() from None

    def close(self) -> None:
        """Close the file."""
        self._zip.close()

    def _bytes(self, name: str) -> bytes:
        try:
            info = self._zip.getinfo(name)
            if info.file_size > _MAX_ENTRY_BYTES:
                raise self._damaged()
            with self._zip.open(info) as entry:
                content = entry.read(info.file_size + 1)
        except (
            KeyError,
            zipfile.BadZipFile,
            OSError,
            EOFError,
            zlib.error,
            NotImplementedError,
            RuntimeError,
        ):
            raise self._damaged() from None
        if len(content) != info.file_size:
            raise self._damaged()
        return content

    def _damaged(self) -> ArtefactError:
        return ArtefactError(
            f"'{self._path}' is damaged or not a metric state; write it again with 'edgeseg eval "
            "--shard'"
        )


def _entry(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)  # dated 1980, so equal content is an equal file
    info.compress_type = zipfile.ZIP_DEFLATED
    return info
