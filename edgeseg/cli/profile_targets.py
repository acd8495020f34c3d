"""What the arguments of ``edgeseg profile`` name, and bundles for what has none yet."""

import hashlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgeseg.profiling.subjects import Subject

__all__ = ["bundle_of", "shipped_bundles", "subjects_to_estimate"]


def shipped_bundles() -> "dict[str, Subject]":
    """Network -> the bundle of it that this installation carries."""
    from importlib import resources

    from edgeseg.bundle import Bundle
    from edgeseg.profiling.subjects import from_bundle

    folder = Path(str(resources.files("edgeseg"))) / "bundles"
    found: dict[str, Subject] = {}
    for manifest in sorted(folder.glob("*/bundle.json")):
        subject = from_bundle(Bundle.open(manifest.parent))
        found.setdefault(subject.network, subject)
    return found


def is_bundle(argument: str) -> bool:
    """Whether an argument names a folder rather than a network."""
    from edgeseg.networks.zoo import NETWORKS

    return argument not in NETWORKS or Path(argument, "bundle.json").is_file()


def open_subject(argument: str) -> "Subject":
    """The bundle that an argument names.

    Raises:
        UsageError: it is neither a network nor a folder.
        ArtefactError: it is no bundle.
    """
    from edgeseg.bundle import Bundle
    from edgeseg.errors import UsageError
    from edgeseg.networks.zoo import NETWORKS
    from edgeseg.profiling.subjects import from_bundle

    if not Path(argument).exists():
        raise UsageError(
            f"'{argument}' is neither a bundle's folder nor a network ({', '.join(NETWORKS)})"
        )
    return from_bundle(Bundle.open(argument), argument)


def subjects_to_estimate(
    arguments: list[str],
    weights: Path | None,
    precision: str | None,
    size: tuple[int, int] | None,
    fast: tuple[str, ...],
) -> "list[Subject]":
    """Subjects whose counts and layers are enough.

    Args:
        arguments: bundles and networks; none: every shipped network.
        weights: of the one network that is named.
        precision: of networks; default: the first of ``fast``.
        size: default: the subject's own.
        fast: precisions that are worth running on the device, the fastest first.
    """
    from edgeseg.profiling.subjects import from_table

    names = arguments or shipped_networks()
    result = []
    for name in names:
        if is_bundle(name):
            subject = open_subject(name)
            result.append(subject.at(None if precision == subject.precision else precision, size))
        elif weights is not None:
            result.append(_of_weights(name, weights).at(precision or fast[0], size))
        else:
            result.append(from_table(name).at(precision or fast[0], size))
    return result


def shipped_networks() -> list[str]:
    """Networks with weights in this installation; all of them where there are none."""
    from edgeseg.networks.zoo import NETWORKS, shipped_weights

    return [n for n in NETWORKS if shipped_weights(n) is not None] or list(NETWORKS)


def bundle_of(
    network: str, weights: Path | None, precision: str | None, size: tuple[int, int] | None
) -> "Subject":
    """A bundle of a network: the shipped one, or one exported into the cache.

    Args:
        network: its name.
        weights: default: the shipped ones.
        precision: default: int8 where ranges of the shipped weights are there, else float32.
        size: default 512x1024.

    Raises:
        MissingDependencyError: it would have to be exported, and torch is not there.
        ArtefactError: there are no weights.
    """
    from edgeseg.errors import ArtefactError, EdgesegError
    from edgeseg.networks.zoo import shipped_calibration, shipped_weights

    size = size or (512, 1024)
    if weights is None:
        shipped = shipped_bundles().get(network)
        if shipped and shipped.graph.size == size and precision in (None, shipped.precision):
            return shipped
    path = weights or shipped_weights(network)
    if path is None:
        raise ArtefactError(
            f"no weights of {network} are shipped with this version; give some with --weights "
            f"FILE, or estimate with --device jetson"
        )
    calibration = shipped_calibration(network) if weights is None else None
    precision = precision or ("int8" if calibration else "float32")
    folder = _cache_place(network, path, precision, size)
    if folder.exists():
        try:
            return _opened(folder, network)
        except EdgesegError:
            pass  # damaged, or of an older version: it is made again
    _export(network, path, precision, size, calibration if precision == "int8" else None, folder)
    return _opened(folder, network)


def _opened(folder: Path, network: str) -> "Subject":
    from edgeseg.bundle import Bundle
    from edgeseg.profiling.subjects import from_bundle

    return from_bundle(Bundle.open(folder), network)


def _cache_place(network: str, weights: Path, precision: str, size: tuple[int, int]) -> Path:
    from edgeseg import __version__
    from edgeseg.errors import InputError, UsageError
    from edgeseg.runtime.cache import cache_folder

    if weights.is_dir():
        raise UsageError(
            f"'{weights}' is a folder: torch FX weights are measured with --device cpu alone, "
            "since they run in torch; for an estimate name the network"
        )
    if not weights.is_file():
        raise InputError(f"weights '{weights}' are not a file; name a checkpoint")
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()[:16]
    name = f"{network}-{precision}-{size[0]}x{size[1]}-{digest}-{__version__}"
    return cache_folder() / "profiled" / name


def _export(
    network: str,
    weights: Path,
    precision: str,
    size: tuple[int, int],
    calibration: Path | None,
    folder: Path,
) -> None:
    from edgeseg.errors import MissingDependencyError

    try:
        import torch

        from edgeseg.export.exporter import export_bundle
        from edgeseg.networks.checkpoints import load_network
    except ImportError as error:
        raise MissingDependencyError(
            f"measuring {network} means exporting it first, and '{error.name}' is not installed; "
            "run pip install 'edgeseg[build]', or name a bundle that was exported elsewhere"
        ) from None
    torch.manual_seed(0)

    def progress(message: str) -> None:
        if sys.stderr.isatty():
            print(f"{network}: {message} …", file=sys.stderr)

    export_bundle(
        load_network(network, weights),
        folder,
        height=size[0],
        width=size[1],
        precision=precision,
        calibration=calibration,
        progress=progress,
    )


def _of_weights(network: str, weights: Path) -> "Subject":
    """The float32 bundle of a checkpoint: its structure may differ from the published one."""
    return bundle_of(network, weights, "float32", None)
