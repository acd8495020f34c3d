"""Inference engines behind one small interface.

A backend runs ``body.onnx`` and nothing else: uint8 frame in, float32 features out, as a view of
a buffer that the engine or the backend owns. Scoring is not its business.
"""

import importlib
import importlib.metadata
import importlib.util
import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from edgeseg.errors import ArtefactError, MissingDependencyError, UsageError
from edgeseg.runtime import cache
from edgeseg.runtime.machine import cpu_flags, cpu_model

__all__ = [
    "BACKENDS",
    "Backend",
    "BodySpec",
    "available_backends",
    "engine_version",
    "open_backend",
    "why_not",
]

# In the order in which they are tried; the distribution whose version names the engine.
BACKENDS: Final[dict[str, str]] = {"openvino": "openvino", "onnxruntime": "onnxruntime"}

# Only where they are asked for by name: they need an NVIDIA GPU, and some a graph of their own.
# Name: module that must be there, module here that opens it, how to get it.
_GPU_BACKENDS: Final[dict[str, tuple[tuple[str, ...], str, str]]] = {
    "tensorrt": (
        ("tensorrt", "tensorrt_rtx"),
        "tensorrt",
        "it comes with JetPack, elsewhere run 'pip install tensorrt cuda-python'",
    ),
    "onnxruntime-cuda": (
        ("onnxruntime",),
        "onnxruntime_cuda",
        "run 'pip install onnxruntime-gpu'",
    ),
    "onnxruntime-tensorrt": (
        ("onnxruntime",),
        "onnxruntime_tensorrt",
        "run 'pip install onnxruntime-gpu tensorrt'",
    ),
}

_TRIAL_SECONDS: Final = 600


class Backend(Protocol):
    """An opened engine. Not thread-safe: one frame at a time."""

    name: str

    def infer(self, frame: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Features of ``frame`` (uint8 ``[1, H, W, 3]``, C-contiguous): float32, a view that
        the next call overwrites.
        """
        ...

    def describe(self) -> dict[str, Any]:
        """Engine, version, threads and the precision it computes in, for reports."""
        ...

    def close(self) -> None:
        """Free the engine; the views that it gave out are invalid afterwards."""
        ...


@dataclass(frozen=True, slots=True)
class BodySpec:
    """What an engine must be told about a body, and what it is held to."""

    path: Path
    sha256: str
    height: int
    width: int
    compute_precision: str
    """``f32`` or ``bf16``."""

    def check_input(self, name: str, dtype: str, shape: list[Any]) -> None:
        """ArtefactError unless the graph takes uint8 ``frame`` [1, H, W, 3]."""
        expected = [1, self.height, self.width, 3]
        if (name, dtype, shape) != ("frame", "uint8", expected):
            raise ArtefactError(
                f"'{self.path}' takes '{name}' {dtype} {shape} where its bundle promises "
                f"'frame' uint8 {expected}; export the bundle again"
            )

    def check_output(self, name: str, dtype: str, shape: list[Any]) -> None:
        """ArtefactError unless the graph gives float32 ``features`` of static axes."""
        static = all(isinstance(n, int) and n > 0 for n in shape)
        if (name, dtype) != ("features", "float32") or len(shape) not in (3, 4) or not static:
            raise ArtefactError(
                f"'{self.path}' gives '{name}' {dtype} {shape} where its bundle promises "
                "'features' float32 with fixed axes; export the bundle again"
            )


def available_backends() -> list[str]:
    """Names of the engines that are installed, without importing them."""
    return [name for name in BACKENDS if importlib.util.find_spec(name) is not None]


def engine_version(name: str) -> str:
    """Version of an installed engine, without importing it; ``""`` where it is unknown."""
    # onnxruntime-gpu and Jetson builds carry other distribution names.
    for distribution in (BACKENDS[name], f"{name}-gpu", f"{name}-openvino"):
        try:
            return importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
    return ""


def why_not(name: str) -> str | None:
    """Why an engine cannot be used, in one line; ``None`` where it can. Imports it."""
    if importlib.util.find_spec(name) is None:
        return f"not installed (pip install {BACKENDS[name]})"
    try:
        importlib.import_module(name)
    except Exception as error:  # a broken engine may raise anything
        return f"import fails: {_one_line(error)}"
    return None


def open_backend(name: str, body: BodySpec, threads: int, *, trial: bool = True) -> Backend:
    """Load ``body`` into an engine.

    Args:
        name: one of :data:`BACKENDS`, or ``tensorrt``, ``onnxruntime-cuda``,
            ``onnxruntime-tensorrt``.
        body: graph and contract.
        threads: worker threads of the engine, at least 1.
        trial: load a graph that this machine has not seen in a child process first, so that a
            crash of the engine's compiler becomes an error message.

    Raises:
        UsageError: no such backend.
        MissingDependencyError: the engine is not installed, or is not the provider it claims.
        ArtefactError: the engine refuses the graph, or crashes on it.
    """
    if name in _GPU_BACKENDS:
        # No trial: a child would hold the GPU's memory a second time.
        return _open_on_gpu(name, body, threads)
    if name not in BACKENDS:
        known = ", ".join(sorted([*BACKENDS, *_GPU_BACKENDS]))
        raise UsageError(f"backend '{name}' is unknown; choose auto, {known}")
    if importlib.util.find_spec(name) is None:
        raise MissingDependencyError(
            f"backend '{name}' is not installed; run 'pip install {BACKENDS[name]}' or choose "
            "--backend auto"
        )
    if trial:
        _try_in_child(name, body, threads)
    return load(name, body, threads)


def load(name: str, body: BodySpec, threads: int) -> Backend:
    """:func:`open_backend` without its checks and without the trial."""
    try:
        module = importlib.import_module(f"edgeseg.runtime.backends.{name}")
    except ImportError as error:
        raise MissingDependencyError(
            f"backend '{name}' is installed but cannot be imported ({_one_line(error)}); "
            f"reinstall it with 'pip install --force-reinstall {BACKENDS[name]}'"
        ) from None
    backend: Backend = module.open_engine(body, threads)
    return backend


def _open_on_gpu(name: str, body: BodySpec, threads: int) -> Backend:
    needed, module, how = _GPU_BACKENDS[name]
    if not any(importlib.util.find_spec(package) for package in needed):
        raise MissingDependencyError(f"backend '{name}' is not installed; {how}")
    try:
        opener = importlib.import_module(f"edgeseg.runtime.backends.{module}")
    except ImportError as error:
        raise MissingDependencyError(
            f"backend '{name}' is installed but cannot be imported ({_one_line(error)}); {how}"
        ) from None
    backend: Backend = opener.open_engine(body, threads)
    return backend


def _try_in_child(name: str, body: BodySpec, threads: int) -> None:
    question = {
        "backend": name,
        "version": engine_version(name),
        "body": body.sha256,
        "cpu": cpu_model(),
        "flags": len(cpu_flags()),
        "precision": body.compute_precision,
    }
    if cache.recall("loaded", question) is True or not sys.executable:
        return
    # The child starts in the folder that holds this package, so that it imports this very
    # package and nothing that happens to lie where the user stands.
    root = Path(__file__).resolve().parents[3]
    request = {
        "backend": name,
        "path": str(body.path.resolve()),
        "sha256": body.sha256,
        "height": body.height,
        "width": body.width,
        "compute_precision": body.compute_precision,
        "threads": threads,
    }
    try:
        done = subprocess.run(
            [sys.executable, "-m", "edgeseg.runtime.trial", json.dumps(request)],
            cwd=root,
            env={**os.environ, "PYTHONFAULTHANDLER": ""},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_TRIAL_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ArtefactError(
            f"backend '{name}' did not finish loading '{body.path}' in {_TRIAL_SECONDS} s; try "
            "another --backend"
        ) from None
    if done.returncode == 0:
        cache.remember("loaded", question, True)
        return
    if done.returncode < 0:
        try:
            cause = signal.Signals(-done.returncode).name
        except ValueError:
            cause = f"signal {-done.returncode}"
        raise ArtefactError(
            f"backend '{name}' {engine_version(name)} crashed ({cause}) while loading "
            f"'{body.path}'; try another --backend or export the bundle again"
        )
    _raise_from_child(name, body, done.stdout)


def _raise_from_child(name: str, body: BodySpec, stdout: bytes) -> None:
    lines = stdout.decode(errors="replace").strip().splitlines()
    try:
        answer = json.loads(lines[-1])
        kind, message = str(answer["kind"]), str(answer["message"])
    except (IndexError, ValueError, KeyError, TypeError):
        raise ArtefactError(
            f"backend '{name}' could not load '{body.path}'; try another --backend or export "
            "the bundle again"
        ) from None
    if kind == "MissingDependencyError":
        raise MissingDependencyError(message)
    raise ArtefactError(message)


def refusal(name: str, body: BodySpec, error: Exception) -> ArtefactError:
    """The error for an engine that raised ``error`` on a graph."""
    return ArtefactError(
        f"backend '{name}' refuses '{body.path}' ({_one_line(error)}); try another --backend or "
        "export the bundle again"
    )


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text[:300] if text else type(error).__name__
