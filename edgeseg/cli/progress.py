"""The progress bar that commands share."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["Report", "frame_progress"]

Report = Callable[[int, int], None]
"""Is told how many frames are done, and of how many."""


@contextmanager
def frame_progress(label: str = "frames") -> "Iterator[Report | None]":
    """A progress bar on stderr, on a terminal only; yields the callback or ``None``."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    with Progress(
        TextColumn(label),
        *Progress.get_default_columns()[1:2],
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    ) as bar:
        task = bar.add_task(label, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
