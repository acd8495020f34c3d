"""The ready bundle as a measure: what a shared machine does to it, it does to others too."""

from collections.abc import Callable
from typing import Final

import numpy as np
import numpy.typing as npt

from edgeseg.bundle import Bundle
from edgeseg.profiling.latency import Runner, ratios
from edgeseg.runtime import ready
from edgeseg.runtime.session import Session

__all__ = ["is_reference", "reference_name", "reference_ratios"]

_ROUNDS: Final = 12


def is_reference(bundle: Bundle) -> bool:
    """Whether a bundle is the ready one: beside itself it would show noise alone."""
    return bundle.body_sha256 == Bundle.open(ready.ready_bundle()).body_sha256


def reference_name() -> str:
    """The ready bundle, by network, precision and the hash of its body."""
    bundle = Bundle.open(ready.ready_bundle())
    manifest = bundle.manifest
    return f"{manifest.network}-{manifest.precision}-{bundle.body_sha256[:12]}"


def reference_ratios(
    session: Runner, progress: Callable[[int, int], None]
) -> npt.NDArray[np.float64]:
    """Times over those of the ready bundle, on the same engine, in turns; one a turn.

    Args:
        session: opened.
        progress: is told turns done and in all.
    """
    with Session(ready.ready_bundle(), session.backend_name, session.threads) as reference:
        return ratios(session, reference, _ROUNDS, progress=progress)
