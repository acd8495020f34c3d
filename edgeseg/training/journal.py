"""What a run tells: ``metrics.jsonl``, TensorBoard events, lines and a bar on stderr."""

import contextlib
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeseg.files import write_whole

if TYPE_CHECKING:
    from rich.progress import Progress

__all__ = ["Journal"]


class Journal:
    """Records of a run; one that goes on forgets what came after its checkpoint."""

    def __init__(self, folder: Path, step: int, total: int, title: str) -> None:
        """Args:
        folder: output folder of the run.
        step: steps done already; later records are dropped.
        total: steps of the run.
        title: what the bar shows.
        """
        self._path = folder / "metrics.jsonl"
        _keep_until(self._path, step)
        self._file = self._path.open("a", encoding="utf-8")
        self._events = _tensorboard(folder / "tensorboard", step)
        self._bar: Progress | None = None
        if sys.stderr.isatty():
            self._bar = _bar()
            self._bar.start()
            self._task = self._bar.add_task(title, total=total, completed=step, figures="")
        self._title, self._total = title, total
        self._last_line = time.monotonic()

    def record(self, step: int, **figures: Any) -> None:
        """Figures after ``step`` steps; numbers go to TensorBoard too."""
        self._file.write(json.dumps({"step": step, **figures}) + "\n")
        self._file.flush()
        if self._events is not None:
            for key, value in figures.items():
                if isinstance(value, int | float):
                    self._events.add_scalar(key, value, step)

    def progress(self, step: int, figures: str) -> None:
        """Move the bar; without a terminal a line every half minute."""
        if self._bar is not None:
            self._bar.update(self._task, completed=step, figures=figures)
        elif time.monotonic() - self._last_line > 30.0:
            self._last_line = time.monotonic()
            self.say(f"step {step} of {self._total}, {figures}")

    def say(self, text: str) -> None:
        """One line on stderr."""
        if self._bar is not None:
            self._bar.console.print(text, highlight=False)
        else:
            print(f"{time.strftime('%H:%M:%S')} {self._title}: {text}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """End the bar and flush the files."""
        if self._bar is not None:
            self._bar.stop()
        self._file.close()
        if self._events is not None:
            self._events.close()


def _bar() -> "Progress":
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[figures]}"),
        console=Console(stderr=True),
    )


def _keep_until(path: Path, step: int) -> None:
    """Drop records of later steps, and a last line that was cut by a kill."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        with contextlib.suppress(ValueError, TypeError, KeyError):
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
    write_whole(path, "".join(kept).encode())


def _tensorboard(folder: Path, step: int) -> Any:
    """A writer of events, where tensorboard is installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder), purge_step=step + 1 if step else None)
