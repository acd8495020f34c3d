"""``edgeseg calibrate-temperature``: learn the softmax temperature on labelled frames."""

import json
import math
import os
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgeseg.cli.eval_targets import open_dataset, open_target, parse_scorers
from edgeseg.cli.progress import frame_progress
from edgeseg.cli.sizes import parse_size

if TYPE_CHECKING:
    from edgeseg.data.samples import Dataset, Sample
    from edgeseg.evaluation.evaluate import SessionPredictor
    from edgeseg.networks.predictor import TorchPredictor
    from edgeseg.runtime.session import Session

__all__ = ["calibrate_temperature_command"]

_SCHEMA = "edgeseg.calibrate-temperature/1"
_DATASETS = ("cityscapes", "camvid", "folder")
_GRID = "0.5,0.75,1,1.1,1.6,2.15"
_MAX_GRID = 32


def calibrate_temperature_command(
    target: Annotated[
        str,
        typer.Argument(
            metavar="NETWORK|BUNDLE",
            help="enet, erfnet, bisenet, midenet, or folder of a bundle.",
            show_default=False,
        ),
    ],
    data: Annotated[
        Path,
        typer.Option(
            help="Folder of frames with labels of the known classes, none of which the network "
            "was trained on."
        ),
    ],
    weights: Annotated[
        Path | None,
        typer.Option(help="Weights of a NETWORK; default: the shipped ones."),
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(
            metavar="cityscapes|camvid|folder", help="Layout of --data; default: recognised."
        ),
    ] = None,
    split: Annotated[str, typer.Option(metavar="val|train", help="Split of the set.")] = "val",
    size: Annotated[
        str | None,
        typer.Option(metavar="HxW", help="Frame size; default: the bundle's own, or 512x1024."),
    ] = None,
    every: Annotated[int, typer.Option(metavar="N", min=1, help="Take every N-th frame.")] = 1,
    pixels_per_frame: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Random labelled pixels to take of a frame; default: 20000, fewer where the set "
            "has more than 200 frames.",
            show_default=False,
        ),
    ] = None,
    anomaly: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="DIR",
            help="Anomaly set to report AuPRC and FPR95 of at several temperatures; repeatable.",
        ),
    ] = None,
    grid: Annotated[
        str,
        typer.Option(
            metavar="T,...", help="Temperatures of that report; the learned one is added."
        ),
    ] = _GRID,
    scorer: Annotated[
        str, typer.Option(metavar="S,...", help="Scorers of that report.")
    ] = "msp,entropy",
    write: Annotated[
        bool,
        typer.Option(
            " /--no-write", help="Leave a BUNDLE as it is and only print.", show_default=False
        ),
    ] = True,
    backend: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="torch for a NETWORK; auto, onnxruntime, openvino or tensorrt for a BUNDLE.",
        ),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Threads of the engine; default: all cores."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document.")] = False,
) -> None:
    """Learn the temperature that makes the softmax's confidences honest on labelled frames.

    A BUNDLE gets it written into its bundle.json, with default thresholds that hold at it, and
    `edgeseg run` uses it from then on; `edgeseg eval` stays at 1 unless told. For a NETWORK it is
    printed, for `edgeseg export --temperature`.
    """
    from edgeseg.evaluation.protocols import select

    temperatures = _parse_grid(grid)
    scorers = parse_scorers(scorer)
    wanted_size = parse_size(size) if size is not None else None
    labelled = _open_labelled(data, dataset, split)
    anomaly_sets = [_open_anomaly(folder) for folder in anomaly or ()]
    frames: list[Sample] = select(labelled, every)
    _require_torch()
    from edgeseg.evaluation.evaluate import SessionPredictor
    from edgeseg.training.temperature import learn_temperature, sample_pixels

    with ExitStack() as stack:
        predictor, own_size, notes = open_target(
            stack, target, weights, backend, threads, wanted_size, "float32"
        )
        session = predictor.session if isinstance(predictor, SessionPredictor) else None
        if session is not None and write:
            _check_writable(session)
        with frame_progress() as report:
            pixels = sample_pixels(
                predictor, frames, own_size, per_frame=pixels_per_frame, progress=report
            )
        fit = learn_temperature(pixels)
        if fit.at_bound:
            notes = [
                *notes,
                f"the temperature {fit.temperature:g} is the outermost that is tried; check that "
                "the labels are those of the network's classes",
            ]
        document: dict[str, Any] = {
            "schema": _SCHEMA,
            "network": predictor.network,
            "precision": predictor.precision,
            "backend": predictor.backend,
            "size": "{}x{}".format(*own_size),
            "dataset": labelled.name,
            "split": split,
            "every": every,
            **fit.document(),
            "anomaly": [
                _grid_report(predictor, folder, own_size, scorers, temperatures, fit.temperature)
                for folder in anomaly_sets
            ],
            "written": None,
            "thresholds": None,
        }
        if session is not None and write:
            document["written"], document["thresholds"] = _write(session, frames, document)
            notes = [*notes, *_stale(session)]
    if notes:
        document["notes"] = notes
        for note in notes:
            print(f"edgeseg: {note}", file=sys.stderr)
    if as_json:
        print(json.dumps(document, allow_nan=False))
        return
    _print(document)
    if session is None:
        options = f" --weights {weights}" if weights is not None else ""
        print(f"use it: edgeseg export {target}{options} --temperature {fit.temperature:.4g}")


def _parse_grid(text: str) -> list[float]:
    from edgeseg.errors import UsageError

    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if not values or not all(math.isfinite(t) and t > 0 for t in values):
        raise UsageError(f"--grid '{text}' is not positive numbers with commas, such as {_GRID}")
    if len(values) > _MAX_GRID:
        raise UsageError(
            f"--grid holds {len(values)} temperatures; give {_MAX_GRID} or fewer at a time"
        )
    return values


def _open_labelled(data: Path, name: str | None, split: str) -> "Dataset":
    from edgeseg.data import LabelledFolder, open_labelled
    from edgeseg.data.folder import find_mapping
    from edgeseg.errors import InputError, UsageError

    if not data.is_dir():
        raise InputError(f"--data '{data}' is not a folder; check the path")
    if name is None:
        return open_labelled(data, split)
    if name not in _DATASETS:
        raise UsageError(f"--dataset '{name}' is unknown; choose one of {', '.join(_DATASETS)}")
    if name != "folder":
        return open_dataset(data, name, split)
    chosen = data / split if (data / split / "images").is_dir() else data
    mapping = find_mapping(chosen) or find_mapping(data)
    return LabelledFolder(chosen, data.resolve().name, mapping=mapping)


def _open_anomaly(folder: Path) -> "Dataset":
    from edgeseg.data import AnomalySet
    from edgeseg.errors import InputError

    if not folder.is_dir():
        raise InputError(f"--anomaly '{folder}' is not a folder; check the path")
    return AnomalySet(folder)


def _require_torch() -> None:
    from edgeseg.errors import MissingDependencyError

    try:
        import torch  # noqa: F401
    except ImportError:
        raise MissingDependencyError(
            "learning a temperature needs torch; run pip install 'edgeseg[build]'"
        ) from None


def _check_writable(session: "Session") -> None:
    from edgeseg.errors import InputError

    path = session.bundle.path
    if not os.access(path, os.W_OK):
        # Known before the frames are read, not after.
        raise InputError(
            f"bundle '{path}' cannot be written to; copy it to where it can be, or give --no-write"
        )


def _grid_report(
    predictor: "SessionPredictor | TorchPredictor",
    dataset: "Dataset",
    size: tuple[int, int],
    scorers: list[str],
    grid: list[float],
    learned: float,
) -> dict[str, Any]:
    """AuPRC and FPR95 of every scorer at every temperature, as `edgeseg eval` measures them."""
    from edgeseg.evaluation.evaluate import evaluate
    from edgeseg.evaluation.state import ScorerSpec

    temperatures = sorted({*grid, learned})
    specs = [ScorerSpec(name, t) for name in scorers for t in temperatures]
    with frame_progress(dataset.name) as report:
        state = evaluate(predictor, dataset, specs, size=size, protocol="paper", progress=report)
    return {
        "dataset": dataset.name,
        "protocol": "paper",
        "frames": state.frames,
        "frames_left_out": state.frames_left_out,
        "results": state.results(),
    }


def _write(
    session: "Session", frames: "list[Sample]", document: dict[str, Any]
) -> tuple[str, dict[str, float]]:
    """Put T into the bundle, with the thresholds that hold at it; the file and the thresholds."""
    from edgeseg.bundle import MANIFEST, replace_manifest
    from edgeseg.training.temperature import scaled_thresholds, with_temperature

    temperature = document["temperature"]
    with frame_progress("thresholds") as report:
        thresholds, seen = scaled_thresholds(session, frames, temperature, report)
    keys = ("temperature", "dataset", "split", "frames", "pixels", "nll", "ece_percent", "backend")
    provenance = {
        **{key: document[key] for key in keys},
        "thresholds": {"percentile": 99, "frames": seen, "values": thresholds},
    }
    bundle = session.bundle
    replace_manifest(bundle, with_temperature(bundle.manifest, temperature, thresholds, provenance))
    return str(bundle.path / MANIFEST), thresholds


def _stale(session: "Session") -> list[str]:
    """What of the bundle does not hold at the new temperature: a sentence each."""
    from edgeseg.runtime.signing import SIGNATURE

    bundle = session.bundle
    names = [name for name in bundle.manifest.files if name.startswith("model_")]
    notes = [
        f"{name} keeps the temperature that it was exported with; export the bundle again with "
        "--temperature to change it"
        for name in names
        if name != "model_maxlogit.onnx"
    ]
    if os.path.lexists(bundle.path / SIGNATURE):
        notes.append(
            f"{SIGNATURE} no longer holds, since bundle.json changed; sign it again with "
            f"'edgeseg bundle sign {bundle.path} --key FILE'"
        )
    return notes


def _print(document: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    console.print(
        f"{document['network']} {document['precision']} on {document['backend']}, "
        f"{document['dataset']}, {document['pixels']} pixels of {document['frames']} frames at "
        f"{document['size']}"
    )
    learned = document["temperature"]
    table = Table()
    for head in ("T", "NLL, nats", "ECE %"):
        table.add_column(head, justify="right")
    for when, t in (("before", 1.0), ("after", learned)):
        ece = document["ece_percent"][when]
        table.add_row(f"{t:.4g}", f"{document['nll'][when]:.4f}", f"{ece:.2f}")
    console.print(table)
    for report in document["anomaly"]:
        console.print(f"{report['dataset']}, protocol paper, {report['frames']} frames")
        table = Table()
        table.add_column("scorer")
        for head in ("T", "AuPRC %", "FPR95 %"):
            table.add_column(head, justify="right")
        for row in report["results"]:
            figures = [row["auprc_percent"], row["fpr95_percent"]]
            mark = " (learned)" if row["temperature"] == learned else ""
            table.add_row(
                row["scorer"],
                f"{row['temperature']:.4g}{mark}",
                *("-" if value is None else f"{value:.2f}" for value in figures),
            )
        console.print(table)
    if document["written"] is not None:
        console.print(
            f"wrote {document['written']}: `edgeseg run` uses T = {learned:.4g} and default "
            "thresholds taken at it on these frames",
            soft_wrap=True,
        )
