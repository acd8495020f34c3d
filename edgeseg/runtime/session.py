"""A session: frame in, class map and anomaly score out."""

import os
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgeseg.bundle import Bundle
from edgeseg.errors import UsageError
from edgeseg.runtime.backends import (
    Backend,
    BodySpec,
    check_installed,
    checked_features,
    features_shape,
    open_backend,
)
from edgeseg.runtime.backends.native import LibraryBackend
from edgeseg.runtime.backends.paths import SessionPath, chosen_path, open_path
from edgeseg.runtime.library import LibraryResult
from edgeseg.runtime.machine import available_cores, has_native_bf16
from edgeseg.scoring.kernels import HeadKernel
from edgeseg.scoring.library import MAX_THREADS, check_forced_isa

if TYPE_CHECKING:
    from edgeseg.runtime.backends.tensorrt import TensorRtBackend

__all__ = ["Result", "Session", "default_scorer"]


@dataclass(frozen=True, slots=True)
class Result:
    """What a frame gave. The arrays are reused: copy what must outlive the next call."""

    class_map: npt.NDArray[np.uint8]
    """``[H, W]``, 0 .. known classes - 1."""
    score: npt.NDArray[Any]
    """``[H, W]``, float16 or float32, larger is more anomalous."""
    timings: dict[str, float] = field(default_factory=dict)
    """Milliseconds of ``body`` (engine) and ``head`` (upsampling, class map, score); ``body``
    alone where the engine does both."""


def default_scorer(bundle: Bundle) -> str:
    """``void`` where the network was trained for it, else ``msp``, else the first it has."""
    have = bundle.manifest.scorers
    return next((name for name in ("void", "msp") if name in have), next(iter(have)))


class Session:
    """An opened bundle on an engine.

    >>> with Session("export/erfnet-int8") as session:  # doctest: +SKIP
    ...     result = session.run(frame)
    ...     result.class_map.shape, result.score.dtype
    ((512, 1024), dtype('float16'))

    Args:
        bundle: a bundle, or the folder of one.
        backend: ``auto``, the name of an engine, or an opened :class:`Backend` (which the
            session then owns).
        threads: of the engine and of the head kernel; default: the cores that this process may
            use.
        scorer: default: :func:`default_scorer`.
        temperature: default: the bundle's for this scorer.
        score_dtype: float16 or float32.
        path: ``library`` runs onnxruntime and openvino through libedgeseg, ``python`` through
            their Python packages, with the same results; ``auto`` is what
            ``EDGESEG_SESSION`` says, else the library where it works.

    Raises:
        UsageError: a scorer, temperature, thread count or path that cannot be.
        MissingDependencyError: no engine, or not the one asked for.
        ArtefactError: the bundle is damaged, or the engine refuses it.
    """

    def __init__(
        self,
        bundle: Bundle | str | os.PathLike[str],
        backend: str | Backend = "auto",
        threads: int | None = None,
        scorer: str | None = None,
        temperature: float | None = None,
        score_dtype: npt.DTypeLike = np.float16,
        path: SessionPath = "auto",
    ) -> None:
        self.bundle = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
        self.threads = min(available_cores(), MAX_THREADS) if threads is None else threads
        if not 1 <= self.threads <= MAX_THREADS:
            raise UsageError(f"{threads} threads cannot be had; give 1 to {MAX_THREADS}")
        self._dtype = np.dtype(score_dtype)
        if self._dtype not in (np.float16, np.float32):
            raise UsageError(f"score type {self._dtype} is neither float16 nor float32")
        self.scorer, self.temperature = self._choose(scorer, temperature)
        check_forced_isa()
        height, width = self.bundle.size
        self._frame = np.zeros((1, height, width, 3), np.uint8)
        self._features_shape = features_shape(self.bundle)
        self._kernel: HeadKernel | None = None
        self._backend: Backend | None = None
        self._scoring: TensorRtBackend | None = None
        self.path_reason: str | None = None
        """Why frames do not go through libedgeseg, in a sentence; ``None`` where they do."""
        self._closed = False
        try:
            self._open(backend, chosen_path(path))
        except BaseException:
            self.close()
            raise

    @property
    def backend_name(self) -> str:
        """Name of the engine in use."""
        return self._engine.name

    @property
    def path(self) -> SessionPath:
        """``library`` or ``python``."""
        return "python" if self._library is None else "library"

    @property
    def gives_features(self) -> bool:
        """Whether :meth:`features` works without opening another engine first."""
        return self._backend is not None

    @property
    def score_dtype(self) -> "np.dtype[Any]":
        """float16 or float32."""
        return self._dtype

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the frame that :meth:`run` takes, in pixels."""
        return self.bundle.size

    @property
    def threshold(self) -> float | None:
        """The bundle's default threshold for the scorer in use: ``None`` where it has none, or
        where the temperature is not the one it was taken at.
        """
        defaults = self.bundle.scorer_defaults(self.scorer)
        return defaults.threshold if defaults.temperature == self.temperature else None

    def describe(self) -> dict[str, Any]:
        """Engine, precision and scorer, for reports and captions."""
        return {
            **self._engine.describe(),
            "network": self.bundle.manifest.network,
            "weights": self.bundle.manifest.weights_name,
            "precision": self.bundle.manifest.precision,
            "size": "{}x{}".format(*self.size),
            "scorer": self.scorer,
            "temperature": self.temperature,
            "path": self.path,
            "path_reason": self.path_reason,
        }

    @property
    def notes(self) -> list[str]:
        """What a user should know about how the bundle runs here, a sentence each."""
        asked = self.bundle.manifest.compute_precision
        got = self._engine.describe().get("compute_precision", asked)
        if asked == got or (asked == "bf16" and got == "bfloat16"):
            if asked == "bf16" and not has_native_bf16():
                return ["the bundle asks for bf16, which this processor has to emulate"]
            return []
        return [
            f"the bundle asks for {asked} outside its integer layers; {self.backend_name} "
            f"computes in {got} on this processor"
        ]

    def run(self, frame: npt.NDArray[np.uint8]) -> Result:
        """Class map and score of one frame.

        Args:
            frame: uint8 ``[H, W, 3]``, BGR, at the network's size (:attr:`size`).

        Returns:
            views of buffers that the next call overwrites.

        Raises:
            UsageError: another size or type.
        """
        self._check_frame(frame)
        if self._library is not None:
            return _result(self._library.run(frame))
        start = time.perf_counter_ns()
        if self._scoring is not None:
            # Body and head run on the GPU in one engine: three bytes a pixel come back.
            class_map, score = self._scoring.score(self._as_input(frame))
            return Result(class_map, score, {"body": (time.perf_counter_ns() - start) / 1e6})
        features = self.features(frame)
        middle = time.perf_counter_ns()
        class_map, score = self._run_head(features, self.scorer, self.temperature)
        end = time.perf_counter_ns()
        return Result(
            class_map, score, {"body": (middle - start) / 1e6, "head": (end - middle) / 1e6}
        )

    def features(self, frame: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """The body's output for ``frame`` (as :meth:`run` takes it): float32 ``[1, ...]`` in the
        head's layout, a view that the next call overwrites and :meth:`close` ends.

        Where :meth:`run` needs none (:attr:`gives_features`), the first call opens an engine for
        them.
        """
        self._check_frame(frame)
        self.open_features()
        assert self._backend is not None
        features = self._backend.infer(self._as_input(frame))
        # An nhwc body may leave its two spatial axes as one (see the exporter's last pass).
        return features if features.ndim == 4 else features.reshape(self._features_shape)

    def open_features(self) -> None:
        """Open now what the first :meth:`features` would; does nothing where that is nothing."""
        self._check_open()
        if self._backend is None:
            body = BodySpec.of(self.bundle)
            self._backend = open_backend(self._engine.name, body, self.threads)
            self._warm_up(self._backend)

    def score(
        self,
        features: npt.NDArray[np.float32],
        scorer: str | None = None,
        temperature: float | None = None,
    ) -> Result:
        """Class map and score of features that :meth:`features` gave; other scorers than the
        session's share the body's work this way.
        """
        name, chosen = self._choose(scorer or self.scorer, temperature)
        if self._library is not None and self._library.gave(features):
            return _result(self._library.score(name, chosen))
        start = time.perf_counter_ns()
        class_map, score = self._run_head(features, name, chosen)
        return Result(class_map, score, {"head": (time.perf_counter_ns() - start) / 1e6})

    def close(self) -> None:
        """Free the engine and the kernel; safe to call twice."""
        self._closed = True
        for part in (self._backend, self._scoring, self._kernel):
            if part is not None:
                part.close()

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def _engine(self) -> "Backend | TensorRtBackend":
        """What runs frames: the backend, or what scores on the GPU."""
        engine = self._backend if self._scoring is None else self._scoring
        assert engine is not None
        return engine

    @property
    def _library(self) -> LibraryBackend | None:
        return self._backend if isinstance(self._backend, LibraryBackend) else None

    def _open(self, backend: str | Backend, path: SessionPath) -> None:
        if not isinstance(backend, str):
            self._backend, self.path_reason = backend, "an opened backend was given"
        elif backend == "tensorrt" and self._dtype == np.float16 and path != "library":
            check_installed(backend)
            from edgeseg.runtime.backends.tensorrt import scoring_backend

            self._scoring = scoring_backend(self.bundle, self.scorer, self.temperature)
            self.path_reason = f"libedgeseg does not run {backend}"
        if self._backend is None and self._scoring is None:
            self._backend, self.path_reason = open_path(
                self.bundle,
                str(backend),
                self.threads,
                path,
                scorer=self.scorer,
                temperature=self.temperature,
                score_dtype=self._dtype,
            )
        if self._backend is not None and self._library is None:
            self._warm_up(self._backend)

    def _warm_up(self, backend: Backend) -> None:
        """Run once: the features must be what the head takes, and the first frame be warm."""
        features = checked_features(self.bundle, backend.infer(self._frame))
        self._run_head(features.reshape(self._features_shape), self.scorer, self.temperature)

    def _choose(self, scorer: str | None, temperature: float | None) -> tuple[str, float]:
        name = default_scorer(self.bundle) if scorer is None else scorer
        defaults = self.bundle.scorer_defaults(name)
        chosen = defaults.temperature if temperature is None else float(temperature)
        if not (np.isfinite(chosen) and chosen > 0):
            raise UsageError(f"temperature {temperature} is not a positive number")
        return name, chosen

    def _run_head(
        self, features: npt.NDArray[np.float32], scorer: str, temperature: float
    ) -> tuple[npt.NDArray[np.uint8], npt.NDArray[Any]]:
        self._check_open()
        if self._kernel is None:
            # Through the library only features from elsewhere need one.
            self._kernel = HeadKernel(
                self.bundle.head, *self.size, scorer, temperature, self.threads, self._dtype
            )
            self._class_map = np.zeros(self.size, np.uint8)
            self._score = np.zeros(self.size, self._dtype)
        if (scorer, temperature) != (self._kernel.scorer, self._kernel.temperature):
            self._kernel.set_scorer(scorer, temperature)
        self._kernel.run(features, self._class_map, self._score)
        return self._class_map, self._score

    def _check_open(self) -> None:
        if self._closed:
            raise UsageError("this Session has been closed; open a new one")

    def _check_frame(self, frame: npt.NDArray[np.uint8]) -> None:
        self._check_open()
        height, width = self.size
        if not isinstance(frame, np.ndarray) or frame.dtype != np.uint8:
            kind = getattr(frame, "dtype", type(frame).__name__)
            raise UsageError(f"a frame is uint8, not {kind}; convert it first")
        if frame.shape != (height, width, 3):
            raise UsageError(
                f"the frame has shape {list(frame.shape)} and the bundle takes "
                f"[{height}, {width}, 3]; resize it with edgeseg.scoring.kernels.resize_bilinear"
            )

    def _as_input(self, frame: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        # OpenVINO wraps writable memory only, though it writes nothing.
        if frame.flags.c_contiguous and frame.flags.writeable:
            return frame[np.newaxis]
        np.copyto(self._frame[0], frame)
        return self._frame


def _result(found: LibraryResult) -> Result:
    assert found.class_map is not None
    assert found.score is not None
    timings = found.timings
    # Of a frame at the network's size, the resize is a copy to where the engine reads.
    parts = {"body": timings["resize"] + timings["body"], "head": timings["head"]}
    return Result(found.class_map, found.score, parts)
