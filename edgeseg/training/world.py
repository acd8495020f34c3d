"""The processes that train together: one, or what ``torchrun`` started."""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from edgeseg.errors import MissingDependencyError

__all__ = ["World", "keep_freed_memory", "open_world"]

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # malloc.h of glibc


@dataclass(frozen=True, slots=True)
class World:
    """This process among its peers."""

    rank: int
    size: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and talks to the user."""
        return self.rank == 0

    def total(self, values: Tensor) -> Tensor:
        """Sum over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def wait(self) -> None:
        """Return once every process has come here."""
        if self.size > 1:
            dist.barrier()


@contextmanager
def open_world(device: str = "auto") -> Iterator[World]:
    """Join the processes of ``torchrun`` (NCCL on CUDA, else gloo), or be alone.

    Args:
        device: ``auto`` (CUDA where there is one), ``cpu`` or ``cuda``.

    Raises:
        MissingDependencyError: ``cuda`` where there is none.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise MissingDependencyError(
            "--device cuda, but torch finds no CUDA device; use --device cpu"
        )
    cuda = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield World(0, 1, torch.device("cuda" if cuda else "cpu"))
        return
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if cuda:
        torch.cuda.set_device(local)
    dist.init_process_group("nccl" if cuda else "gloo")
    try:
        yield World(
            dist.get_rank(), size, torch.device("cuda", local) if cuda else torch.device("cpu")
        )
    finally:
        dist.destroy_process_group()


def keep_freed_memory() -> None:
    """Ask glibc to keep what is freed instead of returning it to the system.

    Every step frees and takes the same activations; mapping and clearing their pages anew costs a
    fifth of ERFNet's step on a CPU. Elsewhere than on glibc this does nothing.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    mallopt(_M_TOP_PAD, 1 << 28)
