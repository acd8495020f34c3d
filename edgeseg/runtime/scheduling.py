"""CPUs, real-time priority and locked memory for a run; what the system refuses is told and left.

Linux knows all three per thread or per process, and a process may mostly not have them unasked: the
run then goes on without, and its report says what was reached.
"""

import contextlib
import ctypes
import os
import re
import resource
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from edgeseg.errors import UsageError

__all__ = ["MAX_PRIORITY", "Scheduler", "Scheduling", "parse_cpus"]

MAX_PRIORITY: Final = 98
"""One below the highest: the watching thread must come before a loop that hangs."""
_MAX_CPU: Final = 4095
_MCL_CURRENT: Final = 1
_MCL_FUTURE: Final = 2
_CAP_IPC_LOCK: Final = 14


@dataclass(frozen=True, slots=True)
class Scheduling:
    """What is wished for; the defaults wish for nothing."""

    cpus: tuple[int, ...] | None = None
    """Numbers of the CPUs, as :func:`parse_cpus` gives them."""
    priority: int | None = None
    """Of SCHED_FIFO, 1 .. :data:`MAX_PRIORITY`."""
    lock_memory: bool = False


def parse_cpus(text: str) -> tuple[int, ...]:
    """Sorted CPU numbers of a list like ``2-5,7``.

    Raises:
        UsageError: it is no such list.
    """
    cpus: set[int] = set()
    for part in text.split(","):
        found = re.fullmatch(r"\s*([0-9]{1,6})(?:-([0-9]{1,6}))?\s*", part)
        first, last = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
        if not first <= last <= _MAX_CPU:
            raise UsageError(
                f"--cpus '{text}' is not a list of CPUs from 0 to {_MAX_CPU}; write it as in 2-5,7"
            )
        cpus.update(range(first, last + 1))
    return tuple(sorted(cpus))


class Scheduler:
    """Gives a process what a :class:`Scheduling` wishes for, and takes it back at the end.

    The CPUs hold from entering on: threads inherit them, so whatever makes threads comes after.
    """

    def __init__(self, wish: Scheduling) -> None:
        self.wish = wish
        self.notes: list[str] = []
        """What could not be had, one sentence each."""
        self.reached: dict[str, Any] = {}
        """``cpus``: list, ``null`` where unbound, and the threads bound; ``realtime``: priority
        and threads; ``memory``: MB locked. Holds what was wished for, nothing else."""
        self._cpus_before: set[int] | None = None
        self._locked = False
        self._raised: set[int] = set()

    def __enter__(self) -> "Scheduler":
        if self.wish.cpus is not None:
            self._bind(set(self.wish.cpus))
        return self

    def __exit__(self, *_: object) -> None:
        if self._locked:
            _libc().munlockall()
        # Without privileges the flag cannot be taken back; it does nothing at normal priority.
        usual = os.SCHED_OTHER | os.SCHED_RESET_ON_FORK
        with contextlib.suppress(OSError):
            _each(self._raised, lambda t: os.sched_setscheduler(t, usual, os.sched_param(0)))
        before = self._cpus_before
        if before is not None:
            with contextlib.suppress(OSError):
                _each(_threads(), lambda thread: os.sched_setaffinity(thread, before))

    def settle(self) -> None:
        """Called once the engine is open and warm: raises its threads, those of the kernels and
        the caller's, and locks the memory that all of them use. Threads made later begin at
        normal priority.
        """
        if self._cpus_before is not None:
            self._gather(os.sched_getaffinity(0))
        if self.wish.priority is not None:
            # Other Python threads belong to whoever called, not to the loop.
            others = {t.native_id for t in threading.enumerate()} - {threading.get_native_id()}
            self._raise([t for t in _threads() if t not in others], self.wish.priority)
        if self.wish.lock_memory:
            self._lock()

    def then(self, on_frame: Callable[[int], None]) -> Callable[[int], None]:
        """``on_frame`` of a pipeline; before its first call the helpers are raised as well."""

        def call(done: int) -> None:
            if done == 1:
                self._settle_helpers()
            on_frame(done)

        return call

    def _settle_helpers(self) -> None:
        """The thread that reads the source, and above it the one that watches for silence."""
        if not self._raised or self.wish.priority is None:
            return
        level = self.wish.priority
        for thread in threading.enumerate():
            # A limit on priorities may end at the one that was asked for.
            for wanted in {"source": (level,), "watch": (level + 1, level)}.get(thread.name, ()):
                with contextlib.suppress(OSError):
                    self._promote(thread.native_id or 0, wanted)
                    break
        self.reached["realtime"]["threads"] = len(self._raised)

    def _bind(self, cpus: set[int]) -> None:
        asked = _listed(cpus)
        before = os.sched_getaffinity(0)
        self.reached["cpus"] = {"asked": sorted(cpus), "reached": None, "threads": 0}
        try:
            os.sched_setaffinity(0, cpus)
        except OSError as error:
            self.notes.append(
                f"--cpus {asked} cannot be had ({error.strerror}; {_listed(before)} are allowed); "
                "the run goes on unbound"
            )
            return
        self._cpus_before = before
        have = os.sched_getaffinity(0)
        if have != cpus:
            # The kernel leaves out CPUs that are offline or outside the container, in silence.
            self.notes.append(f"of --cpus {asked} only {_listed(have)} can be had")
        self._gather(have)

    def _gather(self, cpus: set[int]) -> None:
        """Bind the threads that are there; one that pinned itself within ``cpus`` stays so."""

        def bind(thread: int) -> None:
            if not os.sched_getaffinity(thread) <= cpus:
                os.sched_setaffinity(thread, cpus)

        bound = _each(_threads(), bind)
        self.reached["cpus"] |= {"reached": sorted(cpus), "threads": bound}

    def _raise(self, threads: list[int], priority: int) -> None:
        entry = {"asked": priority, "reached": None, "threads": 0}
        self.reached["realtime"] = entry
        try:
            _each(threads, lambda thread: self._promote(thread, priority))
        except OSError as error:
            self.notes.append(
                f"--realtime-priority {priority} cannot be had ({error.strerror}); give the "
                "process CAP_SYS_NICE or LimitRTPRIO; the run goes on at normal priority"
            )
        else:
            entry |= {"reached": priority, "threads": len(self._raised)}

    def _promote(self, thread: int, priority: int) -> None:
        # What a raised thread starts is not raised with it: drawing, saving, the live view.
        policy = os.SCHED_FIFO | os.SCHED_RESET_ON_FORK
        os.sched_setscheduler(thread, policy, os.sched_param(priority))
        self._raised.add(thread)

    def _lock(self) -> None:
        self.reached["memory"] = {"asked": True, "locked_mb": None}
        limit, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
        reason = None
        if limit != resource.RLIM_INFINITY and not _may_lock():
            # It would succeed today, and the first allocation past the limit fail.
            reason = f"the limit is {limit / 1e6:.1f} MB"
        else:
            # Not only what was touched so far: the way into the safe state must not come from disk.
            if _libc().mlockall(_MCL_CURRENT | _MCL_FUTURE) != 0:
                reason = os.strerror(ctypes.get_errno())
        if reason is not None:
            self.notes.append(
                f"--lock-memory cannot be had ({reason}); give the process CAP_IPC_LOCK or "
                "LimitMEMLOCK=infinity; the run goes on with memory that may be swapped out"
            )
            return
        self._locked = True
        self.reached["memory"]["locked_mb"] = round(_status_kb("VmLck") / 1e3, 1)


def _threads() -> list[int]:
    return [int(name) for name in os.listdir("/proc/self/task")]


def _each(threads: Iterable[int], change: Callable[[int], None]) -> int:
    """How many of ``threads`` were changed; one that has ended meanwhile is passed over."""
    count = 0
    for thread in threads:
        try:
            change(thread)
        except ProcessLookupError:
            continue
        count += 1
    return count


def _listed(cpus: set[int]) -> str:
    """``2-5,7``."""
    parts: list[list[int]] = []
    for cpu in sorted(cpus):
        if parts and parts[-1][-1] == cpu - 1:
            parts[-1][1:] = [cpu]
        else:
            parts.append([cpu])
    return ",".join("-".join(map(str, part)) for part in parts)


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _may_lock() -> bool:
    return bool(int(_status("CapEff"), 16) >> _CAP_IPC_LOCK & 1)


def _status_kb(key: str) -> int:
    return int(_status(key).split()[0])


def _status(key: str) -> str:
    text = Path("/proc/self/status").read_text()
    return next(line for line in text.splitlines() if line.startswith(f"{key}:")).split(None, 1)[1]
