"""The graphs for TensorRT that a bundle carries, and which of them a TensorRT takes.

``edgeseg export --target tensorrt`` (or ``tensorrt-rtx``, or a Jetson profile) writes them, so that
the device needs neither torch nor onnx: ``tensorrt_body.onnx`` ends at the features,
``tensorrt_<scorer>.onnx`` gives class map and score. INT8 bundles have up to three forms of each:
``qdq`` (no mark in the name), ``typed`` and ``implicit``, whose scales come from a calibration
cache. ``tensorrt.json`` says at which temperature the scorers were exported, and for which DLA.
"""

import json
from typing import Any, Final, Literal

from edgeseg.bundle import Bundle
from edgeseg.errors import ArtefactError
from edgeseg.runtime.tensorrt.versions import Abilities

__all__ = [
    "FORMS",
    "INDEX",
    "Form",
    "exported_dla_core",
    "form_for",
    "graph_name",
    "graph_temperature",
    "has_graph",
]

Form = Literal["qdq", "typed", "implicit"]
FORMS: Final[tuple[Form, ...]] = ("qdq", "typed", "implicit")
INDEX: Final = "tensorrt.json"

_SCHEMA: Final = "edgeseg.tensorrt-graphs/1"


def graph_name(scorer: str | None, form: Form) -> str:
    """File name of a graph in the bundle; scorer ``None`` for the body."""
    mark = "" if form == "qdq" else f"{form}_"
    return f"tensorrt_{mark}{scorer or 'body'}.onnx"


def form_for(have: Abilities, precision: str, *, calibrated: bool) -> Form:
    """The form that a TensorRT takes of a bundle of ``precision``."""
    if precision != "int8":
        return "qdq"
    if calibrated:
        return "implicit"
    return "qdq" if have.precision_flags else "typed"


def has_graph(bundle: Bundle, scorer: str | None, form: Form) -> bool:
    """Whether the bundle carries the graph."""
    return graph_name(scorer, form) in bundle.manifest.files


def graph_bytes(bundle: Bundle, scorer: str | None, form: Form) -> tuple[bytes, str]:
    """A graph and its sha256.

    Raises:
        ArtefactError: the bundle does not carry it.
    """
    name = graph_name(scorer, form)
    if name not in bundle.manifest.files:
        raise ArtefactError(
            f"bundle '{bundle.path}' has no '{name}', which TensorRT needs; export it again with "
            f"--target tensorrt{f' --standalone {scorer}' if scorer else ''}"
        )
    return (bundle.path / name).read_bytes(), str(bundle.manifest.files[name]["sha256"])


def index_of(temperatures: dict[str, float], dla_core: int | None = None) -> bytes:
    """The file :data:`INDEX` for scorers and the temperatures that their graphs hold, and for the
    DLA that engines are to use.
    """
    document: dict[str, Any] = {"schema": _SCHEMA, "temperatures": temperatures}
    if dla_core is not None:
        document["dla_core"] = dla_core
    return (json.dumps(document, indent=1, sort_keys=True) + "\n").encode()


def graph_temperature(bundle: Bundle, scorer: str) -> float | None:
    """Temperature that the graphs of ``scorer`` were exported at; ``None`` without one."""
    found = _index(bundle)[0].get(scorer)
    return None if found is None else float(found)


def exported_dla_core(bundle: Bundle) -> int | None:
    """The DLA that the bundle was exported for; ``None`` for the GPU."""
    return _index(bundle)[1]


def _index(bundle: Bundle) -> tuple[dict[str, float], int | None]:
    if INDEX not in bundle.manifest.files:
        return {}, None
    try:
        document = json.loads((bundle.path / INDEX).read_bytes())
        temperatures = {str(k): float(v) for k, v in document["temperatures"].items()}
        core = document.get("dla_core")
        return temperatures, None if core is None else int(core)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ArtefactError(
            f"'{bundle.path / INDEX}' is damaged; export the bundle again with --target tensorrt"
        ) from None
