"""Sources that behave like a camera: those that come back, and files played at their pace."""

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Final

from edgeseg.errors import InputError
from edgeseg.runtime.frames import BadFrame, Frame, Notice, Source, now_utc

__all__ = ["PacedSource", "ReconnectingSource"]

_FIRST_WAIT_S: Final = 0.25
_LONGEST_WAIT_S: Final = 5.0
_DEFAULT_FPS: Final = 25.0


class ReconnectingSource:
    """A camera that is opened again when it is lost.

    The wait between two tries doubles from a quarter of a second to five. Indices go on where
    they ended.

    Args:
        opener: opens the camera; its first error comes out at once.
        give_up_s: how long to try after a loss.
        stop: ends the waiting.
        clock: monotonic seconds.
    """

    live = True
    length: int | None = None
    skipped = 0

    def __init__(
        self,
        opener: Callable[[], Source],
        give_up_s: float,
        stop: threading.Event | None = None,
        *,
        first_wait_s: float = _FIRST_WAIT_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._opener = opener
        self._give_up_s = give_up_s
        self._stop = stop or threading.Event()
        self._closed = threading.Event()
        self._first_wait_s = first_wait_s
        self._clock = clock
        self._source: Source = opener()
        self.label = self._source.label
        self.fps = self._source.fps

    def __iter__(self) -> Iterator[Frame | BadFrame | Notice]:
        base = count = 0
        lost_at: float | None = None
        wait = self._first_wait_s
        while not self._halted():
            reason = f"{self.label} ended"
            try:
                for item in self._source:
                    if isinstance(item, Frame) and lost_at is not None:
                        # Only a frame shows that it is back: a device may open and be mute.
                        away = 1000 * (self._clock() - lost_at)
                        yield Notice("camera_back", f"{self.label} is back after {away:.0f} ms")
                        lost_at, wait = None, self._first_wait_s
                    if isinstance(item, (Frame, BadFrame)):
                        count = base + item.index + 1
                        item = self._renumbered(item, base)
                    yield item
                    if self._halted():
                        return
            except InputError as error:
                reason = str(error)
            self._source.close()
            if lost_at is None:
                lost_at = self._clock()
                yield Notice("camera_lost", reason)
            wait = self._reopen(lost_at, wait)
            base = count

    def close(self) -> None:
        """Let go of the device."""
        self._closed.set()
        self._source.close()

    def _reopen(self, lost_at: float, wait: float) -> float:
        """Try until the camera opens; returns the wait that the next try would have."""
        while not self._halted():
            left = self._give_up_s - (self._clock() - lost_at)
            if left <= 0:
                raise InputError(
                    f"{self.label} was lost and did not come back within "
                    f"{self._give_up_s:g} s; check its connection"
                )
            self._stop.wait(min(wait, left))
            wait = min(2 * wait, _LONGEST_WAIT_S)
            if self._halted():
                break
            try:
                self._source = self._opener()
                break
            except InputError:
                continue
        return wait

    def _halted(self) -> bool:
        return self._stop.is_set() or self._closed.is_set()

    @staticmethod
    def _renumbered(item: Frame | BadFrame, base: int) -> Frame | BadFrame:
        if not base:
            return item
        if isinstance(item, BadFrame):
            return replace(item, index=base + item.index)
        return replace(item, index=base + item.index, stem=f"frame_{base + item.index:06d}")


class PacedSource:
    """A file or folder as if it were a camera: at its own rate, over and over.

    Args:
        opener: opens it; called again at its end.
        stop: ends the waiting.
    """

    live = True
    length: int | None = None
    skipped = 0

    def __init__(self, opener: Callable[[], Source], stop: threading.Event | None = None) -> None:
        self._opener = opener
        self._stop = stop or threading.Event()
        self._closed = threading.Event()
        self._source: Source = opener()
        self.label = self._source.label
        self.fps: float | None = self._source.fps or _DEFAULT_FPS

    def __iter__(self) -> Iterator[Frame | BadFrame | Notice]:
        period = 1 / (self.fps or _DEFAULT_FPS)
        due = time.monotonic()
        index = 0
        while not self._halted():
            good = 0
            for item in self._source:
                if self._halted():
                    return
                wait = due - time.monotonic()
                if wait > 0:
                    self._stop.wait(wait)
                # A reader that was kept up does not hurry to catch up: a camera would not.
                due = max(due, time.monotonic() - period) + period
                if isinstance(item, Frame):
                    good += 1
                    item = replace(
                        item,
                        index=index,
                        stem=f"frame_{index:06d}",
                        captured_at=now_utc(),
                        captured_mono_ns=time.monotonic_ns(),
                    )
                elif isinstance(item, BadFrame):
                    item = replace(item, index=index)
                yield item
                index += 1
            self._source.close()
            if not good:
                raise InputError(f"'{self.label}' holds no frame that can be read; check the input")
            self._source = self._opener()

    def close(self) -> None:
        """Let go of the files."""
        self._closed.set()
        self._source.close()

    def _halted(self) -> bool:
        return self._stop.is_set() or self._closed.is_set()
