"""Say whether compression keeps what is promised of it, from the compression table's JSON.

    python tools/compression_verdicts.py tools/results/compression.json

Every promise with its limit, what was measured, and yes, no or "not measured". The exit code is 1
where one is not kept.

INT8 may cost one point of each figure; on the set whose noise was measured (fs_static) what input
noise of +-1 grey level costs the float network, where that is more than a point.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compression_measures import ENGINES, MIOU_SETS, SCORERS
from compression_print import ENGINE_TITLES, SCORER_TITLES, figure, row_of
from make_readme import markdown

MAX_DROP = 1.0
MAX_GIVE_BACK = 15.0
PRUNED_MIOU, PRUNED_MACS, PRUNED_SPEED, PRUNED_MB = 2.0, 60.0, 1.4, 1.5
TIME_TOLERANCE = 10.0
NETWORK = "erfnet"
"""That the promises about pruning are made of."""

Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Verdict:
    """A promise, and whether it is kept."""

    network: str
    promise: str
    limit: str
    measured: str
    kept: bool | None
    """``None``: not measured."""


@dataclass(frozen=True, slots=True)
class Drop:
    """What INT8 costs one figure."""

    where: str
    points: float
    """More is worse."""
    limit: float
    noise: float | None
    """What noise costs the same figure."""


def verdicts(document: Json) -> list[Verdict]:
    """All promises, of every network in the document."""
    found = []
    for network, entry in document["networks"].items():
        if entry["weights"] is None:
            continue
        found += _int8(network, entry, document["sets"])
        if network == NETWORK:
            found += _pruned(network, entry)
            found.append(_timed(network, entry))
    return found


def drops(entry: Json, sets: list[str], form: str = "int8") -> list[Drop]:
    """What ``form`` costs every figure that both it and float32 have."""
    base, row = row_of(entry, "float32"), row_of(entry, form)
    noisy = {"accuracy": entry.get("noise", {})}
    found = []
    for name in sets:
        miou = name in MIOU_SETS
        for scorer in ("",) if miou else SCORERS:
            for index in (0,) if miou else (0, 1):
                key = (name, scorer, index)
                before, after = figure(base, *key), figure(row, *key)
                if before is None or after is None:
                    continue
                sign = -1 if index else 1
                disturbed = figure(noisy, *key)
                noise = None if disturbed is None else sign * (before - disturbed)
                what = "mIoU" if miou else f"{SCORER_TITLES[scorer]} {('AuPRC', 'FPR95')[index]}"
                limit = max(MAX_DROP, noise or 0.0)
                found.append(Drop(f"{name} {what}", sign * (before - after), limit, noise))
    return found


def _int8(network: str, entry: Json, sets: list[str]) -> Iterator[Verdict]:
    found = drops(entry, sets)
    limit = f"{MAX_DROP:.1f} point"
    for name in sets:
        own = [d for d in found if d.where.startswith(f"{name} ")]
        promise = f"INT8 loses at most, {name}"
        if not own:
            yield Verdict(network, promise, limit, "-", None)
            continue
        over = [d for d in own if d.points > d.limit]
        worst = max(own, key=lambda d: d.points - d.limit)
        text = f"{len(own) - len(over)} of {len(own)} figures within; worst {_named(worst, name)}"
        bounded = limit
        if any(d.noise is not None for d in own):
            bounded += " or what noise of +-1 costs"
            beyond = sum(d.points > max(d.noise or 0.0, 0.0) for d in own)
            text += f"; {beyond} cost more than noise"
        yield Verdict(network, promise, bounded, text, not over)
    yield from _give_back(network, entry)


def _named(drop: Drop, name: str) -> str:
    text = f"{drop.where.removeprefix(name + ' ')} {drop.points:+.2f}"
    return text if drop.limit == MAX_DROP else f"{text} (limit {drop.limit:.2f})"


def _give_back(network: str, entry: Json) -> Iterator[Verdict]:
    rows = [row_of(entry, form) for form in ("float32", "int8-plain", "int8")]
    for engine in ENGINES:
        times = [_ms(row, engine) for row in rows]
        if None in times:
            continue
        floating, plain, gated = times
        limit, promise = f"{MAX_GIVE_BACK:.0f} %", f"gate gives back, {ENGINE_TITLES[engine]}"
        if floating <= plain:  # type: ignore[operator]
            yield Verdict(network, promise, limit, "INT8 gains nothing", None)
            continue
        share = 100 * (gated - plain) / (floating - plain)  # type: ignore[operator]
        yield Verdict(network, promise, limit, f"{share:.1f} %", share <= MAX_GIVE_BACK)


def _pruned(network: str, entry: Json) -> Iterator[Verdict]:
    base, pruned = row_of(entry, "float32"), row_of(entry, "pruned")
    whole, both = row_of(entry, "int8"), row_of(entry, "pruned-int8")
    for name in MIOU_SETS:
        before, after = figure(base, name), figure(pruned, name)
        lost = None if before is None or after is None else before - after
        yield _judged(
            network, f"pruned loses mIoU, {name}", f"at most {PRUNED_MIOU:.1f} points",
            lost, "{:+.2f}", most=PRUNED_MIOU,
        )  # fmt: skip
    share = _quotient(pruned, base, "macs", 100)
    yield _judged(
        network, "pruned keeps MACs", f"at most {PRUNED_MACS:.0f} %", share, "{:.1f} %",
        most=PRUNED_MACS,
    )  # fmt: skip
    for engine in ENGINES:
        faster = None if pruned is None else pruned["speed"].get(engine, {}).get("times_faster")
        yield _judged(
            network, f"pruned faster in float32, {ENGINE_TITLES[engine]}",
            f"at least {PRUNED_SPEED:.1f}x", faster, "{:.2f}x", least=PRUNED_SPEED,
        )  # fmt: skip
    for engine in ENGINES:
        times = [_faster(row, engine) for row in (whole, both)]
        ratio = None if None in times else times[1] / times[0]  # type: ignore[operator]
        yield _judged(
            network, f"pruned faster in INT8, {ENGINE_TITLES[engine]}", "above 1x",
            ratio, "{:.2f}x", above=1.0,
        )  # fmt: skip
    size = _quotient(pruned, base, "bytes", 100)
    yield _judged(
        network, "pruned file of the float32 file", "below 100 %", size, "{:.1f} %", below=100
    )
    mega = None if both is None else both["counts"]["bytes"] / 1e6
    yield _judged(
        network, "pruned + INT8 file", f"at most {PRUNED_MB} MB", mega, "{:.2f} MB", most=PRUNED_MB
    )


def _timed(network: str, entry: Json) -> Verdict:
    target = entry.get("timed")
    promise, limit = "target in milliseconds met", f"within {TIME_TOLERANCE:.0f} %"
    if not target:
        return Verdict(network, promise, limit, "-", None)
    off = 100 * (target["ms"] / target["target_ms"] - 1)
    text = (
        f"{target['target_ms']:.1f} ms asked on {ENGINE_TITLES[target['engine']]}, "
        f"{target['claimed_ms']:.1f} ms found while pruning, {target['ms']:.1f} ms measured again: "
        f"{off:+.1f} %"
    )
    return Verdict(network, promise, limit, text, abs(off) <= TIME_TOLERANCE)


def _judged(
    network: str,
    promise: str,
    limit: str,
    value: float | None,
    form: str,
    *,
    most: float | None = None,
    least: float | None = None,
    above: float | None = None,
    below: float | None = None,
) -> Verdict:
    if value is None:
        return Verdict(network, promise, limit, "-", None)
    kept = (
        (most is None or value <= most)
        and (least is None or value >= least)
        and (above is None or value > above)
        and (below is None or value < below)
    )
    return Verdict(network, promise, limit, form.format(value), kept)


def _quotient(row: Json | None, base: Json | None, key: str, factor: float) -> float | None:
    if row is None or base is None:
        return None
    return float(factor * row["counts"][key] / base["counts"][key])


def _ms(row: Json | None, engine: str) -> float | None:
    return None if row is None else row["speed"].get(engine, {}).get("ms")


def _faster(row: Json | None, engine: str) -> float | None:
    return None if row is None else row["speed"].get(engine, {}).get("times_faster")


def to_markdown(found: list[Verdict]) -> str:
    """A row per promise."""
    words = {True: "yes", False: "**no**", None: "not measured"}
    body = [[v.network, v.promise, v.limit, v.measured, words[v.kept]] for v in found]
    return markdown(("network", "promise", "limit", "measured", "kept"), body, range(5))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("document", type=Path, help="JSON of tools/compression_table.py")
    options = parser.parse_args()
    try:
        document = json.loads(options.document.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        parser.error(f"'{options.document}' cannot be read: {error}")
    found = verdicts(document)
    print(to_markdown(found))
    if document["every"] > 1:
        print(f"\nA trial on every {document['every']}th frame: not the promised measurement.")
    return int(any(v.kept is False for v in found))


if __name__ == "__main__":
    sys.exit(main())
