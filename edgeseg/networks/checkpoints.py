"""Reading and writing weights.

Read: the project's own safetensors, whose metadata carries the structure, and the published
layouts of :mod:`edgeseg.networks.layouts`, with or without ``module.``, bare or under
``state_dict`` or ``model``. Pickles are read with ``weights_only=True``: nothing in them runs.
"""

import json
import os
import struct
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from edgeseg.errors import ArtefactError, InputError, UsageError
from edgeseg.files import write_whole
from edgeseg.networks.base import Network
from edgeseg.networks.layouts import Layout, recognise
from edgeseg.networks.registry import network_class
from edgeseg.networks.zoo import check_network

__all__ = ["FORMAT", "Weights", "load_network", "read_weights", "save_network"]

FORMAT: Final = "edgeseg.weights/1"
_RESERVED: Final = ("format", "network", "structure")
_WRAPPERS: Final = ("state_dict", "model", "model_state_dict")
_COUNTER: Final = ".num_batches_tracked"

Path_ = str | os.PathLike[str]


@dataclass(frozen=True, slots=True)
class Weights:
    """A file of weights: its tensors on the CPU by key, and its metadata."""

    path: Path
    tensors: dict[str, Tensor]
    metadata: dict[str, str]
    """``network``, ``structure`` (JSON), ``weights_name``, ``license`` and what else was saved;
    empty for published checkpoints."""


def load_network(name: str, path: Path_, overrides: Mapping[str, Any] | None = None) -> Network:
    """The network of a file of weights, in eval mode.

    Args:
        name: ``enet``, ``erfnet``, ``bisenet`` or ``midenet``.
        path: safetensors of this project, or a published checkpoint.
        overrides: fields of the structure that the file does not know or has wrong, for example
            ``{"mean": None, "std": None}``.

    Returns:
        The network; its ``provenance`` holds ``weights_name`` and ``license``.

    Raises:
        InputError: there is no such file.
        ArtefactError: damaged, of another network, or with keys or shapes that do not fit.
        UsageError: no such network.
    """
    check_network(name)
    weights = read_weights(path)
    layout = recognise(set(weights.tensors))
    own = weights.metadata.get("format", "").startswith("edgeseg.weights/")
    found = weights.metadata.get("network", "") if own else layout.network if layout else ""
    if not found:
        raise ArtefactError(
            f"'{weights.path}' holds no network that is known here (its keys begin with "
            f"{_some(list(weights.tensors))}); give a checkpoint of enet, erfnet, bisenet or "
            "midenet"
        )
    if found != name:
        raise ArtefactError(
            f"'{weights.path}' holds weights of {found}, not of {name}; give {found} as the "
            "network or another file"
        )
    structure = _own_structure(weights) if own else _inferred(weights, layout)
    try:
        structure |= dict(overrides or {})
        spec = network_class(name).structure_class.from_dict(structure)
    except ArtefactError as error:
        raise ArtefactError(f"'{weights.path}' cannot be used: {error}") from None
    # Shapes first, on the meta device: a damaged structure must not fill the memory.
    with torch.device("meta"):
        expected = network_class(name)(spec).state_dict()
    matched = _match(weights, expected, None if own else layout)
    with torch.random.fork_rng(devices=[]):
        module = network_class(name)(spec)
    module.load_state_dict(matched)
    module.provenance = {
        "weights_name": weights.metadata.get("weights_name", "") or weights.path.stem,
        "license": weights.metadata.get("license", ""),
    }
    return module.eval()


def save_network(module: Network, path: Path_, metadata: Mapping[str, str]) -> None:
    """Write a network as safetensors; the same network and metadata give the same bytes.

    Args:
        module: the network; its structure goes into the metadata.
        path: the file; it appears whole or not at all.
        metadata: text by name; ``weights_name`` and ``license`` are what loading gives back,
            and default to the module's own.

    Raises:
        UsageError: a name in ``metadata`` that the format itself uses, or a value that is no text.
        InputError: the folder cannot be written to.
    """
    from safetensors.torch import save

    for key, value in metadata.items():
        if key in _RESERVED or not isinstance(value, str):
            raise UsageError(f"metadata '{key}' must be text and none of {', '.join(_RESERVED)}")
    tensors = {
        key: value.detach().cpu().contiguous()
        for key, value in module.state_dict().items()
        if not key.endswith(_COUNTER)
    }
    header = (
        module.provenance
        | dict(metadata)
        | {
            "format": FORMAT,
            "network": module.structure.network,
            "structure": json.dumps(module.structure.to_dict(), sort_keys=True),
        }
    )
    _write(Path(path), _sorted_header(save(tensors, metadata=header)))


def _write(path: Path, content: bytes) -> None:
    try:
        write_whole(path, content)
    except OSError as error:
        raise InputError(
            f"'{path}' cannot be written ({error.strerror}); choose another folder"
        ) from None


def _sorted_header(content: bytes) -> bytes:
    """The package writes metadata in random order; sorted, equal files are equal."""
    (length,) = struct.unpack_from("<Q", content)
    header = json.loads(content[8 : 8 + length])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + content[8 + length :]


def read_weights(path: Path_) -> Weights:
    """Tensors and metadata of a file, keys without ``module.``.

    Raises:
        InputError: there is no such file.
        ArtefactError: it is empty, damaged, or holds other things than tensors.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except OSError as error:
        raise InputError(
            f"weights '{path}' cannot be read ({error.strerror}); check the path"
        ) from None
    if not start:
        raise ArtefactError(f"'{path}' is empty; copy or download it again")
    if start[8:9] == b"{":
        tensors, metadata = _read_safetensors(path)
    else:
        tensors, metadata = _state_dict(path, _read_pickle(path)), {}
    if not tensors:
        raise ArtefactError(f"'{path}' holds no tensors; give a file of weights")
    if all(key.startswith("module.") for key in tensors):
        tensors = {key.removeprefix("module."): value for key, value in tensors.items()}
    return Weights(path, tensors, metadata)


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata = dict(file.metadata() or {})
            return {key: file.get_tensor(key) for key in file.keys()}, metadata  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, RuntimeError, KeyError, TypeError):
        raise ArtefactError(
            f"'{path}' is not a valid safetensors file; copy or download it again"
        ) from None


def _read_pickle(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            # Old and quantized checkpoints make torch warn of its own storage classes.
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # torch raises a dozen kinds, depending on where a file breaks
        if "nsupported global" in str(error) or "nsupported operand" in str(error):
            raise ArtefactError(
                f"'{path}' holds Python objects or code besides tensors, which are never run; "
                "give a state dict saved with torch.save(model.state_dict(), ...)"
            ) from None
        raise ArtefactError(
            f"'{path}' is not a checkpoint that torch can read (damaged, truncated or of another "
            "format); copy or download it again"
        ) from None


def _state_dict(path: Path, content: Any) -> dict[str, Tensor]:
    for key in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if not isinstance(content, Mapping):
        raise ArtefactError(
            f"'{path}' holds a {type(content).__name__}, not a state dict; give a file saved with "
            "torch.save(model.state_dict(), ...)"
        )
    quantized = any(isinstance(v, Tensor) and v.is_quantized for v in content.values())
    if quantized or any(str(key).endswith("_packed_params._packed_params") for key in content):
        raise ArtefactError(
            f"'{path}' is a state dict quantized by torch FX, which has no float weights; give "
            "the float checkpoint that it was made from"
        )
    wrong = [str(k) for k, v in content.items() if not (isinstance(k, str) and _usable(v))]
    if wrong:
        raise ArtefactError(
            f"'{path}' is no state dict: {_some(wrong)} is not a tensor; give a file saved with "
            "torch.save(model.state_dict(), ...)"
        )
    return dict(content)


def _usable(value: Any) -> bool:
    return isinstance(value, Tensor) and value.layout == torch.strided and not value.is_meta


def _own_structure(weights: Weights) -> dict[str, Any]:
    if weights.metadata["format"] != FORMAT:
        raise ArtefactError(
            f"'{weights.path}' is of format {weights.metadata['format']}, and this version reads "
            f"{FORMAT}; install a newer version"
        )
    try:
        structure = json.loads(weights.metadata.get("structure", ""))
    except (ValueError, RecursionError):
        structure = None
    if not isinstance(structure, dict):
        raise ArtefactError(
            f"'{weights.path}' carries no readable structure in its metadata; copy or make it again"
        )
    return structure


def _inferred(weights: Weights, layout: Layout | None) -> dict[str, Any]:
    assert layout is not None
    key, axis = layout.outputs
    tensor = weights.tensors.get(key)
    if tensor is None or tensor.ndim != 4:
        raise ArtefactError(
            f"'{weights.path}' has no key '{key}' of four dimensions, so it is not a whole "
            f"{layout.network}; download it again or give another file"
        )
    structure = layout.infer(weights.tensors)
    return structure | {
        "num_outputs": int(tensor.shape[axis]),
        "isomax": "isomax.prototypes" in weights.tensors,
    }


def _match(
    weights: Weights, expected: Mapping[str, Tensor], layout: Layout | None
) -> dict[str, Tensor]:
    """Tensors by our names, after every key, shape and value was checked."""
    theirs = {layout.rename(key) if layout else key: key for key in expected}
    optional = layout.optional if layout else ()
    given = weights.tensors
    missing = [
        k for k in theirs if k not in given and not k.endswith(_COUNTER) and k not in optional
    ]
    superfluous = [k for k in given if k not in theirs]
    problems = []
    if missing:
        problems.append(f"lacks {_some(missing)}")
    if superfluous:
        problems.append(f"has {_some(superfluous)} too many")
    advice = "check that it is the right file and of the published widths, or download it again"
    if problems:
        raise ArtefactError(f"'{weights.path}' {' and '.join(problems)}; {advice}")
    matched: dict[str, Tensor] = {}
    for key, ours in theirs.items():
        form = expected[ours]
        value = given.get(key)
        if value is None:
            matched[ours] = torch.zeros(form.shape, dtype=form.dtype)
            continue
        if value.shape != form.shape or value.is_floating_point() != form.is_floating_point():
            raise ArtefactError(
                f"'{weights.path}' has '{key}' as {_form(value)}, and {_form(form)} is needed; "
                f"{advice}"
            )
        if not torch.isfinite(value).all() or (
            key.endswith(".running_var") and bool((value < 0).any())
        ):
            raise ArtefactError(
                f"'{weights.path}' has values in '{key}' that no training leaves (infinite, not a "
                "number, or a negative variance); copy or download it again"
            )
        matched[ours] = value
    return matched


def _form(tensor: Tensor) -> str:
    shape = "x".join(str(side) for side in tensor.shape) or "scalar"
    return f"{shape} {str(tensor.dtype).removeprefix('torch.')}"


def _some(keys: list[str]) -> str:
    """The first few keys, and how many more."""
    shown = ", ".join(f"'{key[:80]}'" for key in keys[:3])
    return shown if len(keys) <= 3 else f"{shown} and {len(keys) - 3} more keys"
