"""The compression table as Markdown, from the document that ``compression_table.py`` wrote."""

from collections.abc import Mapping, Sequence
from typing import Any

from compression_measures import ENGINES, FX_ENGINE, MIOU_SETS, SCORERS
from edgeseg.networks.zoo import ZOO
from make_readme import markdown

ENGINE_TITLES = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO", FX_ENGINE: "torch"}
SET_TITLES = {"cityscapes": "mIoU % sharp", "cityscapes256": "mIoU % 256x256"}
SCORER_TITLES = {"void": "void", "msp": "MSP", "maxlogit": "MaxLogit", "entropy": "entropy"}

Json = Mapping[str, Any]


def to_markdown(document: Json, scorer: str = "void") -> str:
    """All tables, one per network, and what they were measured on."""
    parts = [_table(name, entry, document, scorer) for name, entry in document["networks"].items()]
    return "\n\n".join([*parts, _notes(document, scorer)])


def row_of(entry: Json, form: str) -> Json | None:
    """A row of a network, if it was measured."""
    return next((r for r in entry["rows"] if r["form"] == form and "counts" in r), None)


def figure(row: Json | None, name: str, scorer: str = "", index: int = 0) -> float | None:
    """MIoU of a set, or AuPRC (0) or FPR95 (1) of a scorer on it, percent."""
    values = {} if row is None else row["accuracy"].get(name, {})
    if name in MIOU_SETS:
        return values.get("miou_percent")
    pair = values.get("scorers", {}).get(scorer)
    return None if pair is None else pair[index]


def _table(network: str, entry: Json, document: Json, scorer: str) -> str:
    weights = entry["weights"]
    title = f"### {ZOO[network].title}"
    if weights is None:
        return f"{title}\n\nNo weights."
    base, sets = row_of(entry, "float32"), document["sets"]
    engines = [
        e for e in (*ENGINES, FX_ENGINE) if any(e in r.get("speed", {}) for r in _rows(entry))
    ]
    header = ["", *(SET_TITLES.get(s, s) for s in sets)]
    header += [f"FPS {ENGINE_TITLES[e]}" for e in engines]
    header += ["MACs G", "of these integer", "parameters", "MB"]
    body = []
    for row in entry["rows"]:
        if "counts" not in row:
            problem = row["problem"]
            body.append([row["title"], problem, *["-"] * (len(header) - 2)])
            continue
        own, counts = scorer if _has(row, scorer) else "msp", row["counts"]
        cells = [_accuracy(row, base, name, own) for name in sets]
        cells += [_speed(row["speed"].get(engine)) for engine in engines]
        cells += [f"{counts[key] / 1e9:.2f}" for key in ("macs", "macs_integer")]
        cells += [f"{counts['params']:,}", f"{counts['bytes'] / 1e6:.2f}"]
        body.append([row["title"], *cells])
    whose = weights["weights_name"] or weights["file"]
    parts = [title, f"Weights: {whose}.", markdown(header, body, (0,))]
    details = _all_scorers(entry, base, [s for s in sets if s not in MIOU_SETS])
    return "\n\n".join([*parts, *details])


def _rows(entry: Json) -> list[Json]:
    return [row for row in entry["rows"] if "counts" in row]


def _has(row: Json, scorer: str) -> bool:
    return any(scorer in values.get("scorers", {}) for values in row["accuracy"].values())


def _accuracy(row: Json, base: Json | None, name: str, scorer: str) -> str:
    indices = (0,) if name in MIOU_SETS else (0, 1)
    now = [figure(row, name, scorer, i) for i in indices]
    if None in now:
        return "-"
    text = " / ".join(f"{v:.2f}" for v in now)
    before = [figure(base, name, scorer, i) for i in indices]
    if base is None or row is base or None in before:
        return text
    changes = " / ".join(_signed(n - b) for n, b in zip(now, before, strict=True))  # type: ignore[operator]
    return f"{text} ({changes})"


def _signed(value: float) -> str:
    text = f"{value:+.2f}"
    return "0.00" if text in ("+0.00", "-0.00") else text


def _speed(values: Json | None) -> str:
    if values is None:
        return "-"
    faster = values["times_faster"]
    more = "" if faster is None or faster == 1 else f" ({faster:.2f}x)"
    return f"{values['fps']:.1f}{more}"


def _all_scorers(entry: Json, base: Json | None, sets: Sequence[str]) -> list[str]:
    body = [
        [row["title"], SCORER_TITLES[scorer], *(_accuracy(row, base, s, scorer) for s in sets)]
        for scorer in SCORERS
        for row in _rows(entry)
        if _has(row, scorer)
    ]
    if not body:
        return []
    table = markdown(["", "scorer", *sets], body, (0, 1))
    return ["<details><summary>All scorers: AuPRC / FPR95 %</summary>", table, "</details>"]


def _notes(document: Json, scorer: str) -> str:
    settings, machine = document["settings"], document["machine"]
    frames: dict[str, int] = {}
    for entry in document["networks"].values():
        for row in _rows(entry):
            frames |= {s: v["frames"] for s, v in row["accuracy"].items()}
    counted = ", ".join(f"{name} {n}" for name, n in frames.items())
    steps = settings["finetune_steps"]
    counted_steps = ", ".join(f"{ZOO[name].title} {n}" for name, n in steps.items() if n)
    tuned = f"fine-tuned with the unpruned as teacher, steps: {counted_steps}"
    gate = settings["int8_options"]
    lines = [
        f"Anomaly sets: AuPRC / FPR95 % of {SCORER_TITLES.get(scorer, scorer)}, protocol paper. In "
        "brackets: points more or less than float32, and how many times its frames a second. All "
        f"at {settings['size']}; bundles judged on {ENGINE_TITLES[document['engine']]}, FX in "
        f"torch. Frames that count: {counted}.",
        "Pruned: " + (tuned if counted_steps else "not fine-tuned") + "; "
        "masked: filters set to zero, layer by layer, as the papers did. Distilled: trained on "
        f"from float32, {settings['distill_steps']} steps. MACs: head included; MB what the device "
        "needs: body, head and manifest.",
        f"INT8: calibrated on `{settings['calibration']}`"
        + (", shipped weights by their shipped ranges" if settings.get("shipped_ranges") else "")
        + (f", exported with `{gate}`." if gate else ", without an accuracy gate."),
        f"Machine: {machine['cpu']}, {document['threads'] or 'all'} threads; "
        f"{machine['versions']}. Times: median of {document['turns']} turns of five frames, every "
        "row of a network in turn.",
    ]
    if document["every"] > 1:
        lines.insert(0, f"**A trial on every {document['every']}th frame: compare with nothing.**")
    return "\n\n".join(lines)
