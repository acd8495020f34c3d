"""Engines through libedgeseg: the calls that a vehicle's program makes, behind the same interface.

A :class:`~edgeseg.runtime.session.Session` on such a backend runs the body exactly as the C library
does. Its results are those of the Python packages' own interfaces, bit for bit.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from edgeseg.bundle import Bundle
from edgeseg.runtime.library import LibrarySession

__all__ = ["LibraryBackend"]


class LibraryBackend:
    """One session of the C library, of which only the body is used.

    Args:
        bundle: an opened bundle.
        engine: ``onnxruntime`` or ``openvino``.
        threads: of the engine.

    Raises:
        MissingDependencyError: the library or the engine is not there.
        ArtefactError: the engine refuses the body.
    """

    def __init__(self, bundle: Bundle, engine: str, threads: int) -> None:
        self.name = engine
        self._session: LibrarySession | None = LibrarySession(bundle.path, engine, threads=threads)
        (height, width), head = bundle.size, bundle.head
        rows, columns = height // head.factor, width // head.factor
        self._shape: tuple[int, ...] = (1, head.channels_in, rows, columns)
        if head.layout == "nhwc":
            self._shape = (1, rows, columns, head.channels_in)

    def infer(self, frame: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """See :class:`edgeseg.runtime.backends.Backend`."""
        if self._session is None:
            raise RuntimeError("the backend is closed")
        return self._session.features(frame[0]).reshape(self._shape)

    def describe(self) -> dict[str, Any]:
        """See :class:`edgeseg.runtime.backends.Backend`."""
        if self._session is None:
            raise RuntimeError("the backend is closed")
        found = self._session.describe()
        return {
            "backend": self.name,
            "engine_version": found["engine_version"].split("-")[0],
            "provider": "CPU",
            "threads": found["threads"],
            "compute_precision": found["compute_precision"],
        }

    def close(self) -> None:
        """Free the engine."""
        session, self._session = self._session, None
        if session is not None:
            session.close()
