"""How a run is ended from outside: by signals, and where the engine does not come back."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, Final, NoReturn

from edgeseg.errors import EdgesegError
from edgeseg.runtime.console import Progress, say
from edgeseg.runtime.events import EventLog
from edgeseg.runtime.watchdog import Notifier

__all__ = ["INTERRUPTED", "Signals", "bounded", "leaver"]

INTERRUPTED: Final = 130
"""Exit code of a run that a signal ended."""

_LOOK_S: Final = 0.05


class Signals:
    """While entered, the first SIGINT or SIGTERM ends the run in order; a second one has its usual
    effect.

    Until :meth:`gentle` the first raises KeyboardInterrupt, so that what is open is closed, and
    temporary files and child processes go; from then on it sets ``stop``. Outside the main thread
    signals are left alone.
    """

    def __init__(self, stop: threading.Event) -> None:
        self._stop = stop
        self._gentle = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Signals":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.getsignal(number)
                signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def gentle(self) -> None:
        """From now on whoever works looks at ``stop``."""
        self._gentle = True

    def _handle(self, number: int, _: Any) -> None:
        signal.signal(number, self._before[number])
        if not self._gentle:
            raise KeyboardInterrupt
        self._stop.set()


@contextmanager
def bounded(
    give_up: Callable[[bool], object],
    stop: threading.Event,
    *,
    limit_s: float,
    stop_s: float,
) -> Iterator[None]:
    """For what may hang inside an engine, where no signal and no exception reaches it.

    Args:
        give_up: called from another thread, once, where the inside takes longer than it may; the
            inside does not end meanwhile. Takes whether ``stop`` was set.
        stop: asks the inside to end.
        limit_s: how long the inside may take.
        stop_s: how long it may take once ``stop`` is set.
    """
    lock, done = threading.Lock(), threading.Event()

    def work() -> None:
        end = time.monotonic() + limit_s
        stopping = False
        while not done.wait(_LOOK_S):
            if stop.is_set() and not stopping:
                stopping, end = True, min(end, time.monotonic() + stop_s)
            if time.monotonic() < end:
                continue
            with lock:
                if not done.is_set():
                    give_up(stopping)
            return

    threading.Thread(target=work, name="bounded", daemon=True).start()
    try:
        yield
    finally:
        with lock:
            done.set()


def leaver(
    events: EventLog, notifier: Notifier, progress: Progress, copies: ExitStack
) -> Callable[[EdgesegError | None], NoReturn]:
    """What ends the process from another thread than the loop's, with what the loop would have
    done last; without an error it was interrupted.
    """

    def leave(error: EdgesegError | None) -> NoReturn:
        text = "interrupted, and the engine has not answered" if error is None else str(error)
        events.write("run_ended", "error", error=text)
        events.close()
        notifier.stopping()
        progress.__exit__()  # a bar hides the cursor
        with suppress(OSError):
            copies.close()
        say(text)
        os._exit(INTERRUPTED if error is None else error.exit_code)

    return leave
