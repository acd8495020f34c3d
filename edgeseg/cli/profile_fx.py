"""Measuring what ``edgeseg quantize --method fx`` wrote: it runs in torch, and makes no bundle."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from edgeseg.profiling.subjects import Subject
    from edgeseg.runtime.session import Result

__all__ = ["FXRunner", "open_fx"]


class FXRunner:
    """A quantized network in torch, with the scores that a session gives: float16."""

    backend_name = "torch-fx"

    def __init__(self, predictor: Any, size: tuple[int, int], scorer: str, threads: int) -> None:
        from edgeseg.scoring.head import Head
        from edgeseg.scoring.kernels import HeadKernel
        from edgeseg.taxonomy import CLASSES

        self.size, self.scorer, self.threads = size, scorer, threads
        self.macs_integer = 0
        """Of its multiply-accumulates; unlike a bundle's, some of its layers stay float."""
        self._predictor = predictor
        outputs = predictor.logits(np.zeros((*size, 3), np.uint8)).shape[0]
        known = len(CLASSES)
        head = Head("identity", outputs, known, known if outputs > known else None, 1)
        self._kernel = HeadKernel(head, *size, scorer, 1.0, threads, np.float16)

    def run(self, frame: npt.NDArray[np.uint8]) -> "Result":
        """Class map and score; ``body`` is all that torch does, upsampling included."""
        import time

        from edgeseg.runtime.session import Result

        start = time.perf_counter_ns()
        logits = self._predictor.logits(frame)
        middle = time.perf_counter_ns()
        class_map, score = self._kernel.run(logits)
        end = time.perf_counter_ns()
        parts = {"body": (middle - start) / 1e6, "head": (end - middle) / 1e6}
        return Result(class_map, score, parts)

    def describe(self) -> dict[str, Any]:
        """Engine and precision."""
        return {"backend": self.backend_name, "precision": "int8", "threads": self.threads}


def open_fx(
    network: str,
    folder: Path,
    size: tuple[int, int] | None,
    scorer: str | None,
    threads: int | None,
) -> "tuple[Subject, FXRunner]":
    """The network of an FX folder, ready to be measured, and its counts.

    Raises:
        MissingDependencyError: torch is not installed.
        UsageError: a size or scorer that it does not take, or a pruned structure.
    """
    from edgeseg.errors import MissingDependencyError, UsageError
    from edgeseg.profiling.subjects import from_table
    from edgeseg.runtime.machine import available_cores

    try:
        from edgeseg.compression.fx_network import FXPredictor, fx_counts
        from edgeseg.compression.quantize_fx import load_fx
    except ImportError as error:
        raise MissingDependencyError(
            f"FX networks run in torch, and '{error.name}' is not installed; "
            "run pip install 'edgeseg[build]'"
        ) from None
    module = load_fx(network, folder)
    subject = from_table(network).at("int8", size)
    counts = fx_counts(module, *subject.graph.size)
    if counts.macs_integer + counts.macs_float != round(subject.macs_network * subject.graph.ratio):
        raise UsageError(
            f"'{folder}' is a {network} of another structure than the published one, whose layers "
            "only a bundle tells; profile the bundle that 'edgeseg export --int8' makes of it"
        )
    subject = replace(
        subject,
        label=str(folder),
        file_bytes=sum(p.stat().st_size for p in folder.iterdir() if p.is_file()),
    )
    cores = threads or available_cores()
    predictor = FXPredictor(module, weights=folder / "fx.json", threads=cores)
    chosen = subject.choose_scorer(scorer)
    runner = FXRunner(predictor, subject.graph.size, chosen, cores)
    runner.macs_integer = counts.macs_integer
    return subject, runner
