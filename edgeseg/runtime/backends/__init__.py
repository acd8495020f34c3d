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

from edgeseg import __version__
from edgeseg.bundle import Bundle
from edgeseg.errors import ArtefactError, MissingDependencyError, UsageError
from edgeseg.runtime import cache
from edgeseg.runtime.machine import cpu_flags, cpu_model

__all__ = [
    "BACKENDS",
    "Backend",
    "BodySpec",
    "available_backends",
    "check_installed",
    "checked_features",
    "engine_version",
    "features_shape",
    "open_backend",
    "try_in_child",
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

    @classmethod
    def of(cls, bundle: Bundle) -> "BodySpec":
        """A bundle's body."""
        manifest = bundle.manifest
        return cls(
            bundle.body_path,
            bundle.body_sha256,
            manifest.height,
            manifest.width,
            manifest.compute_precision,
        )

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


def features_shape(bundle: Bundle) -> tuple[int, ...]:
    """Of the features that a bundle's head takes, with a batch axis of 1."""
    (height, width), head = bundle.size, bundle.head
    rows, columns = height // head.factor, width // head.factor
    if head.layout == "nhwc":
        return (1, rows, columns, head.channels_in)
    return (1, head.channels_in, rows, columns)


def checked_features(bundle: Bundle, features: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """``features`` as they are; ArtefactError unless the bundle's head can take them."""
    expected = features_shape(bundle)
    # Bodies may leave rows and columns in one axis: engines write channels-last features straight
    # to their place only then.
    merged = (1, expected[1] * expected[2], expected[3])
    fits = features.shape == expected or (bundle.head.layout == "nhwc" and features.shape == merged)
    if not fits or features.dtype != np.float32 or not features.flags.c_contiguous:
        raise ArtefactError(
            f"'{bundle.body_path}' gives features {list(features.shape)} and the head needs "
            f"{list(expected)}; export the bundle again"
        )
    return features


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
    check_installed(name)
    if name in _GPU_BACKENDS:
        # No trial: a child would hold the GPU's memory a second time.
        return _open_on_gpu(name, body, threads)
    if trial:
        try_in_child(name, body, threads)
    return load(name, body, threads)


def check_installed(name: str) -> None:
    """Raise unless there is a backend ``name`` here; imports nothing.

    Raises:
        UsageError: no such backend.
        MissingDependencyError: its engine is not installed.
    """
    if name in _GPU_BACKENDS:
        needed, _, how = _GPU_BACKENDS[name]
        if not any(importlib.util.find_spec(package) for package in needed):
            raise MissingDependencyError(f"backend '{name}' is not installed; {how}")
        return
    if name not in BACKENDS:
        known = ", ".join(sorted([*BACKENDS, *_GPU_BACKENDS]))
        raise UsageError(f"backend '{name}' is unknown; choose auto, {known}")
    if importlib.util.find_spec(name) is None:
        raise MissingDependencyError(
            f"backend '{name}' is not installed; run 'pip install {BACKENDS[name]}' or choose "
            "--backend auto"
        )


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
    _, module, how = _GPU_BACKENDS[name]
    try:
        opener = importlib.import_module(f"edgeseg.runtime.backends.{module}")
    except ImportError as error:
        raise MissingDependencyError(
            f"backend '{name}' is installed but cannot be imported ({_one_line(error)}); {how}"
        ) from None
    backend: Backend = opener.open_engine(body, threads)
    return backend


def try_in_child(name: str, body: BodySpec, threads: int, *, library: bool = False) -> None:
    """Load a body that this machine has not seen in a child process, and run it once.

    Args:
        name: one of :data:`BACKENDS`.
        body: graph and contract.
        threads: worker threads of the engine.
        library: through libedgeseg, which runs the bundle that the body lies in.

    Raises:
        MissingDependencyError: the engine is not there.
        ArtefactError: it refuses the graph, or crashes on it.
    """
    question: dict[str, Any] = {
        "backend": name,
        "version": engine_version(name),
        "body": body.sha256,
        "cpu": cpu_model(),
        "flags": len(cpu_flags()),
        "precision": body.compute_precision,
    }
    if library:
        question["library"] = __version__
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
        "library": library,
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
