"""Measures on a host what was copied there, and tells what it found."""

import importlib.util
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from edgeseg.bundle import Bundle
from edgeseg.errors import EdgesegError
from edgeseg.profiling.detection import Found, board_model, gpu_name, resolve
from edgeseg.profiling.devices import ALIASES, Device, device_names, load_device
from edgeseg.profiling.latency import Effort, Measurement, measure
from edgeseg.profiling.reference import is_reference, reference_ratios
from edgeseg.profiling.remote import libraries
from edgeseg.runtime.machine import cpu_model
from edgeseg.runtime.session import Session

__all__ = ["answer", "detect"]

Tell = Callable[[str, Any], None]


def answer(request: dict[str, Any], folder: str, tell: Tell) -> None:
    """Measure, and tell ``result`` or ``error``.

    Args:
        request: ``device`` (a name, or ``None``: what this is), ``backend``, ``threads``,
            ``seconds``, ``compare``, and ``bundles``: ``folder``, ``label``, ``scorer`` of each.
        folder: where the bundles lie.
        tell: takes a kind and a value for JSON; ``progress`` is told once a second.
    """
    try:
        tell("result", _measured(request, Path(folder), tell))
    except EdgesegError as error:
        message = str(error)
        for entry in request["bundles"]:
            message = message.replace(str(Path(folder, entry["folder"])), entry["label"])
        tell("error", {"code": error.exit_code, "message": message})
    except Exception as error:
        tell("error", {"code": 1, "message": f"unexpected {type(error).__name__}: {error}"})


def detect(tell_board: Callable[[], str | None], tell_gpu: Callable[[], str | None]) -> Found:
    """What the machine at hand is, where it can be measured as that; else a processor.

    Args:
        tell_board: the board's model.
        tell_gpu: the graphics card's name.
    """
    boards = [n for n in device_names() if load_device(n).device not in ALIASES and n != "cpu"]
    note = ""
    for name in (*ALIASES, *boards):
        device, here, _ = resolve(name, board=tell_board, gpu=tell_gpu)
        if here and _can_measure(device):
            return device, True, ""
        if here and not note:
            engine = device.backends[0]
            note = f"no {engine} for its {device.title}, so its processor is measured"
    return load_device("cpu"), True, note


def _can_measure(device: Device) -> bool:
    # The name of an engine is that of its package.
    found = (importlib.util.find_spec(name.split("-")[0]) for name in device.backends)
    return not device.estimate_only and any(found)


def _measured(request: dict[str, Any], folder: Path, tell: Tell) -> dict[str, Any]:
    kernels = libraries.provide(folder / "edgeseg")
    board, gpu = cache(board_model), cache(gpu_name)
    name = request["device"]
    device, here, note = resolve(name, board=board, gpu=gpu) if name else detect(board, gpu)
    backend = request["backend"]
    if backend == "auto" and here and device.device != "cpu":
        backend = device.backends[0]
    rows = []
    for number, entry in enumerate(request["bundles"]):
        bundle = Bundle.open(folder / entry["folder"])
        with Session(bundle, backend, request["threads"], entry["scorer"]) as session:
            progress = _Progress(number, tell)
            found = measure(session, Effort(seconds=request["seconds"]), progress=progress)
            compared = request["compare"] and not is_reference(bundle)
            ratios = reference_ratios(session, progress).tolist() if compared else None
            rows.append(_row(session, found, ratios))
    return {
        "kernels": kernels,
        "processor": cpu_model(),
        "device": device.name,
        "here": here,
        "note": note,
        "rows": rows,
    }


def _row(session: Session, found: Measurement, ratios: list[float] | None) -> dict[str, Any]:
    return {
        **asdict(found),
        "latency_ms": found.latency_ms.tolist(),
        "before": found.before.to_document() if found.before else None,
        "after": found.after.to_document() if found.after else None,
        "backend": session.backend_name,
        "threads": session.threads,
        "engine": session.describe(),
        "notes": session.notes,
        "ratios": ratios,
    }


class _Progress:
    """Tells frames done and expected, seldom enough not to disturb what is measured."""

    def __init__(self, number: int, tell: Tell) -> None:
        self._number, self._tell, self._last = number, tell, 0.0

    def __call__(self, done: int, expected: int) -> None:
        now = time.monotonic()
        if now - self._last >= 1:
            self._last = now
            self._tell("progress", [self._number, done, expected])
