"""What goes on beside the frames: the heartbeat, the silence, the machine's temperature."""

import threading
import time
from collections.abc import Callable, Sequence
from typing import Final

from edgeseg.runtime.events import EventLog
from edgeseg.runtime.pipeline import Pipeline
from edgeseg.runtime.thermal import MachineState, ThermalWatch
from edgeseg.runtime.watchdog import Notifier

__all__ = ["Watch"]

_PERIOD_S: Final = 0.05
_MACHINE_S: Final = 2.0


class Watch:
    """A thread that looks after a pipeline while it runs.

    The heartbeat stops when the engine has been inside one inference for longer than half of
    the interval that the service manager allows: a process that hangs is then restarted.

    Args:
        pipeline: whose :meth:`Pipeline.listen` is called.
        notifier: the service manager.
        thermal: read every two seconds; ``None``: not.
        events: takes what the thermal watch finds.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        notifier: Notifier,
        thermal: ThermalWatch | None = None,
        events: EventLog | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pipeline = pipeline
        self._notifier = notifier
        self._thermal = thermal
        self._events = events
        self._clock = clock
        self._beat: float | None = None
        self._looked: float | None = None
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._work, name="watch", daemon=True)
        self.machine: MachineState | None = None
        """As last read."""

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join(1.0)

    def tick(self) -> None:
        """One round; the thread calls it 20 times a second."""
        self._pipeline.listen()
        now = self._clock()
        every = self._notifier.interval_s
        if every is not None and (self._beat is None or now - self._beat >= every / 3):
            guard = self._pipeline.supervisor
            if guard.busy_ms() < every * 500:
                self._beat = now
                self._notifier.alive(guard.reason if guard.safe else "running")
        if self._thermal is not None and (self._looked is None or now - self._looked >= _MACHINE_S):
            self._looked = now
            self.machine, found = self._thermal.look()
            self._tell(found)

    def _tell(self, found: Sequence[tuple[str, str]]) -> None:
        if self._events is not None:
            for event, detail in found:
                self._events.write(event, "warning", detail=detail)

    def _work(self) -> None:
        told = ""
        while not self._end.wait(_PERIOD_S):
            try:
                self.tick()
            except Exception as error:  # without this thread nobody notices silence
                text = f"{type(error).__name__}: {error}"
                # 20 times a second the same says no more than once.
                if text != told:
                    told = text
                    self._tell([("watch_failed", text)])
