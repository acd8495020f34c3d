"""The JSON beside an engine: what it was built by, on and from."""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final

from edgeseg.errors import ArtefactError

__all__ = ["SCHEMA", "BuildKey", "Sidecar"]

SCHEMA: Final = "edgeseg.engine/1"

_MAX_BYTES: Final = 1 << 20
_TITLES: Final = {
    "package": "package",
    "tensorrt": "TensorRT",
    "cuda": "CUDA",
    "gpu": "GPU",
    "compute_capability": "compute capability",
    "onnx_sha256": "ONNX graph",
    "precision": "precision",
    "scorer": "scorer",
    "temperature": "temperature",
    "dla_core": "DLA core",
    "calibration_sha256": "calibration",
}
_OF_THE_GPU: Final = ("cuda", "gpu", "compute_capability")


@dataclass(frozen=True, slots=True)
class BuildKey:
    """What makes an engine the one for this machine and bundle; differ in one, build again."""

    package: str
    """``tensorrt`` or ``tensorrt_rtx``."""
    tensorrt: str
    cuda: str
    gpu: str
    """Name of the GPU; empty for engines built ahead of time."""
    compute_capability: str
    """``8.7``; several, parted by commas, for engines built ahead of time."""
    onnx_sha256: str
    precision: str
    scorer: str | None
    """``None`` where the engine ends at the features."""
    temperature: float | None
    dla_core: int | None = None
    calibration_sha256: str | None = None

    def differences(self, other: "BuildKey") -> list[str]:
        """What differs from ``other``, the engine that is there: a phrase each, for people.

        An engine built ahead of time fits every GPU of the capabilities that it was built for.
        """
        ahead = not other.gpu and self.compute_capability in other.compute_capability.split(",")
        found = []
        for name, title in _TITLES.items():
            ours, theirs = getattr(self, name), getattr(other, name)
            if ours == theirs or (ahead and name in _OF_THE_GPU):
                continue
            if name.endswith("sha256"):
                found.append(f"another {title}")
            else:
                found.append(f"{title} {_said(theirs)} is now {_said(ours)}")
        return found


@dataclass(frozen=True, slots=True)
class Sidecar:
    """A key with what the build gave."""

    key: BuildKey
    engine_sha256: str
    engine_bytes: int
    build_seconds: float
    gpu_fallback: tuple[str, ...] = ()
    """Layers that the DLA left to the GPU."""
    created_by: str = ""
    schema: str = SCHEMA

    def to_json(self) -> str:
        """The document."""
        return json.dumps(asdict(self), indent=1) + "\n"

    @classmethod
    def read(cls, path: Path) -> "Sidecar":
        """Read a sidecar.

        Raises:
            ArtefactError: it is missing, damaged or of another schema.
        """
        try:
            if path.stat().st_size > _MAX_BYTES:
                raise ValueError("size")
            raw = json.loads(path.read_bytes())
            if raw["schema"] != SCHEMA:
                raise ValueError("schema")
            known = {f.name for f in fields(BuildKey)}
            key = BuildKey(**{k: v for k, v in raw["key"].items() if k in known})
            return cls(
                key,
                str(raw["engine_sha256"]),
                int(raw["engine_bytes"]),
                float(raw["build_seconds"]),
                tuple(str(n) for n in raw["gpu_fallback"]),
                str(raw["created_by"]),
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise ArtefactError(
                f"'{path}' is missing, damaged or of another version, so nothing says what its "
                "engine was built for; delete the engine and build it again"
            ) from None


def _said(value: Any) -> str:
    return "none" if value in (None, "") else str(value)
