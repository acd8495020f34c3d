"""Checkpoints of a run: network, optimiser and place in one safetensors file without code."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from edgeseg.errors import ArtefactError, InputError
from edgeseg.files import write_whole
from edgeseg.networks.base import Network

__all__ = ["FORMAT", "Place", "load_place", "load_state", "save_state"]

FORMAT: Final = "edgeseg.checkpoint/1"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a run stands; ``step`` steps of the whole run are done."""

    step: int
    recipe: str
    """Digest of the recipe and of what else decides the result."""
    best_percent: float | None = None
    """Best mIoU on held-out frames so far."""
    elapsed_s: float = 0.0
    """Time spent, without interruptions."""


def save_state(
    path: Path, module: Network, optimizer: torch.optim.Optimizer | None, place: Place
) -> None:
    """Write a checkpoint; it appears whole or not at all, whenever the process is killed.

    Raises:
        InputError: the folder cannot be written to.
    """
    from safetensors.torch import save

    tensors = {f"net.{k}": v for k, v in module.state_dict().items()}
    if optimizer is not None:
        for index, values in optimizer.state_dict()["state"].items():
            for key, value in values.items():
                if isinstance(value, Tensor):
                    tensors[f"optimizer.{index}.{key}"] = value
    whole = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    document = {
        "step": place.step,
        "recipe": place.recipe,
        "best_percent": place.best_percent,
        "elapsed_s": place.elapsed_s,
    }
    content = save(whole, metadata={"format": FORMAT, "place": json.dumps(document)})
    try:
        write_whole(path, content)
    except OSError as error:
        raise InputError(
            f"checkpoint '{path}' cannot be written ({error.strerror}); make room or choose "
            "another folder, then go on with --resume"
        ) from None


def load_place(path: Path) -> Place:
    """Where the run of a checkpoint stood; ArtefactError where the file is damaged."""
    return _open(path)[0]


def load_state(path: Path, module: Network, optimizer: torch.optim.Optimizer | None) -> Place:
    """Put a checkpoint into a network and, where it was taken with one, an optimiser.

    Raises:
        ArtefactError: damaged, or of another network or optimiser.
    """
    place, tensors = _open(path)
    try:
        module.load_state_dict(
            {k.removeprefix("net."): v for k, v in tensors.items() if k.startswith("net.")}
        )
        if optimizer is not None:
            state: dict[int, dict[str, Any]] = {}
            for key, value in tensors.items():
                if key.startswith("optimizer."):
                    _, index, name = key.split(".", 2)
                    state.setdefault(int(index), {})[name] = value
            groups = optimizer.state_dict()["param_groups"]
            optimizer.load_state_dict({"state": state, "param_groups": groups})
            _as_laid_out(optimizer)
    except (RuntimeError, ValueError, KeyError):
        raise ArtefactError(
            f"checkpoint '{path}' does not fit the network or optimiser of this run; begin in "
            "another folder"
        ) from None
    return place


def _as_laid_out(optimizer: torch.optim.Optimizer) -> None:
    """Lay the state out in memory as its parameters are.

    A file holds it row by row. On channels_last parameters other loops would run over it than
    before, and those round the last bit differently.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            values = optimizer.state[parameter]
            for name, value in values.items():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    values[name] = torch.empty_like(parameter).copy_(value)


def _open(path: Path) -> tuple[Place, dict[str, Tensor]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise ValueError
            place = Place(**json.loads(metadata["place"]))
            return place, {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, KeyError, TypeError):
        raise ArtefactError(
            f"checkpoint '{path}' is damaged or was written by another version; begin in another "
            "folder"
        ) from None
