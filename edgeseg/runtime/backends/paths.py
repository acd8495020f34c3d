"""Two ways to the same engine: through libedgeseg, or through the engine's Python package."""

import os
from typing import Final, Literal, cast, get_args

import numpy.typing as npt

from edgeseg.bundle import Bundle
from edgeseg.errors import EdgesegError, UsageError
from edgeseg.runtime.backends import BACKENDS, Backend, BodySpec, open_backend
from edgeseg.runtime.backends.native import LibraryBackend, open_library
from edgeseg.runtime.selection import open_quickest

__all__ = ["PATH_VARIABLE", "SessionPath", "chosen_path", "open_path"]

SessionPath = Literal["auto", "library", "python"]
PATH_VARIABLE: Final = "EDGESEG_SESSION"
"""Environment variable with the path of sessions that are not told one."""


def chosen_path(path: str) -> SessionPath:
    """``path``, or where that is ``auto`` what :data:`PATH_VARIABLE` says.

    Raises:
        UsageError: one of them is no path.
    """
    told = os.environ.get(PATH_VARIABLE) or "auto"
    for source, value in (("path", path), (PATH_VARIABLE, told)):
        if value not in get_args(SessionPath):
            known = ", ".join(get_args(SessionPath))
            raise UsageError(f"{source} is '{value}'; choose one of {known}")
    return cast(SessionPath, told if path == "auto" else path)


def open_path(
    bundle: Bundle,
    backend: str,
    threads: int,
    path: SessionPath,
    *,
    scorer: str,
    temperature: float,
    score_dtype: npt.DTypeLike,
) -> tuple[Backend, str | None]:
    """Open a bundle's body by the path that was asked for, or by the first that works.

    Args:
        bundle: an opened bundle.
        backend: ``auto`` or a name.
        threads: of the engine.
        path: ``auto``: the library's where it works.
        scorer: for the library.
        temperature: for the library.
        score_dtype: for the library.

    Returns:
        The engine, and why it does not go through the library, in a sentence; ``None`` where it
        does.

    Raises:
        UsageError: no such backend, or the library does not run it.
        MissingDependencyError: the engine, or the library that was asked for, is not there.
        ArtefactError: the engine refuses the graph, or crashes on it.
    """
    refusals: dict[str, str] = {}

    def opener(name: str, body: BodySpec, threads: int) -> Backend:
        if name not in BACKENDS:
            refusals[name] = f"libedgeseg does not run {name}"
        elif path == "python":
            refusals[name] = "the Python package was asked for"
        else:
            try:
                return open_library(
                    bundle,
                    name,
                    body,
                    threads,
                    scorer=scorer,
                    temperature=temperature,
                    score_dtype=score_dtype,
                )
            except EdgesegError as error:
                if path == "library":
                    raise
                refusals[name] = str(error)
        return open_backend(name, body, threads)

    body = BodySpec.of(bundle)
    if backend == "auto":
        opened = open_quickest(body, threads, opener=opener)
    else:
        opened = opener(backend, body, threads)
    if path == "library" and not isinstance(opened, LibraryBackend):
        opened.close()
        raise UsageError(f"{refusals[backend]}; choose another backend or path")
    return opened, None if isinstance(opened, LibraryBackend) else refusals[opened.name]
