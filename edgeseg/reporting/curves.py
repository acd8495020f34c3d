"""ROC and precision-recall curves."""

from collections.abc import Sequence
from typing import Final

import numpy as np

from edgeseg.reporting.charts import Axis, Line, chart, legend
from edgeseg.reporting.documents import Curve, Evaluation
from edgeseg.reporting.markup import (
    UNKNOWN,
    Html,
    counted,
    details,
    join,
    number,
    paragraph,
    percent,
    table,
    tag,
)
from edgeseg.reporting.series import colour_of, dash_of
from edgeseg.reporting.speed import spoken

__all__ = ["curves_section", "no_evaluation"]

_MAX_CURVES: Final = 12
_RECALLS: Final = (50, 80, 95)


def no_evaluation(option: str) -> Html:
    """What stands where there is no evaluation; ``option``: of the command that makes one."""
    call = f"edgeseg eval NETWORK --data DIR --dataset anomaly:NAME --json{option} > eval.json"
    return paragraph("Nothing here. ", tag("code", call), " writes them.", class_="none")


def curves_section(evaluations: Sequence[Evaluation]) -> Html:
    """ROC and precision-recall curves, a pair per evaluation."""
    judged = [e for e in evaluations if any(s.curve for s in e.scored)]
    if not judged:
        return no_evaluation(" --curves")
    left = len(judged) - _MAX_CURVES
    return join(
        tag("div", *(f for e in judged[:_MAX_CURVES] for f in _curves(e)), class_="charts"),
        paragraph(f"{counted(left, 'more evaluation')} left out.") if left > 0 else "",
        details("Operating points", _operating_points(judged)),
    )


def _curves(judged: Evaluation) -> list[Html]:
    scored = [(s, s.curve) for s in judged.scored if s.curve is not None]
    name = f"{judged.name}, {judged.data}"
    share = 100 * scored[0][1].positives / (scored[0][1].positives + scored[0][1].negatives)
    chance = f"chance: {share:.2f}% of the pixels are anomalous"
    rate, recall = Axis("false positive rate, %", 0, 100), Axis("true positive rate, %", 0, 100)
    ratio, found = Axis("precision, %", 0, 100), Axis("recall, %", 0, 100)
    roc, precision, keys = [], [], []
    for s, curve in scored:
        told = s.called
        style = (told, colour_of(s.scorer), dash_of(s.scorer))
        ends = [(0.0, 0.0), *zip(curve.false_positives, curve.recall, strict=True), (100.0, 100.0)]
        roc.append(Line(ends, *style))
        precision.append(Line(list(zip(curve.recall, curve.precision, strict=True)), *style))
        keys.append((f"{told}: AuPRC {percent(s.auprc)}, FPR95 {percent(s.fpr95)}", roc[-1]))
    diagonal = Line([(0, 0), (100, 100)], "chance", dash="2 4")
    level = Line([(0, share), (100, share)], chance, dash="2 4")
    told = spoken(text for text, _ in keys)
    figures = []
    for title, x, y, lines, key in (
        ("ROC", rate, recall, [diagonal, *roc], keys),
        ("Precision-recall", found, ratio, [level, *precision], [*keys, (chance, level)]),
    ):
        picture = chart(f"{title}, {name}", told, x, y, lines=lines, height=300)
        figures.append(tag("figure", tag("figcaption", f"{title}: {name}"), picture, legend(key)))
    return figures


def _operating_points(judged: Sequence[Evaluation]) -> Html:
    heads = ["network", "data set", "scorer"]
    for level in _RECALLS:
        heads += [f"FPR at TPR {level}%", "precision %", "threshold"]
    rows = []
    for e in judged:
        for s in e.scored:
            if s.curve is None:
                continue
            cells = [e.name, e.data, s.called]
            for level in _RECALLS:
                cells += _at(s.curve, level)
            rows.append(cells)
    return join(
        paragraph(
            "The first point kept whose true positive rate reaches the level. A threshold can be "
            "given to ",
            tag("code", "edgeseg run --threshold"),
            " with the same scorer.",
        ),
        table("Operating points of the curves", heads, rows, left=3),
    )


def _at(curve: Curve, level: float) -> list[str]:
    index = int(np.argmax(np.asarray(curve.recall) >= level))
    if curve.recall[index] < level:
        return [UNKNOWN, UNKNOWN, UNKNOWN]
    values = (curve.false_positives[index], curve.precision[index])
    return [*(f"{v:.2f}" for v in values), number(curve.thresholds[index], 6)]
