"""Structure specs: the numbers that turn an architecture's class into one network.

A spec is a frozen dataclass whose defaults are the published architecture. It travels as JSON in
the metadata of a weights file and in a bundle's manifest, so a pruned network is the same class
with other numbers. This module needs no torch.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, Final

from edgeseg.errors import ArtefactError
from edgeseg.taxonomy import NUM_KNOWN

if TYPE_CHECKING:
    from typing import Self

__all__ = ["MAX_WIDTH", "Structure"]

MAX_WIDTH: Final = 4096
"""Largest channel count that a spec may ask for: a damaged file must not fill the memory."""


@dataclass(frozen=True, slots=True)
class Structure:
    """What every network's spec has. Channel counts are integers in 1 .. :data:`MAX_WIDTH`."""

    network: ClassVar[str] = ""

    num_outputs: int = NUM_KNOWN + 1
    """Outputs of the classifier: the 19 known classes, then void."""
    mean: tuple[float, float, float] | None = None
    """RGB mean that is subtracted from the input in [0, 1]; ``None``: nothing is."""
    std: tuple[float, float, float] | None = None
    """RGB deviation that the input is divided by, after the mean."""
    isomax: bool = False
    """Whether the logits are the IsoMax+ distances of what the network puts out."""

    @property
    def num_known(self) -> int:
        """Outputs that are known classes; they come first."""
        return NUM_KNOWN if self.num_outputs == NUM_KNOWN + 1 else self.num_outputs

    @property
    def void_index(self) -> int | None:
        """Output of the void class, or ``None``."""
        return self.num_known if self.num_outputs > self.num_known else None

    def to_dict(self) -> dict[str, Any]:
        """The spec as JSON types."""
        return _plain(asdict(self))  # type: ignore[no-any-return]

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Self":
        """The inverse of :meth:`to_dict`; fields that are absent keep the published value.

        Raises:
            ArtefactError: an unknown field, or a value of another type or form than the
                published one.
        """
        published = cls()
        known = {f.name for f in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ArtefactError(
                f"the structure of a {cls.network} has no field '{unknown[0]}'; "
                "it was written for another network or by a newer version"
            )
        checked: dict[str, Any] = {}
        for name, value in values.items():
            if name in ("mean", "std"):
                checked[name] = _triple(cls.network, name, value)
            else:
                checked[name] = _like(cls.network, name, getattr(published, name), value)
        structure = replace(published, **checked)
        structure.check()
        return structure

    def check(self) -> None:
        """Raise ArtefactError where the numbers do not fit together."""
        if self.num_outputs > 64:
            raise ArtefactError(
                f"the structure of a {self.network} has {self.num_outputs} outputs; "
                "at most 64 can be scored"
            )
        if (self.mean is None) != (self.std is None):
            raise ArtefactError(
                f"the structure of a {self.network} has only one of mean and std; give both"
            )

    def _require(self, condition: bool, what: str) -> None:
        if not condition:
            raise ArtefactError(f"the structure of a {self.network} does not fit: {what}")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, tuple) else value


def _like(network: str, name: str, published: Any, value: Any) -> Any:
    """``value`` with lists as tuples, checked against the form of the published value."""
    if isinstance(published, tuple):
        if isinstance(value, list | tuple) and len(value) == len(published):
            return tuple(_like(network, name, p, v) for p, v in zip(published, value, strict=True))
    elif isinstance(published, bool):
        if isinstance(value, bool):
            return value
    elif isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MAX_WIDTH:
        return value
    raise ArtefactError(
        f"field '{name}' in the structure of a {network} is not of the form of "
        f"{_plain(published)}; the file is damaged or was made for another network"
    )


def _triple(network: str, name: str, value: Any) -> tuple[float, float, float] | None:
    if value is None:
        return None
    if isinstance(value, list | tuple) and len(value) == 3:
        r, g, b = value
        if all(isinstance(v, float | int) and not isinstance(v, bool) for v in value) and (
            name == "mean" or min(value) > 0
        ):
            return float(r), float(g), float(b)
    raise ArtefactError(
        f"field '{name}' in the structure of a {network} is not three numbers"
        + (" above zero" if name == "std" else "")
    )
