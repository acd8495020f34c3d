"""Engines through libedgeseg: the calls that a vehicle's program makes, behind the same interface.

Results are those of the Python packages' own interfaces, bit for bit. The library loads the engine
itself, so that Python imports neither.
"""

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from edgeseg.bundle import Bundle
from edgeseg.errors import MissingDependencyError
from edgeseg.runtime.backends import BodySpec, check_installed, features_shape, try_in_child
from edgeseg.runtime.library import LibraryResult, LibrarySession, why_not

__all__ = ["LibraryBackend", "open_library"]

# As the engines name their processor.
_PROVIDERS: Final = {"onnxruntime": "CPUExecutionProvider", "openvino": "CPU"}


class LibraryBackend:
    """A session of the C library: features like any backend's, and class map with score.

    Args:
        bundle: an opened bundle.
        engine: ``onnxruntime`` or ``openvino``.
        threads: of the engine and the kernels.
        scorer: of :meth:`run`; default: the bundle's.
        temperature: of :meth:`run`; default: the bundle's for the scorer.
        score_dtype: float16 or float32.

    Raises:
        MissingDependencyError: the library or the engine is not there.
        ArtefactError: the engine refuses the body.
    """

    def __init__(
        self,
        bundle: Bundle,
        engine: str,
        threads: int,
        *,
        scorer: str | None = None,
        temperature: float | None = None,
        score_dtype: npt.DTypeLike = np.float16,
    ) -> None:
        self.name = engine
        self._session: LibrarySession | None = LibrarySession(
            bundle.path,
            engine,
            threads=threads,
            scorer=scorer,
            temperature=temperature,
            score_dtype=score_dtype,
        )
        self._shape = features_shape(bundle)
        self._features: npt.NDArray[np.float32] | None = None

    def infer(self, frame: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """See :class:`edgeseg.runtime.backends.Backend`."""
        self._features = self._open().features(frame[0]).reshape(self._shape)
        return self._features

    def run(self, frame: npt.NDArray[np.uint8]) -> LibraryResult:
        """Class map and score of a frame, uint8 ``[H, W, 3]`` BGR with rows of any stride."""
        return self._open().run(frame)

    def gave(self, features: npt.NDArray[np.float32]) -> bool:
        """Whether these are the features of the last frame, where :meth:`infer` left them."""
        own = self._features
        return (
            own is not None
            and features.shape == own.shape
            and features.dtype == own.dtype
            and features.__array_interface__["data"][0] == own.__array_interface__["data"][0]
            and features.flags.c_contiguous
        )

    def score(self, scorer: str, temperature: float) -> LibraryResult:
        """The last frame by a scorer; costs the head alone."""
        return self._open().score(scorer, temperature)

    def describe(self) -> dict[str, Any]:
        """See :class:`edgeseg.runtime.backends.Backend`."""
        found = self._open().describe()
        return {
            "backend": self.name,
            "engine_version": found["engine_version"].split("-")[0],
            "provider": _PROVIDERS[self.name],
            "threads": found["threads"],
            "compute_precision": found["compute_precision"],
        }

    def close(self) -> None:
        """Free engine and kernels."""
        session, self._session, self._features = self._session, None, None
        if session is not None:
            session.close()

    def _open(self) -> LibrarySession:
        if self._session is None:
            raise RuntimeError("the backend is closed")
        return self._session


def open_library(
    bundle: Bundle,
    engine: str,
    body: BodySpec,
    threads: int,
    *,
    scorer: str,
    temperature: float,
    score_dtype: npt.DTypeLike,
) -> LibraryBackend:
    """:class:`LibraryBackend`, of a bundle that this machine has not seen after a trial in a child
    process, so that a crash of the engine's compiler becomes an error message.

    Raises:
        UsageError: there is no such backend.
        MissingDependencyError: the library or the engine is not there, or the engine's Python
            package comes without its C library.
        ArtefactError: the engine refuses the graph, or crashes on it.
    """
    check_installed(engine)
    reason = why_not(engine)
    if reason is not None:
        raise MissingDependencyError(reason)
    try_in_child(engine, body, threads, library=True)
    return LibraryBackend(
        bundle,
        engine,
        threads,
        scorer=scorer,
        temperature=temperature,
        score_dtype=score_dtype,
    )
