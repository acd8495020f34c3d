"""Published state dicts of torch FX: how they are read, and our names for their keys.

A state dict of FX names module weights by their paths, and the scales between modules by the path
of the module in which the operation stood. Pickles are read with ``weights_only=True``: nothing in
them runs.
"""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from edgeseg.errors import ArtefactError, InputError
from edgeseg.networks.base import Network
from edgeseg.networks.erfnet import NonBottleneck1D

__all__ = ["published_structure", "read_published", "rename_published"]

_INPUT: Final = "encoder_initial_block_conv_input"
_MARKS: Final = ("encoder.initial_block.conv.weight", "decoder.output_conv.weight")
_DROPOUT: Final = ("_dropout_scale_0", "_dropout_zero_point_0")


def read_published(path: Path) -> dict[str, Tensor]:
    """Tensors of an FX state dict, quantized ones as such, keys without ``module.``.

    Raises:
        InputError: there is no such file.
        ArtefactError: damaged, code, or float weights.
    """
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except OSError as error:
        raise InputError(
            f"weights '{path}' cannot be read ({error.strerror}); check the path"
        ) from None
    content: Any = None
    if start[8:9] != b"{":
        content = _unpickled(path)
        for key in ("state_dict", "model", "model_state_dict"):
            if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
                content = content[key]
                break
        if not isinstance(content, Mapping) or not all(
            isinstance(k, str) and isinstance(v, Tensor) for k, v in content.items()
        ):
            raise ArtefactError(
                f"'{path}' holds other things than tensors by name; give a folder that 'edgeseg "
                "quantize' wrote, or a published FX state dict"
            )
    if content is None or not any(value.is_quantized for value in content.values()):
        raise ArtefactError(
            f"'{path}' holds float weights, and torch-fx evaluates quantized ones; quantize them "
            "with 'edgeseg quantize', or choose --backend torch"
        )
    return {key.removeprefix("module."): value for key, value in content.items()}


def _unpickled(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            # Quantized checkpoints make torch warn of its own storage classes.
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception:  # torch raises a dozen kinds, depending on where a file breaks
        raise ArtefactError(
            f"'{path}' is no state dict that torch can read without running code in it (damaged, "
            "or of another format); copy or download it again"
        ) from None


def published_structure(path: Path, tensors: Mapping[str, Tensor]) -> tuple[str, dict[str, Any]]:
    """Name of the network and fields of its structure.

    Raises:
        ArtefactError: not a layout that is known here: that of the reference ERFNet is.
    """
    marks = [tensors.get(key) for key in _MARKS]
    if any(mark is None or not mark.is_quantized or mark.ndim != 4 for mark in marks):
        raise ArtefactError(
            f"'{path}' is an FX state dict of no layout that is known here (erfnet's is); give "
            "the float checkpoint to 'edgeseg quantize'"
        )
    outputs = int(tensors[_MARKS[1]].shape[1])
    return "erfnet", {"num_outputs": outputs, "auxiliary": False}


def rename_published(
    path: Path, tensors: Mapping[str, Tensor], network: Network, names: list[str]
) -> dict[str, Tensor]:
    """Our keys to the file's tensors.

    Args:
        path: file, for messages.
        tensors: from :func:`read_published`.
        network: the float network.
        names: of the scales and zero points between modules, in the order of their use: first the
            input's, then for every residual addition those of its sum.

    Raises:
        ArtefactError: dropout changes the scale, which no converter does.
    """
    blocks = [n for n, m in network.named_modules() if isinstance(m, NonBottleneck1D)]
    theirs = [_INPUT, *(block.replace(".", "_") for block in blocks)]
    order = [f"{name}_{what}_0" for name in theirs for what in ("scale", "zero_point")]
    renamed = dict(zip(order, names, strict=True))
    for block in blocks:
        for suffix, what in zip(_DROPOUT, ("scale", "zero_point"), strict=True):
            # Dropout stood in float between two conversions of one scale; here it is left out.
            value = tensors.get(block.replace(".", "_") + suffix)
            if value is not None and not torch.equal(
                value, tensors.get(f"{block}.conv1x3_2.{what}", value.new_zeros(()))
            ):
                raise ArtefactError(
                    f"'{path}' has another {what} behind the dropout of '{block}' than before it; "
                    "give the float checkpoint to 'edgeseg quantize'"
                )
    return {
        renamed.get(key, key): value
        for key, value in tensors.items()
        if not key.endswith((*_DROPOUT, ".num_batches_tracked"))
    }
