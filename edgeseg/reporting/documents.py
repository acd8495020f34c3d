"""Documents of ``edgeseg profile`` and ``edgeseg eval`` as checked records."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from edgeseg.reporting.fields import Fields, MalformedError

__all__ = [
    "LEVELS",
    "Curve",
    "Evaluation",
    "Layer",
    "Peaks",
    "Profile",
    "ProfileRow",
    "Scored",
    "read_evaluation",
    "read_profile",
]

LEVELS: Final = ("p50", "p90", "p95", "p99", "max")
_MAX_LAYERS: Final = 1000
_MAX_SAMPLES: Final = 1000


@dataclass(frozen=True, slots=True)
class Peaks:
    """What a device can do at most: GB/s, and 10^12 operations a second by precision."""

    bandwidth_gbs: float
    tera: dict[str, float]


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer of a network: operations (two per multiply-accumulate) and bytes of a frame."""

    name: str
    op: str
    shape: str
    integer: bool
    operations: float
    moved_bytes: float
    ms: float | None
    """Estimated."""
    bound: str


@dataclass(frozen=True, slots=True)
class ProfileRow:
    """A row of ``edgeseg profile``; milliseconds."""

    file: str
    device: str
    title: str
    mode: str
    host: str
    kind: str
    network: str
    precision: str
    size: str
    scorer: str
    backend: str
    threads: int | None
    latency: dict[str, float]
    fastest: float | None
    range_ms: tuple[float, float] | None
    samples: list[float]
    stages: dict[str, float]
    fps: float | None
    budget: float | None
    within_budget: bool | None
    verdict: str
    reasons: list[str]
    params: float | None
    macs: float | None
    file_bytes: float | None
    memory_bytes: float | None
    energy_joule: float | None
    artefact: str
    layers: list[Layer]
    peaks: Peaks | None

    @property
    def estimated(self) -> bool:
        """Whether nobody measured it."""
        return self.kind != "measured"

    @property
    def place(self) -> str:
        """Where it ran, or would run."""
        mode = f", {self.mode}" if self.mode else ""
        host = f" at {self.host}" if self.host else ""
        return f"{self.device}{mode}{host}"

    @property
    def name(self) -> str:
        """Network, precision and size."""
        return f"{self.network} {self.precision} {self.size}"


@dataclass(frozen=True, slots=True)
class Profile:
    """A document of ``edgeseg profile``."""

    rows: list[ProfileRow]
    unconfirmed: list[str]


@dataclass(frozen=True, slots=True)
class Curve:
    """Points of a scorer, the strictest threshold first; percent."""

    recall: list[float]
    false_positives: list[float]
    precision: list[float]
    thresholds: list[float | None]
    positives: float
    negatives: float


@dataclass(frozen=True, slots=True)
class Scored:
    """A scorer's figures, percent."""

    scorer: str
    temperature: float
    auprc: float | None
    fpr95: float | None
    curve: Curve | None
    components: dict[str, float] = field(default_factory=dict)

    @property
    def called(self) -> str:
        """Its name, with the temperature where that is not 1."""
        return self.scorer + ("" if self.temperature == 1 else f" T={self.temperature:g}")


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A document of ``edgeseg eval``."""

    file: str
    network: str
    precision: str
    backend: str
    dataset: str
    protocol: str
    size: str
    frames: float
    every: float
    shard: str
    split: str
    artefact: str
    miou: float | None
    scored: list[Scored]

    @property
    def name(self) -> str:
        """Network, precision and size."""
        return f"{self.network} {self.precision} {self.size}"

    @property
    def data(self) -> str:
        """The set, with its split where that is not the usual one."""
        return self.dataset + (f", split {self.split}" if self.split not in ("", "val") else "")


def read_profile(document: Mapping[str, Any], file: str) -> Profile:
    """An ``edgeseg.profile/1``; MalformedError where it is none."""
    whole = Fields(document)
    rows = [_row(f, whole, file) for f in whole.objects("results")]
    if not rows:
        raise MalformedError("the document has no results")
    return Profile(rows, whole.texts("unconfirmed"))


def read_evaluation(document: Mapping[str, Any], file: str) -> Evaluation:
    """An ``edgeseg.eval/1``; MalformedError where it is none."""
    whole = Fields(document)
    scored = [
        Scored(
            scorer=f.text("scorer"),
            temperature=f.number("temperature"),
            auprc=f.optional("auprc_percent"),
            fpr95=f.optional("fpr95_percent"),
            curve=_curve(f.object("curve")),
            components={
                key: value
                for key in ("siou_percent", "ppv_percent", "mean_f1_percent")
                if (inner := f.object("components")) is not None
                and (value := inner.optional(key)) is not None
            },
        )
        for f in whole.objects("results")
    ]
    return Evaluation(
        file=file,
        network=whole.text("network"),
        precision=whole.text("precision"),
        backend=whole.text("backend"),
        dataset=whole.text("dataset"),
        protocol=whole.text("protocol"),
        size=whole.text("size", ""),
        frames=whole.number("frames"),
        every=whole.optional("every") or 1,
        shard=whole.text("shard", ""),
        split=whole.text("split", ""),
        artefact=whole.text("artefact", ""),
        miou=whole.optional("miou_percent"),
        scored=scored,
    )


def _row(row: Fields, whole: Fields, file: str) -> ProfileRow:
    latency = row.figures("latency_ms")
    if latency.get("p50", 0) <= 0 or min(latency.values()) < 0:
        raise MalformedError("a row has no latency_ms with a positive p50")
    title, there = whole.text("title", ""), whole.object("host")
    ends = [v for v in row.numbers("range_ms", 2) if v is not None]
    threads = row.optional("threads")
    kind = row.text("kind", whole.text("kind"))
    stages = row.figures("stages_ms")
    layers = [_layer(f) for f in row.objects("layers", _MAX_LAYERS)]
    if layers and layers[-1].name == "head" and kind == "estimated":
        # The head is a stage of its own to the estimate.
        layers[-1] = replace(layers[-1], ms=stages.get("head") or None)
    return ProfileRow(
        file=file,
        device=whole.text("device"),
        title=title if there is None else there.text("processor", title),
        mode=row.text("mode", whole.text("mode", "")),
        host=row.text("host", ""),
        kind=kind if kind in ("measured", "estimated") else "estimated",
        network=row.text("network"),
        precision=row.text("precision"),
        size=row.text("size"),
        scorer=row.text("scorer"),
        backend=row.text("backend", ""),
        threads=None if threads is None else int(threads),
        latency=latency,
        fastest=row.optional("fastest_ms"),
        range_ms=(ends[0], ends[1]) if len(ends) == 2 and 0 < ends[0] <= ends[1] else None,
        samples=[v for v in row.numbers("samples_ms", _MAX_SAMPLES) if v is not None and v >= 0],
        stages=stages,
        fps=row.optional("fps"),
        budget=row.optional("budget_ms"),
        within_budget=row.flag("within_budget"),
        verdict=row.text("verdict", ""),
        reasons=row.texts("reasons"),
        params=row.optional("params"),
        macs=row.optional("macs"),
        file_bytes=row.optional("file_bytes"),
        memory_bytes=row.optional("memory_bytes"),
        energy_joule=row.optional("energy_joule_per_frame"),
        artefact=row.text("artefact", ""),
        layers=layers,
        peaks=_peaks(whole.object("peaks")),
    )


def _layer(layer: Fields) -> Layer:
    ms = layer.optional("estimated_ms")
    return Layer(
        name=layer.text("name"),
        op=layer.text("op"),
        shape=layer.text("shape", ""),
        integer=bool(layer.flag("integer")),
        operations=2 * layer.number("macs") + layer.number("operations"),
        moved_bytes=layer.number("read_bytes") + layer.number("written_bytes"),
        ms=ms if ms is not None and ms > 0 else None,
        bound=layer.text("bound", ""),
    )


def _peaks(peaks: Fields | None) -> Peaks | None:
    bandwidth = None if peaks is None else peaks.optional("bandwidth_gbs")
    if peaks is None or not bandwidth or bandwidth < 0:
        return None
    keys = {"int8": "int8_tops", "float16": "float16_tflops", "float32": "float32_tflops"}
    tera = {name: value for name, key in keys.items() if (value := peaks.optional(key))}
    return Peaks(bandwidth, {name: value for name, value in tera.items() if value > 0})


def _curve(curve: Fields | None) -> Curve | None:
    if curve is None:
        return None
    recall, false_positives, precision = (
        [v for v in curve.numbers(key) if v is not None and 0 <= v <= 100]
        for key in ("recall_percent", "fpr_percent", "precision_percent")
    )
    thresholds = curve.numbers("threshold")
    lengths = {len(thresholds), len(recall), len(false_positives), len(precision)}
    if len(lengths) != 1 or not thresholds:
        raise MalformedError(
            "a curve has lists of different lengths, or figures that are no shares"
        )
    positives, negatives = curve.number("positives"), curve.number("negatives")
    if positives <= 0 or negatives <= 0:
        raise MalformedError("a curve has no positives or no negatives")
    return Curve(recall, false_positives, precision, thresholds, positives, negatives)
