"""What ``edgeseg eval`` evaluates, and on what: bundles, networks, data sets, scorers."""

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Final

from edgeseg.cli.sizes import parse_size

if TYPE_CHECKING:
    from edgeseg.data.samples import Dataset
    from edgeseg.evaluation.evaluate import SessionPredictor
    from edgeseg.networks.predictor import TorchPredictor

__all__ = ["DEFAULT_SIZE", "open_dataset", "open_target", "parse_scorers"]

DEFAULT_SIZE: Final = "512x1024"
_BUNDLE_BACKENDS: Final = (
    "auto",
    "onnxruntime",
    "onnxruntime-cuda",
    "onnxruntime-tensorrt",
    "openvino",
    "tensorrt",
)
_NETWORK_BACKENDS: Final = ("torch", "torch-fx")


def open_dataset(data: Path, name: str, split: str) -> "Dataset":
    """The data set that ``--dataset`` names, under ``--data``.

    Raises:
        UsageError: an unknown name.
        InputError: the folder is missing or not such a data set.
    """
    from edgeseg.data import AnomalySet, CamVid, open_cityscapes
    from edgeseg.data.samples import given_name
    from edgeseg.errors import InputError, UsageError

    kind, _, folder = name.partition(":")
    if not data.is_dir():
        raise InputError(f"--data '{data}' is not a folder; check the path")
    if kind == "anomaly" and folder:
        for place in (data / folder, data / "anomaly" / folder):
            if place.is_dir():
                return AnomalySet(place)
        if folder in (given_name(data), data.resolve().name):
            return AnomalySet(data, folder)
        raise InputError(f"--data '{data}' holds no anomaly set '{folder}'; check both names")
    if name == "cityscapes":
        return open_cityscapes(data, split)
    if name == "camvid":
        return CamVid(data, split)
    raise UsageError(
        f"--dataset '{name}' is unknown; choose cityscapes, camvid or anomaly:FOLDER such as "
        "anomaly:RoadAnomaly21"
    )


def open_target(
    stack: ExitStack,
    target: str,
    weights: Path | None,
    backend: str | None,
    threads: int | None,
    size: tuple[int, int] | None,
    score_type: str,
) -> "tuple[SessionPredictor | TorchPredictor, tuple[int, int], list[str]]":
    """What ``BUNDLE|NETWORK`` names, the size to evaluate at, and what the user should know.

    Args:
        stack: closes the engine of a bundle.
        target: folder of a bundle, or name of a network.
        weights: of a network; ``None``: the shipped ones.
        backend: ``None``: auto for a bundle, for a network torch, or torch-fx where the weights
            are quantized.
        threads: of the engine; ``None``: all cores.
        size: height and width, pixels; ``None``: the bundle's, or the default.
        score_type: ``float32`` or ``float16``, of a bundle's scores.

    Raises:
        UsageError: options that do not go together.
        InputError: ``target`` is neither.
        MissingDependencyError: torch or an engine is not installed.
        ArtefactError: damaged weights or a damaged bundle.
    """
    from edgeseg.errors import InputError, UsageError
    from edgeseg.networks.zoo import NETWORKS

    if score_type not in ("float32", "float16"):
        raise UsageError(f"--score-type '{score_type}' is neither float32 nor float16")
    if target in NETWORKS and not (Path(target) / "bundle.json").is_file():
        if score_type != "float32":
            raise UsageError(
                f"--score-type {score_type} goes with a BUNDLE; a NETWORK's scores are float32"
            )
        chosen = size or parse_size(DEFAULT_SIZE)
        from edgeseg.compression.fx_folder import is_fx_folder

        usual = "torch-fx" if weights is not None and is_fx_folder(weights) else "torch"
        return _open_network(target, weights, backend or usual, threads, chosen), chosen, []
    if not Path(target).exists():
        raise InputError(
            f"'{target}' is neither a bundle nor a network; give the folder of a bundle or one "
            f"of {', '.join(NETWORKS)}"
        )
    if weights is not None:
        raise UsageError("--weights goes with a NETWORK; a bundle has its own")
    engine = backend or "auto"
    if engine not in _BUNDLE_BACKENDS:
        raise UsageError(
            f"--backend '{engine}' cannot run a bundle; choose one of {', '.join(_BUNDLE_BACKENDS)}"
        )
    from edgeseg.evaluation.evaluate import SessionPredictor
    from edgeseg.runtime.session import Session

    session = stack.enter_context(
        Session(target, backend=engine, threads=threads, score_dtype=score_type)
    )
    if size is not None and size != session.size:
        have = "{}x{}".format(*session.size)
        raise UsageError(
            f"--size {size[0]}x{size[1]} is not the size of the bundle '{target}' ({have}); "
            "leave it out, or export a bundle of that size"
        )
    return SessionPredictor(session), session.size, session.notes


def _open_network(
    name: str, weights: Path | None, backend: str, threads: int | None, size: tuple[int, int]
) -> "TorchPredictor":
    from edgeseg.errors import MissingDependencyError, UsageError

    if backend not in _NETWORK_BACKENDS:
        raise UsageError(
            f"--backend '{backend}' runs bundles, not networks; export one with 'edgeseg export "
            f"{name}' and give its folder, or choose torch"
        )
    from edgeseg.compression.fx_folder import is_fx_folder
    from edgeseg.networks.zoo import shipped_weights

    if backend == "torch-fx":
        return _open_fx(name, weights, threads, size)
    chosen = weights or shipped_weights(name)
    if chosen is None:
        raise UsageError(f"no weights are shipped for {name}; give some with --weights FILE")
    if is_fx_folder(chosen):
        raise UsageError(
            f"--weights '{chosen}' holds a network that torch FX quantized; choose --backend "
            "torch-fx, or give float weights"
        )
    try:
        import torch  # noqa: F401
    except ImportError:
        raise MissingDependencyError(
            f"evaluating the network '{name}' needs torch; pip install 'edgeseg[build]', or give "
            "a bundle"
        ) from None
    from edgeseg.networks.checkpoints import load_network
    from edgeseg.networks.predictor import TorchPredictor

    module = load_network(name, chosen)
    module.check_size(*size)
    return TorchPredictor(module, weights=chosen, threads=threads)


def _open_fx(
    name: str, weights: Path | None, threads: int | None, size: tuple[int, int]
) -> "TorchPredictor":
    from edgeseg.compression.fx_folder import MANIFEST
    from edgeseg.errors import MissingDependencyError, UsageError

    if weights is None:
        raise UsageError(
            "--backend torch-fx evaluates what 'edgeseg quantize NETWORK --method fx' wrote; give "
            "that folder with --weights, or choose torch"
        )
    try:
        from edgeseg.compression.quantize_fx import FXPredictor, load_fx
    except ImportError as error:
        raise MissingDependencyError(
            f"--backend torch-fx needs the build packages, and '{error.name}' is not installed; "
            "run pip install 'edgeseg[build]'"
        ) from None
    module = load_fx(name, weights)
    module.check_size(*size)
    # The manifest names the weights by their sha256, and says how they are to be computed.
    named = weights / MANIFEST if weights.is_dir() else weights
    return FXPredictor(module, weights=named, threads=threads)


def parse_scorers(text: str | None) -> list[str]:
    """Names with commas between; UsageError where one is no scorer, empty for ``None``."""
    from edgeseg.errors import UsageError
    from edgeseg.scoring.scorers import SCORERS

    if text is None:
        return []
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in SCORERS:
            raise UsageError(f"--scorer '{name}' is unknown; choose from {', '.join(SCORERS)}")
    return names
