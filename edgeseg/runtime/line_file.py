"""Whole lines into a file, a pipe or a device, without a wait that has no end."""

import contextlib
import errno
import os
import select
import stat
import time
from pathlib import Path
from typing import Final

__all__ = ["READER_S", "LineFile"]

READER_S: Final = 10.0
"""For ``reader_s``: whoever reads a named pipe may start after us."""

_POLL_S: Final = 0.05


class LineFile:
    """Takes lines; nothing is buffered, so that a reader can follow.

    A line that a full disk took in part is cut off again. A pipe keeps the part that it took, and
    the next line begins on one of its own.

    Args:
        path: made if it is not there.
        append: keep what is in it.
        reader_s: how long to wait for somebody who reads a named pipe.
        patience_s: how long one line may wait for a reader that is behind.

    Raises:
        OSError: it cannot be opened.
    """

    def __init__(
        self,
        path: Path,
        *,
        append: bool = False,
        reader_s: float = 0.0,
        patience_s: float = 0.0,
    ) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NONBLOCK | os.O_CLOEXEC
        self._handle: int | None = _opened(path, flags if append else flags | os.O_TRUNC, reader_s)
        self._regular = stat.S_ISREG(os.fstat(self._handle).st_mode)
        self._patience_s = patience_s
        self._torn = False

    @property
    def size(self) -> int | None:
        """Bytes in it; ``None`` where it is no file that keeps them."""
        return os.fstat(self._number()).st_size if self._regular else None

    def write(self, line: str) -> None:
        """Append ``line``, which ends with a line break.

        Raises:
            OSError: it was not taken, or not as a whole.
        """
        content = line.encode()
        if self._regular:
            self._keep(content)
        else:
            self._send(content)

    def close(self) -> None:
        """Close the file; safe to call twice."""
        handle, self._handle = self._handle, None
        if handle is not None:
            os.close(handle)

    def _number(self) -> int:
        if self._handle is None:
            raise OSError(errno.EBADF, "it is closed")
        return self._handle

    def _keep(self, content: bytes) -> None:
        handle = self._number()
        before, rest = os.fstat(handle).st_size, memoryview(content)
        try:
            while rest:
                rest = rest[os.write(handle, rest) :]
        except OSError:
            if len(rest) < len(content):
                with contextlib.suppress(OSError):
                    os.ftruncate(handle, before)
            raise

    def _send(self, content: bytes) -> None:
        handle = self._number()
        content = b"\n" + content if self._torn else content
        rest, end = memoryview(content), time.monotonic() + self._patience_s
        poll = select.poll()
        poll.register(handle, select.POLLOUT)
        try:
            while rest:
                try:
                    rest = rest[os.write(handle, rest) :]
                except BlockingIOError:
                    left = end - time.monotonic()
                    if left <= 0 or not poll.poll(1e3 * left):
                        text = "its reader does not keep up"
                        raise TimeoutError(errno.ETIMEDOUT, text) from None
        finally:
            if len(rest) < len(content):
                self._torn = bool(rest)


def _opened(path: Path, flags: int, reader_s: float) -> int:
    end = time.monotonic() + reader_s
    while True:
        try:
            return os.open(path, flags, 0o666)
        except OSError as error:
            # Without O_NONBLOCK this would wait for the reader, who may never come.
            if error.errno != errno.ENXIO or not stat.S_ISFIFO(os.stat(path).st_mode):
                raise
            if time.monotonic() >= end:
                raise OSError(errno.ENXIO, "nobody reads from the pipe") from None
        time.sleep(_POLL_S)
