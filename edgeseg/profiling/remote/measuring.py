"""``measure`` on a host: what is copied, asked and brought back."""

import json
import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any, Final

from edgeseg.bundle import Bundle
from edgeseg.errors import (
    ArtefactError,
    EdgesegError,
    InputError,
    MissingDependencyError,
    UsageError,
)
from edgeseg.profiling.remote.host import Host
from edgeseg.profiling.remote.payload import bundle_folder, pack
from edgeseg.profiling.remote.reply import Facts, Reply, plain, read_facts, read_reply, unbelievable
from edgeseg.profiling.remote.ssh import Connection

__all__ = ["Found", "Order", "measure_there"]

_ERRORS: Final = {
    kind.exit_code: kind for kind in (UsageError, MissingDependencyError, ArtefactError, InputError)
}

Copied = Callable[[int, int], None]
Progress = Callable[[int, int, int], None]


@dataclass(frozen=True, slots=True)
class Order:
    """What to measure, and how."""

    bundles: Sequence[Bundle]
    labels: Sequence[str]
    """What the user calls them."""
    scorers: Sequence[str]
    device: str | None = None
    """A profile or an alias; ``None``: what the host is."""
    backend: str = "auto"
    threads: int | None = None
    seconds: float = 3.0
    compare: bool = False
    """Whether to measure the ratio to the ready bundle too."""

    def to_document(self) -> dict[str, Any]:
        """As the agent takes it."""
        named = zip(self.labels, self.scorers, strict=True)
        return {
            "bundles": [
                {"folder": bundle_folder(number), "label": label, "scorer": scorer}
                for number, (label, scorer) in enumerate(named)
            ],
            "device": self.device,
            "backend": self.backend,
            "threads": self.threads,
            "seconds": self.seconds,
            "compare": self.compare,
        }


@dataclass(frozen=True, slots=True)
class Found:
    """What came back."""

    facts: Facts
    reply: Reply
    left_behind: bool
    """The host could not remove what had been copied there."""


def measure_there(host: Host, order: Order, copied: Copied, progress: Progress) -> Found:
    """Measure bundles on a host.

    Args:
        host: where.
        order: what.
        copied: is told bytes sent, and of how many.
        progress: is told number of the bundle, frames done and frames expected.

    Raises:
        InputError: the host cannot be reached, is lost, or answers what cannot be.
        MissingDependencyError: something is not installed there, or ssh not here.
        EdgesegError: what measuring on the host raised.
    """
    loader = resources.files(__package__).joinpath("loader.py").read_bytes()
    with Connection(host, loader) as there:
        facts = _facts(there, host)
        same = (facts.system, facts.machine) == (platform.system(), platform.machine())
        with pack(order.bundles, libraries=same, reference=order.compare) as file:
            size = os.fstat(file.fileno()).st_size
            header = {"bytes": size, "request": order.to_document()}
            there.send(json.dumps(header).encode(), file, lambda done: copied(done, size))
        reply = _reply(there, host, order, progress)
    return Found(facts, reply, there.left_behind)


def _facts(there: Connection, host: Host) -> Facts:
    _, value = there.receive()
    try:
        facts = read_facts(value)
    except ValueError as error:
        raise unbelievable(host.name, error) from None
    missing = [] if facts.numpy else ["numpy"]
    missing += [] if facts.engines else ["onnxruntime or openvino"]
    if missing:
        raise MissingDependencyError(
            f"'{host.python}' on '{host.name}' has no {' and no '.join(missing)}; install what is "
            "missing there, or name a Python that has it with --remote-python"
        )
    return facts


def _reply(there: Connection, host: Host, order: Order, progress: Progress) -> Reply:
    while True:
        kind, value = there.receive()
        try:
            if kind == "progress":
                number, done, expected = map(int, value)
                if 0 <= number < len(order.bundles) and 0 <= done <= expected < 1 << 32:
                    progress(number, done, expected)
            elif kind == "error":
                raise _error(host, int(value["code"]), value["message"])
            elif kind == "result":
                return read_reply(value, list(order.scorers))
        except (ValueError, TypeError, KeyError, OverflowError) as error:
            raise unbelievable(host.name, error) from None


def _error(host: Host, code: int, message: object) -> EdgesegError:
    return _ERRORS.get(code, EdgesegError)(f"on '{host.name}': {plain(message, 500)}")
