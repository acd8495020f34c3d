"""The manifest of a bundle, ``bundle.json``: what it holds, and reading it with suspicion."""

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Final

from edgeseg.errors import ArtefactError
from edgeseg.scoring.scorers import SCORERS

__all__ = ["SCHEMA", "Manifest", "ScorerDefaults", "read_manifest"]

SCHEMA: Final = "edgeseg.bundle/1"

_MAX_BYTES: Final = 4 << 20
_MAX_SIDE: Final = 8192
_PRECISIONS: Final = ("float32", "float16", "int8")
_COMPUTE_PRECISIONS: Final = ("f32", "bf16")


@dataclass(frozen=True, slots=True)
class ScorerDefaults:
    """What a scorer uses when the command line does not say."""

    threshold: float | None = None
    """99th percentile of the score on calibration frames; ``None`` where none were seen."""
    temperature: float = 1.0


@dataclass(frozen=True, slots=True)
class Manifest:
    """Contents of ``bundle.json``. Sizes in pixels, counts as integers."""

    network: str
    structure: dict[str, Any]
    """Structure spec of the network (channel widths), as its class takes it."""
    classes: list[str]
    """Names of the known classes; index = value in the class map."""
    palette: list[list[int]]
    """RGB per known class."""
    height: int
    width: int
    head: dict[str, Any]
    """kind, factor, num_outputs, num_known, void_index, layout, isomax distance scale."""
    scorers: dict[str, ScorerDefaults]
    precision: str
    """``float32``, ``float16`` or ``int8``: what the weights and activations are stored as."""
    compute_precision: str = "f32"
    """Type of what is not integer: ``f32`` or ``bf16``. Engines are told, never left to choose."""
    weights_name: str = ""
    """Where the weights come from; pictures made with the bundle name it."""
    license: str = ""
    """Terms of the weights."""
    counts: dict[str, Any] = field(default_factory=dict)
    """``params``, ``macs`` of the deployed graph, head included."""
    calibration: dict[str, Any] = field(default_factory=dict)
    """Provenance of the ranges: source, number of frames, method."""
    accuracy: dict[str, Any] = field(default_factory=dict)
    """Measured before and after quantization, where a gate ran."""
    created_by: str = ""
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    """File name -> ``sha256``, ``bytes``; filled in by :func:`write_bundle`."""
    schema: str = SCHEMA

    def to_json(self) -> str:
        """The document as it stands in ``bundle.json``."""
        return json.dumps(asdict(self), indent=1, sort_keys=True, allow_nan=False) + "\n"


def read_manifest(path: Path) -> Manifest:
    """Read and check ``bundle.json``.

    Raises:
        ArtefactError: unreadable, no JSON, of another schema, or a value that cannot be.
    """
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ArtefactError(f"'{path}' is larger than any manifest; the bundle is damaged")
        raw = json.loads(path.read_bytes())
    except OSError as error:
        raise ArtefactError(f"'{path}' cannot be read ({error.strerror}); copy it again") from None
    except (ValueError, RecursionError):
        raise ArtefactError(f"'{path}' is not valid JSON; export the bundle again") from None
    if not isinstance(raw, dict) or not isinstance(raw.get("schema"), str):
        raise ArtefactError(f"'{path}' is not the manifest of a bundle: it names no schema")
    if raw["schema"] != SCHEMA:
        raise ArtefactError(
            f"'{path}' has schema '{raw['schema']}', and this version reads '{SCHEMA}'; "
            "export it again with this version"
        )
    known = {f.name for f in fields(Manifest)}
    try:
        given = _typed(raw.pop("scorers"), dict, "scorers")
        unknown = set(given) - set(SCORERS)
        if unknown:
            raise ValueError(f"unknown scorer {min(unknown)!r}")
        scorers = {name: ScorerDefaults(**given[name]) for name in SCORERS if name in given}
        manifest = Manifest(
            scorers=scorers, **{key: value for key, value in raw.items() if key in known}
        )
        _check(manifest)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ArtefactError(
            f"'{path}' is damaged ({type(error).__name__}: {error}); export the bundle again"
        ) from None
    return manifest


def integer(value: object, what: str) -> int:
    """``value`` if it is an integer, else TypeError: JSON has true, 2.5 and 1e999 too."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{what} is {_short(value)}, not an integer")
    return value


def number(value: object, what: str) -> float:
    """``value`` if it is a finite number that float32 can hold, else TypeError or ValueError."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError(f"{what} is {_short(value)}, not a number")
    if not -3e38 < value < 3e38:  # NaN is not between them either
        raise ValueError(f"{what} is {_short(value)}, not a finite number")
    return float(value)


def _check(manifest: Manifest) -> None:
    for name in ("network", "weights_name", "license", "created_by"):
        _typed(getattr(manifest, name), str, name)
    for name in ("structure", "head", "counts", "calibration", "accuracy", "files"):
        _typed(getattr(manifest, name), dict, name)
    for name in ("height", "width"):
        side = integer(getattr(manifest, name), name)
        if not 8 <= side <= _MAX_SIDE:
            raise ValueError(f"{name} {_short(side)} is not between 8 and {_MAX_SIDE}")
    for class_name in _typed(manifest.classes, list, "classes"):
        _typed(class_name, str, "class")
    if len(_typed(manifest.palette, list, "palette")) != len(manifest.classes):
        raise ValueError("palette and classes differ in length")
    for colour in manifest.palette:
        if len(colour) != 3 or not all(0 <= integer(v, "colour") <= 255 for v in colour):
            raise ValueError(f"{_short(colour)} is not a colour")
    if not manifest.scorers:
        raise ValueError("no scorer")
    for defaults in manifest.scorers.values():
        if number(defaults.temperature, "temperature") <= 0:
            raise ValueError(f"temperature {defaults.temperature!r} is not positive")
        if defaults.threshold is not None:
            number(defaults.threshold, "threshold")
    if manifest.precision not in _PRECISIONS:
        raise ValueError(f"precision {_short(manifest.precision)}")
    if manifest.compute_precision not in _COMPUTE_PRECISIONS:
        raise ValueError(f"compute precision {_short(manifest.compute_precision)}")
    for entry in manifest.files.values():
        _typed(entry, dict, "file entry")
        _typed(entry["sha256"], str, "sha256")
        integer(entry["bytes"], "bytes")


def _typed(value: Any, kind: type, what: str) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"{what} is {_short(value)}, not a {kind.__name__}")
    return value


def _short(value: object) -> str:
    # Not repr alone: that of an integer of 5000 digits is refused by Python itself.
    if isinstance(value, int) and value.bit_length() > 200:
        return "a huge number"
    text = repr(value) if not isinstance(value, list | dict) else f"a {type(value).__name__}"
    return text if len(text) <= 60 else f"{text[:57]}..."
