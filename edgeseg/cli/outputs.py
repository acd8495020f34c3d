"""Output files of commands that work long before they write: judged first, and written at last."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from edgeseg.errors import EdgesegError, InputError, UsageError

__all__ = ["check_output", "check_separate", "write_outputs"]


def check_output(path: Path, option: str) -> None:
    """Before any work: whether a file can be put at ``path``, as far as that can be told.

    A file that is there will be replaced, and missing folders will be made; nothing is yet.

    Args:
        path: of the file.
        option: that names it, for the message.

    Raises:
        UsageError: it cannot.
    """
    try:
        if path.is_dir():
            raise UsageError(f"{option} '{path}' is a folder; name a file")
        if path.exists() and not path.is_file():
            raise UsageError(f"{option} '{path}' is a device or a pipe; name a file")
        folder = next(p for p in path.absolute().parents if os.path.lexists(p))
        if not folder.is_dir():
            raise UsageError(
                f"{option} '{path}' cannot be written ('{folder}' is not a folder); name another "
                "file"
            )
    except OSError as error:
        raise UsageError(
            f"{option} '{path}' cannot be written ({error.strerror}); name another file"
        ) from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError(
            f"{option} '{path}' cannot be written (nothing may be added to '{folder}'); name "
            "another file"
        )


def check_separate(outputs: Mapping[str, Path | None]) -> None:
    """Raise UsageError where two options name one file: the later would replace the earlier.

    Args:
        outputs: option -> its file, where it was given.
    """
    seen: dict[str, str] = {}
    for option, path in outputs.items():
        if path is None:
            continue
        other = seen.setdefault(os.path.realpath(path), option)
        if other != option:
            raise UsageError(f"{other} and {option} both name '{path}'; give each its own file")


def write_outputs(*writes: Callable[[], None]) -> EdgesegError | None:
    """Call each, whatever becomes of the others.

    What can still fail after :func:`check_output` must cost no result, so the first error is
    returned, for when the result is printed: as a usage error, since the user named the file.
    """
    first: EdgesegError | None = None
    for write in writes:
        try:
            write()
        except InputError as error:
            first = first or UsageError(str(error))
        except EdgesegError as error:
            first = first or error
    return first
