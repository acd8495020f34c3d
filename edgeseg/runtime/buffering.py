"""Reading ahead: sources run in a thread of their own, so that decoding overlaps inference."""

import queue
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from edgeseg.runtime.frames import BadFrame, Frame, Notice, Source, now_utc

__all__ = ["NewestFrame", "Prefetch"]

_POLL_S: Final = 0.1
_CLOSE_S: Final = 5.0


class _End:
    """Marks the end of the source, with the error that ended it."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


class _Threaded:
    """What both kinds share: the thread, and handing its error to the reader."""

    def __init__(self, source: Source, stop: threading.Event | None) -> None:
        self._source = source
        self._closed = threading.Event()
        self._stop = stop or threading.Event()
        self._thread = threading.Thread(target=self._read, name="source", daemon=True)
        self.label = source.label
        self.live = source.live
        self.length = source.length
        self.fps = source.fps
        self.skipped = 0

    def _read(self) -> None:
        error: BaseException | None = None
        try:
            for item in self._source:
                self._deliver(item)
                if self._halted():
                    break
        except BaseException as caught:
            error = caught
        finally:
            # The capture is released by the thread that reads it: doing so under a running
            # read crashes OpenCV.
            self._source.close()
        self._deliver(_End(error))

    def _halted(self) -> bool:
        return self._closed.is_set() or self._stop.is_set()

    def _deliver(self, item: Frame | BadFrame | Notice | _End) -> None:
        raise NotImplementedError

    def close(self) -> None:
        """End the thread; a camera that blocks is left to the process's end."""
        self._closed.set()
        if self._thread.ident is None:
            self._source.close()
        elif self._thread.is_alive():
            self._thread.join(_CLOSE_S)


class Prefetch(_Threaded):
    """Every frame in order, a few ahead; for files."""

    def __init__(
        self, source: Source, stop: threading.Event | None = None, *, depth: int = 2
    ) -> None:
        super().__init__(source, stop)
        self._queue: queue.Queue[Frame | BadFrame | Notice | _End] = queue.Queue(maxsize=depth)

    def _deliver(self, item: Frame | BadFrame | Notice | _End) -> None:
        while not self._halted():
            try:
                self._queue.put(item, timeout=_POLL_S)
                return
            except queue.Full:
                continue

    def __iter__(self) -> Iterator[Frame | BadFrame | Notice]:
        self._thread.start()
        while not self._halted():
            try:
                item = self._queue.get(timeout=_POLL_S)
            except queue.Empty:
                continue
            if isinstance(item, _End):
                if item.error is not None:
                    raise item.error
                return
            if isinstance(item, Frame):
                # The age of a frame from a file counts from here: how long it lay in the queue
                # says nothing about the system under test.
                item = replace(item, captured_at=now_utc(), captured_mono_ns=time.monotonic_ns())
            yield item


class NewestFrame(_Threaded):
    """Always the newest frame; older ones that nobody took are counted and gone. For cameras."""

    def __init__(self, source: Source, stop: threading.Event | None = None) -> None:
        super().__init__(source, stop)
        self._slot: Frame | None = None
        self._told: list[BadFrame | Notice] = []
        self._end: _End | None = None
        self._changed = threading.Condition()

    def _deliver(self, item: Frame | BadFrame | Notice | _End) -> None:
        with self._changed:
            if isinstance(item, _End):
                self._end = item
            elif isinstance(item, (BadFrame, Notice)):
                if isinstance(item, Notice) and item.event == "camera_lost":
                    # A frame from before must not come after the loss as if all were well again.
                    self.skipped += self._slot is not None
                    self._slot = None
                self._told.append(item)
                del self._told[:-100]  # bounded, should nobody come to read
            else:
                self.skipped += self._slot is not None
                self._slot = item
            self._changed.notify()

    def __iter__(self) -> Iterator[Frame | BadFrame | Notice]:
        self._thread.start()
        while not self._halted():
            with self._changed:
                if not (self._told or self._slot or self._end):
                    self._changed.wait(_POLL_S)
                told, self._told = self._told, []
                frame, self._slot = self._slot, None
                end = self._end
            yield from told
            if frame is not None:
                yield frame
            elif end is not None:
                if end.error is not None:
                    raise end.error
                return
