"""``edgeseg eval``: anomaly metrics and mIoU of a bundle or a network on a data set."""

import json
import sys
import tempfile
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from edgeseg.cli.eval_merge import merged
from edgeseg.cli.eval_targets import DEFAULT_SIZE, open_dataset, open_target, parse_scorers
from edgeseg.cli.given import given
from edgeseg.cli.outputs import check_output, write_outputs
from edgeseg.cli.progress import frame_progress
from edgeseg.cli.sizes import parse_size

if TYPE_CHECKING:
    from edgeseg.evaluation.state import EvaluationState

__all__ = ["eval_command"]

_KEPT: Final = (
    *("weights", "dataset", "scorer", "temperature", "protocol", "size", "split", "every"),
    *("resize", "backend", "score_type", "components"),
)
"""Options that decide figures, which state files keep."""


def eval_command(
    context: typer.Context,
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
            help=f"Size to evaluate at; default: {DEFAULT_SIZE}, or the bundle's own.",
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
        if output is not None:
            check_output(output, "--output")
        options = {
            option: context.params[option.removeprefix("--").replace("-", "_")]
            for option in given(context, *_KEPT)
        }
        state = merged(merge, target or [], options)
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
    if output is not None:
        check_output(output, "--output")
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
                split=split if frames.kind == "semantic" else "",
                progress=report,
            )
        extra: dict[str, Any] = {}
        if notes:
            extra["notes"] = notes
            for note in notes:
                print(f"edgeseg: {note}", file=sys.stderr)
        _finish(state, output, as_json, extra, curves)


def _finish(
    state: "EvaluationState",
    output: Path | None,
    as_json: bool,
    extra: dict[str, Any],
    curves: bool,
) -> None:
    """Write the state file and print, also where the file fails.

    Exits with 7 where there was nothing to evaluate.
    """
    from edgeseg.errors import EdgesegError, InputError
    from edgeseg.evaluation.report import document, print_table

    if state.missing_shard is None and state.frames == 0:
        raise InputError(
            f"data set '{state.identity.dataset}' has no frame to evaluate under protocol "
            f"'{state.identity.protocol}'; choose --protocol all or other data"
        )
    failed: EdgesegError | None = None
    if output is not None:
        failed = write_outputs(partial(state.save, output))
        if failed is None:
            extra = {**extra, "state_file": str(output)}
            if not as_json:
                print(f"edgeseg: wrote {output}", file=sys.stderr)
    report = {**document(state, curves=curves), **extra}
    if as_json:
        print(json.dumps(report, allow_nan=False))
    else:
        print_table(report)
    if failed is not None:
        raise failed
