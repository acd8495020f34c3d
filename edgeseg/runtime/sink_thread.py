"""A sink that works beside the inference."""

import queue
import threading
from collections import deque
from typing import Final

from edgeseg.errors import EdgesegError
from edgeseg.runtime.shots import Shot, Sink

__all__ = ["SinkThread"]

_POLL_S: Final = 0.1


class SinkThread:
    """Runs a sink beside the inference. A full queue makes the caller wait, so memory stays
    bounded; an error in the sink comes out of the next call.
    """

    def __init__(self, sink: Sink, depth: int = 2) -> None:
        self._sink = sink
        self._queue: queue.Queue[Shot | None] = queue.Queue(maxsize=depth)
        self._error: BaseException | None = None
        self._closing = threading.Lock()
        self._closed = False
        self._timings: deque[tuple[float, float]] = deque()
        self._thread = threading.Thread(target=self._work, name="sink", daemon=True)
        self._thread.start()

    def put(self, shot: Shot) -> None:
        """Hand a shot over; waits while the sink is behind."""
        while True:
            self._check()
            try:
                self._queue.put(shot, timeout=_POLL_S)
                return
            except queue.Full:
                continue

    def offer(self, shot: Shot) -> bool:
        """Hand a shot over if the sink has room for it and works; never waits, never raises."""
        if self.failure is not None:
            return False
        try:
            self._queue.put_nowait(shot)
        except queue.Full:
            return False
        return True

    @property
    def failure(self) -> str | None:
        """What the sink failed with, if it has; :meth:`close` raises it."""
        return None if self._error is None else str(self._error)

    def take_timings(self) -> list[tuple[float, float]]:
        """Milliseconds of drawing and encoding of the shots finished since the last call."""
        # A deque, because its two ends may be used by two threads at once.
        return [self._timings.popleft() for _ in range(len(self._timings))]

    def close(self) -> list[str]:
        """Write what is queued, finish the sink, return its outputs; safe to call twice, from any
        thread.
        """
        with self._closing:
            if not self._closed:
                self._closed = True
                self._finish()
        self._check()
        return self._sink.outputs

    def _finish(self) -> None:
        while self._thread.is_alive():
            try:
                self._queue.put(None, timeout=_POLL_S)
                break
            except queue.Full:
                continue
        self._thread.join()
        self._sink.close()

    def _work(self) -> None:
        try:
            while (shot := self._queue.get()) is not None:
                self._timings.append(self._sink.write(shot))
        except BaseException as error:
            self._error = error

    def _check(self) -> None:
        if self._error is not None:
            error, self._error = self._error, None
            if isinstance(error, EdgesegError):
                raise error
            raise RuntimeError(f"writing the output failed: {error}") from error
