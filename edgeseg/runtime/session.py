"""A session: frame in, class map and anomaly score out."""

import os
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeseg.bundle import Bundle
from edgeseg.errors import ArtefactError, UsageError
from edgeseg.runtime.backends import Backend, BodySpec, open_backend
from edgeseg.runtime.machine import available_cores, has_native_bf16
from edgeseg.runtime.selection import open_quickest
from edgeseg.scoring.kernels import HeadKernel

__all__ = ["Result", "Session", "default_scorer"]

_MAX_THREADS = 256


@dataclass(frozen=True, slots=True)
class Result:
    """What a frame gave. The arrays are reused: copy what must outlive the next call."""

    class_map: npt.NDArray[np.uint8]
    """``[H, W]``, 0 .. known classes - 1."""
    score: npt.NDArray[Any]
    """``[H, W]``, float16 or float32, larger is more anomalous."""
    timings: dict[str, float] = field(default_factory=dict)
    """Milliseconds of ``body`` (engine) and ``head`` (upsampling, class map, score)."""


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

    Raises:
        UsageError: a scorer, temperature or thread count that cannot be.
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
    ) -> None:
        self.bundle = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
        manifest = self.bundle.manifest
        self.threads = available_cores() if threads is None else threads
        if not 1 <= self.threads <= _MAX_THREADS:
            raise UsageError(f"{threads} threads cannot be had; give 1 to {_MAX_THREADS}")
        self._dtype = np.dtype(score_dtype)
        if self._dtype not in (np.float16, np.float32):
            raise UsageError(f"score type {self._dtype} is neither float16 nor float32")
        self.scorer, self.temperature = self._choose(scorer, temperature)
        height, width = self.bundle.size
        body = BodySpec(
            path=self.bundle.body_path,
            sha256=self.bundle.body_sha256,
            height=height,
            width=width,
            compute_precision=manifest.compute_precision,
        )
        self._frame = np.zeros((1, height, width, 3), np.uint8)
        head = self.bundle.head
        rows, columns = height // head.factor, width // head.factor
        self._features_shape = (
            (1, head.channels_in, rows, columns)
            if head.layout == "nchw"
            else (1, rows, columns, head.channels_in)
        )
        head = self.bundle.head
        h, w = height // head.factor, width // head.factor
        channels = head.channels_in
        self._feature_shape = (1, channels, h, w) if head.layout == "nchw" else (1, h, w, channels)
        self._kernel_state = (self.scorer, self.temperature)
        self._class_map = np.zeros((height, width), np.uint8)
        self._score = np.zeros((height, width), self._dtype)
        if not isinstance(backend, str):
            self._backend = backend
        elif backend == "auto":
            self._backend = open_quickest(body, self.threads)
        else:
            self._backend = open_backend(backend, body, self.threads)
        self._scoring: Any = None
        try:
            if self._backend.name == "tensorrt" and self._dtype == np.float16:
                from edgeseg.runtime.backends.tensorrt import scoring_backend

                self._scoring = scoring_backend(self.bundle, self.scorer, self.temperature)
            self._head = HeadKernel(
                self.bundle.head,
                height,
                width,
                self.scorer,
                self.temperature,
                self.threads,
                self._dtype,
            )
            self._check_features()
        except BaseException:
            self._backend.close()
            raise

    @property
    def backend_name(self) -> str:
        """Name of the engine in use."""
        return self._backend.name

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
            **self._backend.describe(),
            "network": self.bundle.manifest.network,
            "weights": self.bundle.manifest.weights_name,
            "precision": self.bundle.manifest.precision,
            "size": "{}x{}".format(*self.size),
            "scorer": self.scorer,
            "temperature": self.temperature,
        }

    @property
    def notes(self) -> list[str]:
        """What a user should know about how the bundle runs here, a sentence each."""
        asked = self.bundle.manifest.compute_precision
        got = self._backend.describe().get("compute_precision", asked)
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
        head's layout, a view that the next call overwrites.
        """
        features = self._backend.infer(self._as_input(frame))
        # An nhwc body may leave its two spatial axes as one (see the exporter's last pass).
        return features if features.ndim == 4 else features.reshape(self._features_shape)

    def score(
        self,
        features: npt.NDArray[np.float32],
        scorer: str | None = None,
        temperature: float | None = None,
    ) -> Result:
        """Class map and score of features that :meth:`features` gave; other scorers than the
        session's share the body's work this way.
        """
        chosen = self._choose(scorer or self.scorer, temperature)
        start = time.perf_counter_ns()
        class_map, score = self._run_head(features, *chosen)
        return Result(class_map, score, {"head": (time.perf_counter_ns() - start) / 1e6})

    def close(self) -> None:
        """Free the engine and the kernel; safe to call twice."""
        self._backend.close()
        if self._scoring is not None:
            self._scoring.close()
        self._head.close()

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

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
        if (scorer, temperature) != self._kernel_state:
            self._head.set_scorer(scorer, temperature)
            self._kernel_state = (scorer, temperature)
        self._head.run(features, self._class_map, self._score)
        return self._class_map, self._score

    def _as_input(self, frame: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        height, width = self.size
        if not isinstance(frame, np.ndarray) or frame.dtype != np.uint8:
            kind = getattr(frame, "dtype", type(frame).__name__)
            raise UsageError(f"a frame is uint8, not {kind}; convert it first")
        if frame.shape != (height, width, 3):
            raise UsageError(
                f"the frame has shape {list(frame.shape)} and the bundle takes "
                f"[{height}, {width}, 3]; resize it with edgeseg.scoring.kernels.resize_bilinear"
            )
        # OpenVINO wraps writable memory only, though it writes nothing.
        if frame.flags.c_contiguous and frame.flags.writeable:
            return frame[np.newaxis]
        np.copyto(self._frame[0], frame)
        return self._frame

    def _check_features(self) -> None:
        """Run once: the features must be what the head takes, and the first frame be warm."""
        features = self._backend.infer(self._frame)
        expected = self._feature_shape
        # Bodies may leave rows and columns in one axis: engines write channels-last features
        # straight to their place only then.
        merged = (1, expected[1] * expected[2], expected[3])
        fits = features.shape == expected or (
            self.bundle.head.layout == "nhwc" and features.shape == merged
        )
        if not fits or features.dtype != np.float32 or not features.flags.c_contiguous:
            raise ArtefactError(
                f"'{self.bundle.body_path}' gives features {list(features.shape)} and the head "
                f"needs {list(expected)}; export the bundle again"
            )
        self._run_head(features.reshape(expected), self.scorer, self.temperature)
