"""Golden outputs: what a bundle gave where it was made, on a frame that can be drawn anywhere.

``golden.safetensors`` holds classes and scores on a coarse grid and the shares of the classes, a
few kilobytes. The frame is not stored: :func:`golden_frame` draws it in integers. Whoever runs the
bundle elsewhere draws it too, and compares::

    python -m edgeseg.runtime.golden BUNDLE [--backend NAME] [--path library|python] [--json]

exits with 0 where the outputs are the bundle's, with 8 where they are not, and with 4 where the
bundle is damaged or holds none.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, get_args

import numpy as np
import numpy.typing as npt

from edgeseg.bundle import Bundle, Manifest, write_bundle
from edgeseg.errors import ArtefactError, EdgesegError, SafeStateError
from edgeseg.runtime.backends import available_backends
from edgeseg.runtime.backends.paths import SessionPath
from edgeseg.runtime.golden_frame import VERSION, golden_frame
from edgeseg.runtime.session import Result, Session
from edgeseg.safetensors import read_safetensors, write_safetensors

__all__ = [
    "GOLDEN",
    "LIMIT",
    "TOLERANCES",
    "Agreement",
    "check_golden",
    "golden_of",
    "golden_outputs",
    "make_golden",
    "tolerance_of",
]

GOLDEN: Final = "golden.safetensors"
"""File of a bundle: ``classes`` uint8 and ``score_<scorer>`` float16, ``[temperatures, 16, 32]``
at ``temperatures`` float32 ``[2]`` (classes have no first axis), ``shares`` float32 ``[known
classes]`` of the whole class map, ``version`` int32 ``[1]`` of the frame, ``tolerance`` float32
``[3]``: smallest share of equal classes, largest distance of the shares, largest error of a score.
"""

_GRID: Final = (16, 32)
_OTHER_TEMPERATURE: Final = 2.0
"""Scores are stored at the bundle's temperature and at this multiple of it, so that an engine
which ignores the temperature is noticed."""

TOLERANCES: Final = {
    "float32": (0.94, 0.02, 0.05),
    "float16": (0.94, 0.02, 0.05),
    "int8": (0.92, 0.03, 0.07),
}
"""By precision: smallest share of equal classes, largest distance of the shares, largest error of
a score. The shipped networks hold it on engines that compute in bf16 or round INT8 in another way;
values that are read at twice their scale in a middle layer do not (tests/test_golden.py)."""
LIMIT: Final = (0.85, 0.08, 0.12)
"""The widest tolerance of a bundle whose engines differ by more where it is made."""
_LEAST_RANGE: Final = 1e-3
"""A score that is constant is no error."""
_LARGEST: Final = 1e6

UInt8 = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Agreement:
    """How outputs agree with a bundle's golden ones."""

    equal_classes: float
    """Share of the grid, 0 .. 1."""
    share_distance: float
    """Half the sum of the absolute differences of the classes' shares, 0 .. 1."""
    score_error: dict[str, float]
    """By ``scorer@temperature``: mean absolute difference over the 5th to 95th percentile's
    width of the golden scores."""
    tolerance: tuple[float, float, float]
    """What the three are held to."""

    @property
    def worst_score(self) -> float:
        """The largest score error."""
        return max(self.score_error.values(), default=0.0)

    @property
    def passed(self) -> bool:
        """Whether all three hold; NaN does not."""
        least, distance, error = self.tolerance
        return (
            self.equal_classes >= least
            and self.share_distance <= distance
            and all(value <= error for value in self.score_error.values())
        )

    def text(self) -> str:
        """One sentence."""
        least, distance, error = self.tolerance
        name = max(self.score_error, key=lambda key: self.score_error[key], default="none")
        return (
            f"{100 * self.equal_classes:.1f}% of the classes are the bundle's (at least "
            f"{100 * least:.1f}% expected), the classes' shares differ by "
            f"{100 * self.share_distance:.1f}% (at most {100 * distance:.1f}%), the worst score "
            f"by {100 * self.worst_score:.1f}% of its range ({name}; at most {100 * error:.1f}%)"
        )


def golden_of(manifest: Manifest, files: Mapping[str, bytes]) -> tuple[bytes, Any] | None:
    """Run a bundle that is being made on every engine that is installed.

    Args:
        manifest: of the bundle.
        files: name -> content, as :func:`write_bundle` takes them.

    Returns:
        The content of :data:`GOLDEN`, of ONNX Runtime where it is here, and how other engines
        agree with it; ``None`` where there is no engine.

    Raises:
        ArtefactError: an engine refuses the bundle, or crashes on it.
    """
    names = sorted(available_backends(), key=lambda name: name != "onnxruntime")
    if not names:
        return None
    others = {}
    with TemporaryDirectory(prefix="edgeseg-") as folder:
        plain = write_bundle(Path(folder) / "plain", manifest, files)
        # Sums that are split by threads would make other bytes where there are more of them.
        with Session(plain, names[0], threads=1, score_dtype=np.float32) as session:
            outputs = golden_outputs(session)
        content = make_golden(outputs, tolerance_of(manifest.precision, []))
        with_golden = write_bundle(Path(folder) / "golden", manifest, {**files, GOLDEN: content})
        for name in names[1:]:
            with Session(with_golden, name, threads=1, score_dtype=np.float32) as session:
                others[name] = check_golden(session)
    tolerance = tolerance_of(manifest.precision, list(others.values()))
    agreement = {
        name: {
            "equal_classes_percent": round(100 * found.equal_classes, 2),
            "share_distance_percent": round(100 * found.share_distance, 2),
            "score_error_percent": round(100 * found.worst_score, 2),
            "passed": replace(found, tolerance=tolerance).passed,
        }
        for name, found in others.items()
    }
    return make_golden(outputs, tolerance), {"engine": names[0], "others": agreement}


def golden_outputs(session: Session) -> dict[str, npt.NDArray[Any]]:
    """What a session with float32 scores gives on the golden frame, as it is stored."""
    features = session.features(golden_frame(*session.size))
    tensors: dict[str, npt.NDArray[Any]] = {"version": np.array([VERSION], np.int32)}
    for scorer, defaults in session.bundle.manifest.scorers.items():
        temperatures = np.array([1, _OTHER_TEMPERATURE], np.float32) * defaults.temperature
        scores = [_sampled(session.score(features, scorer, float(t)).score) for t in temperatures]
        tensors[f"temperature_{scorer}"] = temperatures.astype(np.float32)
        # A float16 is a thousandth off at most, far below any tolerance.
        tensors[f"score_{scorer}"] = np.stack(scores).astype(np.float16)
    class_map = session.score(features).class_map
    tensors["classes"] = _sampled(class_map)
    tensors["shares"] = _shares(class_map, session.bundle.head.num_known)
    return tensors


def make_golden(
    outputs: Mapping[str, npt.NDArray[Any]], tolerance: tuple[float, float, float]
) -> bytes:
    """The content of :data:`GOLDEN`.

    Args:
        outputs: of :func:`golden_outputs`.
        tolerance: as in :class:`Agreement`.
    """
    return write_safetensors({**outputs, "tolerance": np.array(tolerance, np.float32)})


def tolerance_of(precision: str, others: Sequence[Agreement]) -> tuple[float, float, float]:
    """What to hold a bundle of ``precision`` to: the usual, or twice what other engines than the
    golden one differ by, up to :data:`LIMIT`.
    """
    least, distance, error = TOLERANCES[precision]
    for other in others:
        least = min(least, 1 - 2 * (1 - other.equal_classes))
        distance = max(distance, 2 * other.share_distance)
        error = max(error, 2 * other.worst_score)
    return max(least, LIMIT[0]), min(distance, LIMIT[1]), min(error, LIMIT[2])


def check_golden(session: Session) -> Agreement:
    """Run the golden frame and compare with what the bundle holds.

    What :meth:`Session.run` gives is compared, and where the engine gives features every scorer
    of the bundle at both temperatures.

    Raises:
        ArtefactError: the bundle holds no golden outputs, or none that fit.
    """
    stored = _read(session.bundle)
    frame = golden_frame(*session.size)
    errors: dict[str, float] = {}
    class_maps = [_note(stored, session.scorer, session.temperature, session.run(frame), errors)]
    if session.gives_features:
        features = session.features(frame)
        for scorer in session.bundle.manifest.scorers:
            for temperature in stored[f"temperature_{scorer}"].tolist():
                result = session.score(features, scorer, temperature)
                class_maps.append(_note(stored, scorer, temperature, result, errors))
    known = session.bundle.head.num_known
    least, distance, error = (float(value) for value in stored["tolerance"])
    return Agreement(
        min(float(np.mean(_sampled(m) == stored["classes"])) for m in class_maps),
        max(float(np.abs(_shares(m, known) - stored["shares"]).sum()) / 2 for m in class_maps),
        errors,
        (least, distance, error),
    )


def _note(
    stored: Mapping[str, npt.NDArray[Any]],
    scorer: str,
    temperature: float,
    result: Result,
    errors: dict[str, float],
) -> UInt8:
    """Put the error of a score among the others; gives a copy of the class map."""
    for at, golden in zip(stored[f"temperature_{scorer}"], stored[f"score_{scorer}"], strict=True):
        if at == np.float32(temperature):
            golden = golden.astype(np.float32)
            low, high = np.percentile(golden, [5, 95])
            difference = np.abs(_sampled(result.score).astype(np.float32) - golden)
            error = float(difference.mean() / max(high - low, _LEAST_RANGE))
            key = f"{scorer}@{temperature:g}"
            # NaN must not pass for agreement.
            errors[key] = max(
                errors.get(key, 0.0), min(error, _LARGEST) if error >= 0 else _LARGEST
            )
    return result.class_map.copy()


def _read(bundle: Bundle) -> dict[str, npt.NDArray[Any]]:
    if GOLDEN not in bundle.manifest.files:
        raise ArtefactError(
            f"bundle '{bundle.path}' holds no golden outputs ({GOLDEN}); export it again"
        )
    path = bundle.path / GOLDEN
    stored = read_safetensors(path)
    shapes: dict[str, tuple[int, ...]] = {
        "version": (1,),
        "tolerance": (3,),
        "classes": _GRID,
        "shares": (bundle.head.num_known,),
    }
    for scorer in bundle.manifest.scorers:
        shapes |= {f"temperature_{scorer}": (2,), f"score_{scorer}": (2, *_GRID)}
    finite = all(np.isfinite(tensor).all() for tensor in stored.values())
    found = {name: stored[name].shape if name in stored else None for name in shapes}
    if found != shapes or not finite or stored["version"][0] != VERSION:
        raise ArtefactError(f"'{path}' is not what this version reads; export the bundle again")
    return stored


def _sampled(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The middles of 16x32 equal fields of a map."""
    (height, width), (rows, columns) = values.shape, _GRID
    y = (2 * np.arange(rows) + 1) * height // (2 * rows)
    x = (2 * np.arange(columns) + 1) * width // (2 * columns)
    return values[np.ix_(y, x)]


def _shares(class_map: UInt8, known: int) -> npt.NDArray[np.float32]:
    counts = np.bincount(class_map.ravel(), minlength=known)
    shares: npt.NDArray[np.float32] = (counts / class_map.size).astype(np.float32)
    return shares


def main(arguments: list[str] | None = None) -> int:
    """What ``python -m edgeseg.runtime.golden`` does; gives the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m edgeseg.runtime.golden",
        description="Does this machine compute what the bundle was made to compute?",
    )
    parser.add_argument("bundle", metavar="BUNDLE", type=Path)
    parser.add_argument("--backend", default="auto", help="as of 'edgeseg run'")
    parser.add_argument("--path", default="auto", choices=get_args(SessionPath))
    parser.add_argument("--threads", type=int, help="default: all cores")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    options = parser.parse_args(arguments)
    try:
        bundle = Bundle.open(options.bundle)
        _read(bundle)  # what it lacks is said before an engine is built
        with Session(bundle, options.backend, options.threads, path=options.path) as session:
            found = check_golden(session)
            about = session.describe()
    except EdgesegError as error:
        print(f"edgeseg: {error}", file=sys.stderr)
        return error.exit_code
    if options.json:
        document = {
            "schema": "edgeseg.golden/1",
            "bundle": str(options.bundle),
            "passed": found.passed,
            **asdict(found),
            "session": about,
        }
        print(json.dumps(document))
    else:
        print(f"{'passed' if found.passed else 'FAILED'} on {about['backend']}: {found.text()}")
    return 0 if found.passed else SafeStateError.exit_code


if __name__ == "__main__":
    sys.exit(main())
