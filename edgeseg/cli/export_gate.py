"""What `edgeseg export` asks of the gate and of calibration, as options."""

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from edgeseg.cli.given import given
from edgeseg.errors import UsageError

if TYPE_CHECKING:
    from edgeseg.compression.gate_options import GateOptions

__all__ = [
    "MAX_NOISE",
    "FloatType",
    "Granularity",
    "Method",
    "gate_options",
    "refuse_gate_options",
]

# As GateOptions has it; importing that here would make --help slow.
MAX_NOISE = 2.0


class Method(str, Enum):
    """How far eight bits should reach; see :mod:`edgeseg.compression.clipping`."""

    minmax = "minmax"
    percentile = "percentile"
    entropy = "entropy"
    mse = "mse"


class FloatType(str, Enum):
    """What layers compute in that a gate leaves in float."""

    auto = "auto"
    f32 = "f32"
    bf16 = "bf16"


class Granularity(str, Enum):
    """What a gate leaves in float at a time."""

    block = "block"
    convolution = "convolution"


def refuse_gate_options(context: typer.Context, *, recovers: bool) -> None:
    """UsageError where an option was given that only a gate reads, and there is none.

    Args:
        context: of the command.
        recovers: whether the INT8 body is trained, which takes ``--threads`` as well.
    """
    of_gate = given(
        context,
        *("report", "held_out", "gate_set", "gate_split", "gate_every", "max_noise"),
        *("max_give_back", "granularity", "compute_precision", "backend"),
    )
    if of_gate:
        raise UsageError(
            f"{of_gate[0]} goes with --max-drop and --gate-data; add them or leave it out"
        )
    if not recovers and given(context, "threads"):
        raise UsageError("--threads goes with --max-drop or --recover; leave it out")


def gate_options(
    data: list[Path], sets: list[str], held_out: list[str], split: str | None, **values: Any
) -> "GateOptions":
    """The gate's options with its data opened, so that a wrong folder shows at once."""
    from edgeseg.compression.gate_data import open_gate_data
    from edgeseg.compression.gate_options import GateOptions

    first, other = ((split,),) * 2 if split else (("train", "val"), ("val", "train"))
    folders = [entry for entry in held_out if Path(entry).is_dir()]
    names = [entry for entry in held_out if entry not in folders]
    held = open_gate_data(folders, splits=other)
    if names:
        held += open_gate_data(data, names, other)
    options = GateOptions(data=open_gate_data(data, sets, first), held_out=held, **values)
    options.check()
    return options
