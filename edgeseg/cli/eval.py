"""``edgeseg eval``: anomaly metrics and mIoU of a bundle or a network on a data set."""

import json
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgeseg.cli.progress import frame_progress
from edgeseg.cli.sizes import parse_size

if TYPE_CHECKING:
    from edgeseg.data.samples import Dataset
    from edgeseg.evaluation.evaluate import SessionPredictor
    from edgeseg.evaluation.state import EvaluationState
    from edgeseg.networks.predictor import TorchPredictor

__all__ = ["eval_command", "open_dataset", "open_target", "parse_scorers"]

_BUNDLE_BACKENDS = (
    "auto",
    "onnxruntime",
    "onnxruntime-cuda",
    "onnxruntime-tensorrt",
    "openvino",
    "tensorrt",
)
_NETWORK_BACKENDS = ("torch", "torch-fx")
_DEFAULT_SIZE = "512x1024"


def eval_command(
    target: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="BUNDLE|NETWORK",
            help="Folder of a bundle, or enet, erfnet, bisenet, midenet. With --merge: "
            "more state files.",
            show_default=False,
        ),
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option(
            help="Weights of a NETWORK, or a folder of 'edgeseg quantize'; default: the shipped "
            "ones."
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Folder of the data set, or of the anomaly sets."),
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="cityscapes, camvid, or anomaly:FOLDER such as anomaly:fs_static."
        ),
    ] = None,
    scorer: Annotated[
        str | None,
        typer.Option(help="Scorers with commas between; default: all that the network has."),
    ] = None,
    temperature: Annotated[float, typer.Option(help="Softmax temperature T.")] = 1.0,
    protocol: Annotated[
        str,
        typer.Option(
            metavar="paper|all",
            help="paper leaves out frames without an anomalous pixel after the resize.",
        ),
    ] = "paper",
    size: Annotated[
        str | None,
        typer.Option(
            metavar="HxW",
            help=f"Size to evaluate at; default: {_DEFAULT_SIZE}, or the bundle's own.",
        ),
    ] = None,
    split: Annotated[str, typer.Option(metavar="val|train", help="Split of the set.")] = "val",
    every: Annotated[int, typer.Option(metavar="N", help="Take every N-th frame.")] = 1,
    resize: Annotated[
        str, typer.Option(metavar="runtime|pillow", help="Which code resizes the frames.")
    ] = "runtime",
    backend: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="torch or torch-fx for a NETWORK; auto, onnxruntime, openvino or tensorrt for a "
            "BUNDLE.",
        ),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Threads of the engine; default: all cores."),
    ] = None,
    score_type: Annotated[
        str,
        typer.Option(
            metavar="float32|float16",
            help="Type in which a BUNDLE's scores are judged; `run` writes float16, whose "
            "rounding ties MaxLogit and energy scores.",
        ),
    ] = "float32",
    components: Annotated[
        bool,
        typer.Option(
            "--components",
            help="Component metrics too (sIoU, PPV, mean F1); keeps the score maps in a "
            "temporary file, or in --output.",
        ),
    ] = False,
    curves: Annotated[
        bool,
        typer.Option(
            "--curves",
            help="Add ROC and precision-recall curves to the JSON document, at most 200 points a "
            "scorer; `report` draws them.",
        ),
    ] = False,
    shard: Annotated[
        str | None,
        typer.Option(metavar="i/n", help="Evaluate part i of n and write its state file."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", metavar="FILE", help="State file that --merge reads; see --shard."
        ),
    ] = None,
    merge: Annotated[
        list[str] | None,
        typer.Option(metavar="FILES", help="Merge the state files of all shards."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document.")] = False,
) -> None:
    """AuPRC, FPR95 and mIoU of a bundle or network on labelled frames.

    All pixels of a set are pooled; memory does not grow with the set. Scores are counted by the
    upper 24 bits of their float32 pattern.
    """
    from edgeseg.errors import UsageError

    if curves and not as_json:
        raise UsageError("--curves adds to the JSON document; give --json as well")
    if merge:
        if shard is not None:
            raise UsageError("--merge and --shard exclude each other; merge after all shards ran")
        state = _merge(merge, target or [])
        _finish(state, output, as_json, {}, curves)
        return
    if not target or len(target) != 1:
        raise UsageError("eval takes one BUNDLE or NETWORK; see 'edgeseg eval --help'")
    if data is None or dataset is None:
        raise UsageError("eval needs --data DIR and --dataset NAME; see 'edgeseg eval --help'")

    from edgeseg.data.transforms import RESIZES
    from edgeseg.evaluation.evaluate import evaluate
    from edgeseg.evaluation.protocols import check_protocol, parse_shard
    from edgeseg.evaluation.state import ScorerSpec

    chosen_protocol = check_protocol(protocol)
    part = parse_shard(shard) if shard is not None else (1, 1)
    if every < 1:
        raise UsageError(f"--every {every} selects nothing; give 1 or more")
    if not (temperature > 0 and temperature < float("inf")):
        raise UsageError(f"--temperature {temperature} is not a positive number")
    if resize not in RESIZES:
        raise UsageError(f"--resize '{resize}' is unknown; choose one of {', '.join(RESIZES)}")
    names = parse_scorers(scorer)
    wanted_size = parse_size(size) if size is not None else None
    if shard is not None and output is None:
        label = dataset.replace(":", "-").replace("/", "-")
        output = Path(f"eval-{label}-{part[0]}of{part[1]}.npz")
    frames = open_dataset(data, dataset, split)

    with ExitStack() as stack:
        predictor, own_size, notes = open_target(
            stack, target[0], weights, backend, threads, wanted_size, score_type
        )
        maps = None
        if components and frames.kind == "anomaly":
            maps = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "maps.npz"
        specs = [ScorerSpec(name, temperature) for name in names or predictor.scorers]
        with frame_progress() as report:
            state = evaluate(
                predictor,
                frames,
                specs,
                size=own_size,
                protocol=chosen_protocol,
                every=every,
                shard=part,
                resize="pillow" if resize == "pillow" else "runtime",
                maps=maps,
                progress=report,
            )
        extra: dict[str, Any] = {"split": split} if frames.kind == "semantic" else {}
        if notes:
            extra["notes"] = notes
            for note in notes:
                print(f"edgeseg: {note}", file=sys.stderr)
        _finish(state, output, as_json, extra, curves)


def open_dataset(data: Path, name: str, split: str) -> "Dataset":
    """The data set that ``--dataset`` names, under ``--data``.

    Raises:
        UsageError: an unknown name.
        InputError: the folder is missing or not such a data set.
    """
    from edgeseg.data import AnomalySet, CamVid, open_cityscapes
    from edgeseg.errors import InputError, UsageError

    kind, _, folder = name.partition(":")
    if not data.is_dir():
        raise InputError(f"--data '{data}' is not a folder; check the path")
    if kind == "anomaly" and folder:
        places = [data / folder, data / "anomaly" / folder]
        if data.resolve().name == folder:
            places.append(data)
        for place in places:
            if place.is_dir():
                return AnomalySet(place)
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

    if target in NETWORKS and not (Path(target) / "bundle.json").is_file():
        chosen = size or parse_size(_DEFAULT_SIZE)
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

    if score_type not in ("float32", "float16"):
        raise UsageError(f"--score-type '{score_type}' is neither float32 nor float16")
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


def _merge(merge: list[str], rest: list[str]) -> "EvaluationState":
    """The state of all files: ``--merge A B``, ``--merge A,B`` and ``--merge A --merge B`` are one.

    A network named before them must be the one that the files are of.
    """
    from edgeseg.errors import UsageError
    from edgeseg.evaluation.state import merge_files
    from edgeseg.networks.zoo import NETWORKS

    paths = [Path(name) for entry in merge for name in _split_list(entry)]
    paths += [Path(name) for name in rest if name not in NETWORKS and not Path(name).is_dir()]
    state = merge_files(paths)
    for name in rest:
        if name in NETWORKS and name != state.identity.network:
            raise UsageError(
                f"the files to merge are of {state.identity.network}, not of {name}; leave it out "
                "or give others"
            )
    return state


def _split_list(entry: str) -> list[str]:
    return [entry] if Path(entry).exists() else [part for part in entry.split(",") if part]


def _finish(
    state: "EvaluationState",
    output: Path | None,
    as_json: bool,
    extra: dict[str, Any],
    curves: bool,
) -> None:
    """Write the state file, then print; exit 7 where there was nothing to evaluate."""
    from edgeseg.errors import InputError

    whole = not state.missing_shards
    if whole and state.frames == 0:
        raise InputError(
            f"data set '{state.identity.dataset}' has no frame to evaluate under protocol "
            f"'{state.identity.protocol}'; choose --protocol all or other data"
        )
    if output is not None:
        state.save(output)
        extra = {**extra, "state_file": str(output)}
        if not as_json:
            print(f"edgeseg: wrote {output}", file=sys.stderr)
    from edgeseg.evaluation.report import document, print_table

    report = {**document(state, curves=curves), **extra}
    if as_json:
        print(json.dumps(report, allow_nan=False))
    else:
        print_table(report)
