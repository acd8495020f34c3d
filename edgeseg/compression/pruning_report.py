"""What ``edgeseg prune`` leaves: the weights, ``prune.json``, and a table for people."""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from edgeseg.compression.pruning import Pruned
from edgeseg.compression.targets import Timing
from edgeseg.errors import InputError, UsageError
from edgeseg.files import write_whole
from edgeseg.networks.base import Network
from edgeseg.networks.checkpoints import save_network
from edgeseg.networks.counts import count

__all__ = ["FINE_TUNING", "REPORT", "SCHEMA", "destination", "document", "save", "table"]

SCHEMA: Final = "edgeseg.prune/1"
REPORT: Final = "prune.json"
FINE_TUNING: Final = "fine-tuning"
"""Folder below the destination that training runs in."""


@contextmanager
def destination(output: Path, *, trains: bool, resume: bool) -> Iterator[Path]:
    """The folder to write to, whole or not at all.

    Without training it is a hidden folder beside ``output`` that gets its name at the end. With
    training it is ``output`` itself, where a run that was stopped goes on; what it wrote is removed
    again where it has no checkpoint yet.

    Raises:
        UsageError: a file, or a folder that is not empty.
        InputError: a folder that cannot be written to.
    """
    there = output.is_dir()
    if output.exists() and not there:
        raise UsageError(f"-o '{output}' is a file; give a folder")
    if there and any(output.iterdir()) and not resume:
        further = "go on with --resume, or give" if trains else "give"
        raise UsageError(f"-o '{output}' is not empty; {further} another folder")
    with _as_input_error(output):
        output.parent.mkdir(parents=True, exist_ok=True)
        if trains:
            output.mkdir(exist_ok=True)
            hidden = output
        else:
            hidden = Path(tempfile.mkdtemp(dir=output.parent, prefix=f".{output.name}."))
            hidden.chmod(0o755)
    try:
        yield hidden
        if not trains:
            with _as_input_error(output):
                hidden.replace(output)
    except BaseException:
        if not trains:
            shutil.rmtree(hidden, ignore_errors=True)
        elif not any(output.rglob("last.safetensors")):
            shutil.rmtree(output / FINE_TUNING, ignore_errors=True)
            if not there:
                shutil.rmtree(output, ignore_errors=True)
        raise


@contextmanager
def _as_input_error(output: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(
            f"-o '{output}' cannot be written ({error.strerror}); choose another folder"
        ) from None


def document(
    pruned: Pruned,
    original: Network,
    weights: Path,
    *,
    license_terms: str = "",
    fine_tuning: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """What ``edgeseg prune --json`` prints and ``prune.json`` holds, without the file's path.

    Args:
        pruned: the result.
        original: the unpruned network.
        weights: its file.
        license_terms: of the result, where they are not the unpruned network's.
        fine_tuning: what was trained, :meth:`edgeseg.compression.recovery.Recovery.document`.
    """
    request, timing = pruned.request, pruned.timing
    provenance = original.provenance
    name = provenance.get("weights_name", "") or weights.stem
    suffix = "-pruned" if request.mode == "remove" else "-zeroed"
    before, after = _costs(original, request.size), _costs(pruned.network, request.size)
    return {
        "schema": SCHEMA,
        "network": original.structure.network,
        "weights_name": name.removesuffix(suffix) + suffix,
        "license": license_terms or provenance.get("license", ""),
        "pruned_from": {
            "weights_name": name,
            "file": weights.name,
            "sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
        },
        **request.document(),
        "dead": pruned.dead,
        "zeroed_filters": pruned.zeroed,
        "removed_percent": pruned.removed_percent,
        "groups": [asdict(group) for group in pruned.groups],
        "before": before,
        "after": after,
        "macs_fraction": after["macs"] / before["macs"],
        "latency_ms": None if timing is None else _latencies(timing),
        "fine_tuning": fine_tuning,
    }


def _latencies(timing: Timing) -> dict[str, Any]:
    return {"before": timing.reference_ms, "after": timing.ms, "backend": timing.backend}


def _costs(network: Network, size: tuple[int, int]) -> dict[str, int]:
    counts = count(network, *size)
    tensors = {k: v for k, v in network.state_dict().items() if "num_batches" not in k}
    return {
        "params": counts.params,
        "macs": counts.macs,
        "weight_bytes": sum(v.numel() * v.element_size() for v in tensors.values()),
    }


def save(network: Network, report: dict[str, Any], folder: Path) -> Path:
    """Write ``prune.json`` and the weights; the path of these.

    Raises:
        InputError: the folder cannot be written to.
    """
    path = folder / f"{report['network']}.safetensors"
    dead = report["dead"]
    goals = ("amount", "target_macs", "target_ms")
    metadata = {
        "weights_name": report["weights_name"],
        "license": report["license"],
        "pruned_from": report["pruned_from"]["weights_name"],
        "pruned_from_sha256": report["pruned_from"]["sha256"],
        "pruning": json.dumps(
            {
                "mode": report["mode"],
                **{key: report[key] for key in goals if report[key] is not None},
                **{key: report[key] for key in ("ranking", "round_to", "protect", "steps")},
                "removed_percent": round(report["removed_percent"], 2),
                "dead_filters": dead["removable"],
                "dead_filters_removed": dead["removed"],
                "filters": dead["filters"],
                "fine_tuning": report["fine_tuning"],
            },
            sort_keys=True,
        ),
    }
    try:
        write_whole(folder / REPORT, (json.dumps(report, indent=1) + "\n").encode())
    except OSError as error:
        raise InputError(
            f"'{folder / REPORT}' cannot be written ({error.strerror}); choose another folder"
        ) from None
    save_network(network, path, metadata)
    return path


def table(report: dict[str, Any]) -> str:
    """A :func:`document` as text: groups that changed, costs, dead filters."""
    rows: list[tuple[str, ...]] = [("channels of", "layers", "before", "dead", "after")]
    for group in report["groups"]:
        if group["after"] != group["before"]:
            name = group["name"]
            rows.append((name, *(str(group[k]) for k in ("layers", "before", "dead", "after"))))
    lines = _columns(rows) if len(rows) > 1 else []
    before, after = report["before"], report["after"]
    lines += ["", *_columns(
        [
            ("", "before", "after", "left"),
            ("parameters", *_pair(before["params"], after["params"], 1, "")),
            (f"MACs at {report['size']}", *_pair(before["macs"], after["macs"], 1e9, " G")),
            ("weights", *_pair(before["weight_bytes"], after["weight_bytes"], 1e6, " MB")),
            *_latency(report["latency_ms"]),
        ]
    ), ""]  # fmt: skip
    lines += [*_dead_sentences(report), *_notes(report)]
    return "\n".join(lines)


def _columns(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _pair(before: float, after: float, unit: float, name: str) -> tuple[str, str, str]:
    form = ("{:,.2f}" if name else "{:,.0f}") + name
    return form.format(before / unit), form.format(after / unit), f"{100 * after / before:.1f} %"


def _latency(latency: dict[str, Any] | None) -> list[tuple[str, ...]]:
    if latency is None:
        return []
    pair = _pair(latency["before"], latency["after"], 1, " ms")
    return [(f"float32 on {latency['backend']}", *pair)]


def _dead_sentences(report: dict[str, Any]) -> list[str]:
    dead = report["dead"]
    if not (dead["zero"] or dead["removable"]):
        return []
    kept = []
    if dead["zero_shared"]:
        kept.append(f"{dead['zero_shared']} write to channels that others use")
    if dead["zero_border"]:
        kept.append(f"{dead['zero_border']} give a constant that the border of a frame lacks")
    text = (
        f"dead filters: {dead['zero']} of {dead['filters']} are all zero; {dead['removable']} "
        f"can go exactly ({dead['zero_removable']} of these zeros, the others unread; logits "
        f"differ by at most {dead['max_abs_difference']:.1e})"
    )
    if kept:
        text += "; of the zeros " + " and ".join(kept)
    return [f"{text}; {dead['removed']} went"]


def _notes(report: dict[str, Any]) -> list[str]:
    if report["mode"] == "zero":
        return [
            f"{report['zeroed_filters']} filters were set to zero; nothing gets smaller or faster"
        ]
    asked = report["amount"]
    if asked and report["removed_percent"] < 100 * asked * 0.75 and report["round_to"] > 1:
        return [
            f"{report['removed_percent']:.0f} % of the channels went where {100 * asked:.0f} % "
            f"were asked for, because widths stay multiples of {report['round_to']}; a smaller "
            "--round-to takes more, --target-macs takes from the wide layers"
        ]
    return []
