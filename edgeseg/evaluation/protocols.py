"""Which frames of a set are evaluated.

========  ==========================================================================
paper     anomaly sets: frames without a single anomalous pixel, judged after the
          resize, are left out. The protocol of the published figures.
all       every frame.
========  ==========================================================================

The choice is large: with the empty frames of Fishyscapes Static in, the AuPRC of ERFNet's void
score falls from 20.70 to 14.39.
"""

import re
from collections.abc import Sequence
from typing import Final, Literal, TypeVar

import numpy as np
import numpy.typing as npt

from edgeseg.errors import UsageError

__all__ = [
    "MAX_SHARDS",
    "PROTOCOLS",
    "Protocol",
    "Shard",
    "check_protocol",
    "keeps",
    "parse_shard",
    "select",
]

Protocol = Literal["paper", "all"]
PROTOCOLS: Final[tuple[Protocol, ...]] = ("paper", "all")
Shard = tuple[int, int]
"""``(i, n)``: part i of n, counted from 1."""
MAX_SHARDS: Final = 10_000
"""Largest n of a shard."""
T = TypeVar("T")


def check_protocol(name: str) -> Protocol:
    """``name`` as a protocol; UsageError where there is none of this name."""
    for protocol in PROTOCOLS:
        if name == protocol:
            return protocol
    raise UsageError(f"--protocol '{name}' is unknown; choose one of {', '.join(PROTOCOLS)}")


def keeps(protocol: Protocol, kind: str, label: npt.NDArray[np.uint8]) -> bool:
    """Whether a frame with this label map (at the evaluated size) is evaluated."""
    return protocol == "all" or kind != "anomaly" or bool((label == 1).any())


def parse_shard(text: str) -> Shard:
    """``i/n`` with 1 <= i <= n <= :data:`MAX_SHARDS`; UsageError for anything else."""
    # The length is bounded too: Python converts no number of thousands of digits.
    match = re.fullmatch(r"([0-9]{1,18})/([0-9]{1,18})", text)
    if match is not None:
        shard = int(match[1]), int(match[2])
        if shard[1] > MAX_SHARDS:
            raise UsageError(f"--shard '{text}' is of too many parts; give {MAX_SHARDS} at most")
        if 1 <= shard[0] <= shard[1]:
            return shard
    raise UsageError(f"--shard '{text}' is not a part; give i/n with i from 1 to n, such as 1/4")


def select(samples: Sequence[T], every: int = 1, shard: Shard = (1, 1)) -> list[T]:
    """Every ``every``-th sample from the first on, and of those the shard's: i, i + n, i + 2n ...

    Parts interleave, so each gets its share of every scene, and together they are the whole.
    """
    if every < 1:
        raise UsageError(f"--every {every} selects nothing; give 1 or more")
    return list(samples[::every])[shard[0] - 1 :: shard[1]]
