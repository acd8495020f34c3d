"""Build, measure and print the papers' compression table: every network in every form.

    python tools/compression_table.py --json tools/results/compression.json
        [--data ../shared/data] [--networks NAME...] [--rows FORM...] [--sets NAME...]
        [--weights NETWORK=FILE]... [--finetune-steps N] [--distill-steps N | --distilled FILE]
        [--int8-options "--max-drop 1.0 --gate-data {data}/anomaly/fs_static"]
        [--markdown FILE] [--picture FILE.png]
    python tools/compression_table.py --from-json tools/results/compression.json --verdicts

Forms: float32; pruned; INT8; pruned + INT8; masked as the papers did it; torch FX INT8; MiDE-Net
distilled from ENet; ERFNet pruned to a time. Each starts from the shipped weights, or those of
``--weights``. What a form is made with are `edgeseg` commands, which the JSON holds.

Bundles, networks and measurements lie in ``--work``: a run that was stopped goes on, and what did
not change is neither built nor measured again. After a change of the code that builds, give
``--rebuild`` with forms, or weights-pruned and the like; ``--retime`` where the machine was busy. A
form that cannot be built says why in its row, and the others go on.

Columns: mIoU on both Cityscapes folders (of the 256x256 one every fifth frame), AuPRC and FPR95 of
void, MSP, MaxLogit and entropy on every set in the folder ``anomaly``, frames a second on ONNX
Runtime and OpenVINO, multiply-accumulates, how many of them are integer, parameters, and bytes that
the device needs. Times want a quiet machine; ``--every 10 --turns 2`` is for trials.
"""

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench_machine import describe_machine
from compression_measures import (
    ENGINES,
    SCORERS,
    Accuracy,
    Speed,
    Store,
    counts,
    digest,
    known_sets,
)
from compression_print import to_markdown
from compression_rows import BUILDS, INT8_OPTIONS, KEYS, Builder, Built, Settings
from compression_verdicts import to_markdown as verdicts_to_markdown
from compression_verdicts import verdicts
from edgeseg.cli.sizes import parse_size
from edgeseg.errors import EdgesegError
from edgeseg.export.exporter import calibration_frames
from edgeseg.networks.checkpoints import load_network
from edgeseg.networks.zoo import NETWORKS

ROOT = Path(__file__).resolve().parent.parent
SCHEMA = "edgeseg.compression-table/1"
NOISE_SET, NOISE_LEVEL = "fs_static", 1
TIMED_FRAMES = 8


class Tabulator:
    """Builds and measures the rows of networks."""

    def __init__(self, settings: Settings, accuracy: Accuracy, speed: Speed) -> None:
        self.settings, self.accuracy, self.speed = settings, accuracy, speed

    def network(
        self, builder: Builder, forms: Sequence[str], sets: Sequence[str]
    ) -> dict[str, Any]:
        """One network's part of the document."""
        if builder.source is None:
            return {"weights": None, "rows": []}
        wanted = builder.forms(forms)
        built = [builder.build(form) for form in wanted if form.weights != "timed"]
        # First what takes seconds a set, so that nothing disturbs the times.
        figures = {
            b.form.key: self.accuracy.measure(builder.network, b.path, sets)
            for b in built
            if b.path is not None
        }
        entry: dict[str, Any] = {"weights": _weights(builder)}
        base = next((b.path for b in built if b.form.key == "float32"), None)
        if base is not None and NOISE_SET in sets:
            entry["noise"] = self.accuracy.measure(builder.network, base, [NOISE_SET], NOISE_LEVEL)
        paths = {b.form.key: b.path for b in built if b.path is not None}
        times = self.speed.measure(builder.network, paths) if paths else {}
        entry["rows"] = [_row(b, figures, times, self.settings) for b in built]
        for form in wanted:
            if form.weights == "timed" and base is not None:
                self._timed(builder, builder.build(form, _quickest(times["float32"])), base, entry)
        return entry

    def _timed(self, builder: Builder, built: Built, base: Path, entry: dict[str, Any]) -> None:
        """Add the row of a target in milliseconds, and whether it was met.

        The quotient of the two networks' times holds still while a machine's speed does not, so
        it is measured again, and multiplied with the unpruned network's time at the pruning.
        """
        figures, times = {}, {}
        if built.path is not None and built.weights_report is not None:
            key, report = built.form.key, built.weights_report
            times = self.speed.measure(builder.network, {"float32": base, key: built.path})
            found, engine = report["latency_ms"], report["latency_ms"]["backend"]
            entry["timed"] = {
                "target_ms": report["target_ms"],
                "engine": engine,
                "claimed_ms": found["after"],
                "ms": found["before"] / times[key][engine]["times_faster"],
            }
            sets = list(entry["rows"][0].get("accuracy", {}))
            figures[key] = self.accuracy.measure(builder.network, built.path, sets)
        entry["rows"].append(_row(built, figures, times, self.settings))


def _weights(builder: Builder) -> dict[str, Any]:
    assert builder.source is not None
    provenance = load_network(builder.network, builder.source).provenance
    return {
        "file": builder.source.name,
        "sha256": hashlib.sha256(builder.source.read_bytes()).hexdigest(),
        "weights_name": provenance.get("weights_name", ""),
        "license": provenance.get("license", ""),
    }


def _row(
    built: Built, figures: dict[str, Any], times: dict[str, Any], settings: Settings
) -> dict[str, Any]:
    form = built.form
    title = form.title
    if form.weights in ("pruned", "masked"):
        title = title.replace(form.weights, f"{form.weights} {settings.amount:.0%}", 1)
    row: dict[str, Any] = {"form": form.key, "title": title, "commands": list(built.commands)}
    if built.path is None:
        return {**row, "problem": built.problem}
    return {
        **row,
        "artefact": digest(built.path),
        "counts": counts(built.path, built.report),
        "accuracy": figures[form.key],
        "speed": times.get(form.key, {}),
    }


def _inside(path: Path, folder: Path) -> str:
    """A path as it is written below the data folder, wherever that lies."""
    inside = path.resolve().is_relative_to(folder.resolve())
    return str(path.resolve().relative_to(folder.resolve()) if inside else path)


def _quickest(speed: dict[str, Any]) -> tuple[str, float]:
    engine = min((e for e in ENGINES if e in speed), key=lambda e: speed[e]["ms"])
    return engine, speed[engine]["ms"]


def measure_all(
    options: argparse.Namespace, settings: Settings, sets: Sequence[str]
) -> dict[str, Any]:
    """The document, of every network that was asked for."""
    store = Store(settings.work / "measurements.json")
    if options.retime:
        store.forget("speed")
    size = parse_size(settings.size)
    accuracy = Accuracy(store, settings.data, options.every, options.engine, settings.threads)
    frames = calibration_frames(settings.calibration, *size, TIMED_FRAMES)
    tabulator = Tabulator(settings, accuracy, Speed(store, frames, options.turns, settings.threads))
    networks = {}
    for name in options.networks:
        builder = Builder(name, settings)
        for build in options.rebuild:
            builder.forget(build)
        networks[name] = tabulator.network(builder, options.rows, sets)
        print(f"{name}: done", file=sys.stderr)
    return {
        "schema": SCHEMA,
        "machine": describe_machine(),
        "threads": settings.threads,
        "every": options.every,
        "engine": options.engine,
        "turns": options.turns,
        "sets": list(sets),
        "settings": {
            "amount": settings.amount,
            "finetune_steps": {n: settings.finetune_steps.get(n, 0) for n in networks},
            "distill_steps": settings.distill_steps,
            "int8_options": settings.int8_options,
            "calibration": _inside(settings.calibration, settings.data),
            "shipped_ranges": settings.shipped_ranges,
            "size": settings.size,
        },
        "networks": networks,
    }


def _pairs(parser: argparse.ArgumentParser, option: str, entries: Sequence[str]) -> dict[str, str]:
    pairs = {}
    for entry in entries:
        name, equals, value = entry.partition("=")
        if not (equals and value and name in NETWORKS):
            parser.error(
                f"{option} '{entry}' is not NETWORK=VALUE with one of {', '.join(NETWORKS)}"
            )
        pairs[name] = value
    return pairs


def _steps(parser: argparse.ArgumentParser, entries: Sequence[str]) -> dict[str, int]:
    """Steps by network: a number for all of them, others for single ones."""
    texts = dict.fromkeys(NETWORKS, "0")
    for entry in sorted(entries, key=lambda e: "=" in e):
        alone = {} if "=" in entry else dict.fromkeys(NETWORKS, entry)
        texts |= alone or _pairs(parser, "--finetune-steps", [entry])
    if not all(text.isascii() and text.isdigit() for text in texts.values()):
        parser.error("--finetune-steps takes whole numbers from 0 on: 600 erfnet=1000")
    return {name: int(text) for name, text in texts.items()}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    data = Path(os.environ.get("EDGESEG_TEST_DATA", "../shared/data"))
    add = parser.add_argument
    add("--data", type=Path, default=data)
    add("--networks", nargs="+", default=list(NETWORKS), choices=NETWORKS)
    add("--rows", nargs="+", default=list(KEYS), choices=KEYS, metavar="FORM", help=", ".join(KEYS))
    add("--sets", nargs="+", metavar="NAME", help="default: all that the data folder has")
    add("--weights", action="append", default=[], metavar="NETWORK=FILE")
    add(
        "--calibration",
        type=Path,
        help="frames for INT8; default: shipped ranges, where there are none Cityscapes",
    )
    add("--amount", type=float, default=0.3, help="share of the filters to prune")
    add("--finetune-steps", nargs="+", default=[], metavar="[NETWORK=]N", help="after pruning")
    add("--distill-steps", type=int, default=0, help="for MiDE-Net from ENet")
    add("--distilled", type=Path, metavar="FILE", help="MiDE-Net distilled from ENet already")
    add("--recipe", action="append", default=[], metavar="NETWORK=NAME", help="to train by")
    add("--int8-options", default=INT8_OPTIONS, help="further options of every INT8 export")
    add("--time-share", type=float, default=0.7, help="of float32's time: target of form timed")
    add("--every", type=int, default=1, help="take every N-th frame")
    add("--turns", type=int, default=12, help="of five timed frames each")
    add("--threads", type=int)
    add("--engine", choices=ENGINES, default="openvino", help="that bundles are judged on")
    add("--work", type=Path, default=ROOT / "logs" / "compression")
    add("--rebuild", nargs="+", default=[], metavar="NAME", choices=BUILDS)
    add("--retime", action="store_true", help="measure all times again")
    add("--scorer", choices=SCORERS, default="void", help="of the short table")
    add("--from-json", type=Path, metavar="FILE", help="measure nothing, print this")
    add("--verdicts", action="store_true", help="print which promises are kept too")
    add("--json", type=Path, metavar="FILE")
    add("--markdown", type=Path, metavar="FILE")
    add("--picture", type=Path, metavar="FILE", help="PNG or SVG: AuPRC against milliseconds")
    add("--picture-scorer", choices=SCORERS, default="void")
    return parser


def _measured(parser: argparse.ArgumentParser, options: argparse.Namespace) -> dict[str, Any]:
    """The document of the options, read or measured."""
    if options.from_json:
        try:
            document = json.loads(options.from_json.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            parser.error(f"--from-json '{options.from_json}' cannot be read: {error}")
        if document.get("schema") != SCHEMA:
            parser.error(f"--from-json '{options.from_json}' is no compression table")
        return document  # type: ignore[no-any-return]
    weights = {n: Path(f) for n, f in _pairs(parser, "--weights", options.weights).items()}
    for path in (*weights.values(), *([options.distilled] if options.distilled else [])):
        if not path.is_file():
            parser.error(f"weights '{path}' do not exist")
    if min(options.every, options.turns) < 1:
        parser.error("--every and --turns start at 1")
    sets = known_sets(options.data)
    unknown = set(options.sets or ()) - set(sets)
    if unknown:
        parser.error(f"there is no set {', '.join(sorted(unknown))}; choose from {', '.join(sets)}")
    settings = Settings(
        data=options.data,
        work=options.work,
        weights=weights,
        calibration=options.calibration or options.data / "cityscapes" / "leftImg8bit" / "train",
        shipped_ranges=options.calibration is None,
        amount=options.amount,
        finetune_steps=_steps(parser, options.finetune_steps),
        distill_steps=options.distill_steps,
        distilled=options.distilled,
        recipes=_pairs(parser, "--recipe", options.recipe),
        int8_options=options.int8_options,
        time_share=options.time_share,
        threads=options.threads,
    )
    return measure_all(options, settings, [s for s in sets if s in (options.sets or sets)])


def main() -> int:
    parser = _parser()
    options = parser.parse_args()
    try:
        document = _measured(parser, options)
    except EdgesegError as error:
        print(f"compression_table: {error}", file=sys.stderr)
        return error.exit_code
    if options.json:
        options.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    text = to_markdown(document, options.scorer)
    if options.verdicts:
        text += f"\n\n{verdicts_to_markdown(verdicts(document))}"
    print(text)
    if options.markdown:
        options.markdown.write_text(text + "\n", encoding="utf-8")
    if options.picture:
        from compression_picture import draw

        try:
            draw(document, options.picture, options.picture_scorer)
        except ValueError as error:
            print(f"compression_table: --picture: {error}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
