"""Which colour, shape and dash stands for what, the same on the whole page."""

from collections.abc import Iterable
from typing import Final

from edgeseg.reporting.charts import COLOURS, DASHES, SHAPES

__all__ = ["colour_of", "dash_of", "shape_of"]

_NETWORKS: Final = ("enet", "erfnet", "bisenet", "midenet")
_SCORERS: Final = ("void", "msp", "maxlogit", "entropy", "energy")
_PRECISIONS: Final = {"float32": "circle", "int8": "square", "float16": "diamond"}


def colour_of(name: str) -> int:
    """Of a network or a scorer; names that are not known share the remaining colours."""
    for known in (_NETWORKS, _SCORERS):
        if name in known:
            return known.index(name)
    return len(_SCORERS) + sum(name.encode()) % (COLOURS - len(_SCORERS))


def dash_of(scorer: str) -> str:
    """Of a scorer's curve."""
    return DASHES[_SCORERS.index(scorer)] if scorer in _SCORERS else DASHES[2]


def shape_of(form: str, forms: Iterable[str] = ()) -> str:
    """Of a precision; other forms get the shapes that are left, by their place in ``forms``."""
    if form in _PRECISIONS:
        return _PRECISIONS[form]
    left = [s for s in SHAPES if s not in _PRECISIONS.values()]
    others = [f for f in dict.fromkeys(forms) if f not in _PRECISIONS]
    return left[others.index(form) % len(left) if form in others else 0]
