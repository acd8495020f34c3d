"""What happened during a run, as JSON lines: bounded on disk and in memory."""

import contextlib
import json
import os
import re
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, Final, Literal

from edgeseg.errors import UsageError
from edgeseg.runtime.frames import now_utc
from edgeseg.runtime.line_file import READER_S, LineFile

__all__ = ["EventLog", "Level"]

Level = Literal["info", "warning", "error"]

_FILE_BYTES: Final = 8 << 20
_RECENT: Final = 100


class EventLog:
    """A line per event: ``{"at", "mono_ns", "level", "event", ...}``.

    ``at`` is UTC and may jump; ``mono_ns`` is the clock that frames are stamped with. A full
    file is renamed to ``FILE.1`` (replacing the one before) and begun again. A disk that fails
    later on, or a pipe whose reader is behind, costs lines, which are counted, and never the run.

    Args:
        path: ``None``: events are counted and the newest kept in memory.
        clock: monotonic nanoseconds.
        wall: UTC.
        limit_bytes: size at which the file is begun again.

    Raises:
        UsageError: the file cannot be written.
    """

    def __init__(
        self,
        path: Path | None = None,
        *,
        clock: Callable[[], int] = time.monotonic_ns,
        wall: Callable[[], datetime] = now_utc,
        limit_bytes: int = _FILE_BYTES,
    ) -> None:
        self._path = path
        self._clock = clock
        self._wall = wall
        self._limit = limit_bytes
        self._lock = threading.Lock()
        self._file: LineFile | None = None
        self.counts: Counter[str] = Counter()
        """Events by name."""
        self.recent: deque[dict[str, Any]] = deque(maxlen=_RECENT)
        self.lost = 0
        """Lines that the disk or the reader of a pipe did not take."""
        if path is not None:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                self._file = LineFile(path, reader_s=READER_S)
            except OSError as error:
                reason = re.sub(r"\s+", " ", error.strerror or str(error))
                raise UsageError(
                    f"--events '{path}' cannot be written ({reason}); choose another place"
                ) from None

    def write(self, event: str, level: Level = "info", **details: Any) -> None:
        """Note ``event``; ``details`` must be what JSON can carry."""
        with self._lock:
            record = {
                "at": self._wall().isoformat(timespec="milliseconds"),
                "mono_ns": self._clock(),
                "level": level,
                "event": event,
                **details,
            }
            self.counts[event] += 1
            self.recent.append(record)
            if self._path is not None:
                self._put(self._path, json.dumps(record) + "\n")

    def latest(self, number: int) -> list[dict[str, Any]]:
        """The newest events, the oldest of them first."""
        with self._lock:
            return list(self.recent)[-number:]

    def close(self) -> None:
        """Close the file; safe to call twice."""
        with self._lock:
            if self._file is not None:
                with contextlib.suppress(OSError):
                    self._file.close()
                self._file = None

    @property
    def outputs(self) -> list[str]:
        """The file, where there is one."""
        return [] if self._path is None else [str(self._path)]

    def _put(self, path: Path, line: str) -> None:
        try:
            if self._file is None:
                self._file = LineFile(path, append=True)
            size = self._file.size  # pipes and devices keep nothing that could grow
            if size and size + len(line) > self._limit:
                self._file.close()
                self._file = None
                os.replace(path, f"{path}.1")
                self._file = LineFile(path)
            self._file.write(line)
        except OSError:
            self.lost += 1
