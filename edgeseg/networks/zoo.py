"""What is known of every network without torch: titles, papers, counts, shipped weights."""

import json
import struct
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Final

from edgeseg.errors import ArtefactError, UsageError

__all__ = [
    "NETWORKS",
    "ZOO",
    "NetworkInfo",
    "check_network",
    "counts",
    "shipped_calibration",
    "shipped_metadata",
    "shipped_weights",
]

NETWORKS: Final[tuple[str, ...]] = ("enet", "erfnet", "bisenet", "midenet")


@dataclass(frozen=True, slots=True)
class NetworkInfo:
    """What a user wants to know before choosing a network."""

    name: str
    title: str
    paper: str


ZOO: Final[dict[str, NetworkInfo]] = {
    "enet": NetworkInfo(
        "enet",
        "ENet",
        "Paszke et al. 2016, ENet: A Deep Neural Network Architecture for Real-Time Semantic "
        "Segmentation, arXiv:1606.02147",
    ),
    "erfnet": NetworkInfo(
        "erfnet",
        "ERFNet",
        "Romera et al. 2018, ERFNet: Efficient Residual Factorized ConvNet for Real-Time "
        "Semantic Segmentation, IEEE T-ITS 19(1)",
    ),
    "bisenet": NetworkInfo(
        "bisenet",
        "BiSeNetV1 (ResNet-18)",
        "Yu et al. 2018, BiSeNet: Bilateral Segmentation Network for Real-time Semantic "
        "Segmentation, ECCV, arXiv:1808.00897",
    ),
    "midenet": NetworkInfo(
        "midenet",
        "MiDE-Net",
        "ENet's encoder cut to six bottlenecks and a bilinear upsampling, a student for "
        "distillation; no paper",
    ),
}


def check_network(name: str) -> str:
    """``name``, or UsageError where there is no such network."""
    if name not in NETWORKS:
        raise UsageError(f"network '{name}' is unknown; choose one of {', '.join(NETWORKS)}")
    return name


@cache
def _table() -> dict[str, Any]:
    text = resources.files("edgeseg.networks").joinpath("zoo.json").read_text(encoding="utf-8")
    return json.loads(text)  # type: ignore[no-any-return]


def counts(name: str) -> dict[str, Any]:
    """Counts of the published structure, 20 outputs, as ``tools/make_zoo_table.py`` took them.

    Returns:
        ``params`` (of the deployed structure), ``params_training`` (auxiliary heads included),
        ``macs`` (deployed graph, head included) at ``macs_size`` (``HxW``), ``head`` (kind).
    """
    return dict(_table()["networks"][check_network(name)])


def shipped_weights(name: str) -> Path | None:
    """Path of the weights that come with the package, or ``None`` where none do."""
    path = Path(str(resources.files("edgeseg"))) / "weights" / f"{check_network(name)}.safetensors"
    return path if path.is_file() else None


def shipped_metadata(name: str) -> dict[str, str]:
    """Metadata of the shipped weights (``weights_name``, ``license``, ...); empty without any.

    Raises:
        ArtefactError: the file is damaged.
    """
    path = shipped_weights(name)
    if path is None:
        return {}
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(min(length, 16 << 20)))
        return {str(k): str(v) for k, v in header.get("__metadata__", {}).items()}
    except (OSError, ValueError, AttributeError, struct.error):
        raise ArtefactError(f"'{path}' is damaged; install edgeseg again") from None


def shipped_calibration(name: str) -> Path | None:
    """Path of the activation ranges that belong to the shipped weights, or ``None``.

    An installed package carries them; in a checkout they are in the folder beside it.
    """
    package = Path(str(resources.files("edgeseg")))
    for folder in (package / "calibration_data", package.parent / "calibration_data"):
        path = folder / f"{check_network(name)}.json"
        if path.is_file():
            return path
    return None
