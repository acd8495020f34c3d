"""What a run says on stderr."""

import sys
from typing import Any, Final

from edgeseg.runtime.frames import BadFrame

__all__ = ["Progress", "say"]

_MAX_WARNINGS: Final = 20


class Progress:
    """A bar on stderr, only where that is a terminal; warnings go there in any case."""

    def __init__(self, total: int | None) -> None:
        self._bar: Any = None
        self._task: Any = None
        self._total = total
        self._warned = 0

    def __enter__(self) -> "Progress":
        if sys.stderr.isatty():
            from rich import progress as columns
            from rich.console import Console

            self._bar = columns.Progress(
                columns.TextColumn("frames"),
                columns.BarColumn(),
                columns.MofNCompleteColumn(),
                columns.TextColumn("{task.fields[rate]}"),
                columns.TimeRemainingColumn(),
                console=Console(stderr=True),
                transient=True,
            )
            self._bar.start()
            self._task = self._bar.add_task("frames", total=self._total, rate="")
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
        if self._warned > _MAX_WARNINGS:
            say(f"{self._warned - _MAX_WARNINGS} more frames could not be read")

    def advance(self, frames: int) -> None:
        """Show that ``frames`` are done."""
        if self._bar is not None:
            speed = self._bar.tasks[0].speed
            rate = f"{speed:.1f}/s" if speed else ""
            self._bar.update(self._task, completed=frames, rate=rate)

    def warn(self, bad: BadFrame) -> None:
        """Report a frame that could not be read."""
        self._warned += 1
        if self._warned <= _MAX_WARNINGS:
            say(bad.reason)


def say(text: str) -> None:
    """A line on stderr, at once."""
    print(f"edgeseg: {text}", file=sys.stderr, flush=True)
