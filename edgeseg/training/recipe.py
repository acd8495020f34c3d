"""Recipes: everything that decides what a training run does, as TOML and as frozen dataclasses.

A recipe file names only what differs from the defaults here. It is read with suspicion: an unknown
key, a value of another type or out of range is one sentence. The whole recipe is stored in every
checkpoint, and a run goes on only under the recipe that it was begun with.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from importlib import resources
from pathlib import Path
from types import UnionType
from typing import Any, Final, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from edgeseg.errors import InputError, UsageError
from edgeseg.networks.zoo import NETWORKS

__all__ = [
    "CYCLE",
    "SCHEMA",
    "Augment",
    "Data",
    "Distillation",
    "Loss",
    "Optimizer",
    "Recipe",
    "Schedule",
    "Source",
    "Stage",
    "default_recipe",
    "load_recipe",
    "parse_hxw",
    "shipped_recipes",
    "void_recipe",
    "with_fitting_loss",
]

SCHEMA: Final = "edgeseg.recipe/1"
CYCLE: Final = 1000
"""Items over which the sources of a mixture stand by their shares."""
_MAX_BYTES: Final = 1 << 20
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Source:
    """One data set of a mixture."""

    folder: str = "."
    """Below ``--data``, or absolute; ``synthetic`` draws scenes instead of reading any."""
    split: str = "train"
    share: float = 1.0
    """Weight in the mixture."""
    stretch: tuple[float, float] = (1.0, 1.0)
    """Rows and columns are multiplied by it first: (1, 2) restores frames squeezed to squares."""
    scale: tuple[float, float] = (1.0, 1.0)
    """Range of the random scale after the stretch, log-uniform."""
    scales: tuple[float, ...] = ()
    """Scales to choose from instead of the range."""
    hold_out: int = 0
    """Last frames by name that are not trained on but select the best checkpoint."""
    void: Literal["ignore", "all", "eroded"] = "ignore"
    """What 255 in the labels becomes: nothing, void, or void where an erosion leaves it."""
    erosion: int = 2
    """Radius of that erosion, pixels of the label map as it is stored."""
    rare: float = 0.0
    """Share of the crops that are laid around a class chosen by its rarity."""
    count: int = 2000
    """Scenes of ``synthetic``."""
    size: str = "256x512"
    """Size of the scenes of ``synthetic``."""


@dataclass(frozen=True, slots=True)
class Data:
    """What a batch is made of."""

    crop: str = "256x512"
    """Height and width that the network is trained at, pixels."""
    batch: int = 8
    """Frames of a micro-batch: what one process takes through the network at once."""
    accumulate: int = 1
    """Micro-batches per process whose gradients make one step."""
    source: tuple[Source, ...] = (Source(),)
    validation_size: str = "256x512"
    """Size at which held-out frames are judged."""
    validation_frames: int = 0
    """Held-out frames that are judged while training, spread evenly; 0: all."""


@dataclass(frozen=True, slots=True)
class Augment:
    """What happens to a crop. Shares are probabilities, 0 to 1."""

    flip: bool = True
    rotate: float = 0.0
    """Share of the crops turned by up to 3 degrees."""
    aspect: float = 0.0
    """Largest change of the width, as a power of two."""
    colour: float = 0.0
    """Strength of exposure, gamma, tint and saturation changes, 0 to 1."""
    blur: float = 0.0
    sharpen: float = 0.0
    """Share sharpened: enlarged frames are softer than a camera's."""
    noise: float = 0.0
    """Share with sensor noise."""
    jpeg: float = 0.0
    """Share with JPEG artefacts."""
    paste_unknown: float = 0.0
    """Share of the photos that get synthetic unknown objects as void."""


@dataclass(frozen=True, slots=True)
class Loss:
    """The loss; names as ``--loss`` takes them."""

    name: str = "ce"
    class_weights: Literal["none", "enet", "erfnet", "sqrt"] = "none"
    """Rule of the class weights; ``sqrt`` is the square root of ENet's, normalised to mean 1."""
    void_weight: float = 1.0
    auxiliary: float = 0.0
    """Weight of each auxiliary head's loss."""
    gamma: float = 2.0
    alpha: float = 1.0
    entropic_scale: float = 10.0
    temperature: float = 0.04
    ohem_threshold: float = 0.7
    ohem_min_kept: float = 0.0625


@dataclass(frozen=True, slots=True)
class Distillation:
    """How a teacher's opinion enters; used where a teacher is given.

    A stage that trains the encoder alone takes it where it takes the labels: at the middle of every
    8x8 pixels, which one output of the encoder's classifier stands for.
    """

    temperature: float = 1.0
    soft_share: float = 0.5
    on_ignored: bool = False
    confidence: float = 0.0


@dataclass(frozen=True, slots=True)
class Optimizer:
    """Optimiser and its constants."""

    name: Literal["adam", "adamw", "sgd"] = "adamw"
    lr: float = 1e-3
    weight_decay: float = 1e-4
    decay_norms: bool = True
    """Whether biases and BatchNorms decay too."""
    momentum: float = 0.9
    """Of SGD."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Of Adam."""
    eps: float = 1e-8
    clip: float = 0.0
    """Largest norm of the gradient; 0: not clipped."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """Course of the learning rate."""

    name: Literal["poly", "cosine", "constant"] = "poly"
    power: float = 0.9
    per: Literal["step", "epoch"] = "step"
    warmup: float = 0.0
    """Share of the steps over which the rate rises linearly from a fiftieth."""


@dataclass(frozen=True, slots=True)
class Stage:
    """Part of a run, with an optimiser and a schedule of its own."""

    part: Literal["all", "encoder", "last"] = "all"
    """What is trained: everything, the encoder by its own classifier, or the last layer."""
    steps: int = 0
    epochs: float = 0.0
    """Passes over the sources, where ``steps`` is 0."""
    lr: float = 0.0
    """0: the optimiser's."""
    crop: str = ""
    """Another crop than the data's."""
    scale: float = 1.0
    """Factor on the scales of all sources; with a smaller crop, cheap steps at first."""
    freeze_batchnorm: bool = False
    """BatchNorms keep their statistics."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """A training run."""

    network: str
    name: str = ""
    about: str = ""
    """Where the numbers come from."""
    seed: int = 1
    keep: Literal["best", "last"] = "best"
    evaluate_every: int = 0
    """Steps between two looks at the held-out frames; 0: ten looks in all."""
    checkpoint_every: int = 100
    stride: int = 1
    """The loss sees every n-th row and column of the logits, at a phase drawn per step."""
    dropout: float = 1.0
    """Factor on the dropout rates of the architecture; short runs want less."""
    compile: bool = False
    """Compile the step with torch.compile; worth it for ENet on CPUs."""
    structure: dict[str, Any] = field(default_factory=dict)
    data: Data = Data()
    augment: Augment = Augment()
    loss: Loss = Loss()
    distillation: Distillation = Distillation()
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    stage: tuple[Stage, ...] = (Stage(),)

    def document(self) -> dict[str, Any]:
        """The recipe as JSON types, defaults included."""
        return json.loads(json.dumps({"schema": SCHEMA, **asdict(self)}))  # type: ignore[no-any-return]

    def digest(self) -> str:
        """sha256 over what decides the result; name and description do not."""
        text = json.dumps(replace(self, name="", about="").document(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def check(self) -> None:
        """Raise UsageError where numbers do not make sense."""
        from edgeseg.training.losses import LossSpec

        LossSpec.parse(self.loss.name)
        crops = [s.crop for s in self.stage if s.crop]
        sizes = [s.size for s in self.data.source]
        for text in (self.data.crop, self.data.validation_size, *crops, *sizes):
            parse_hxw(text)
        shares = [s.share for s in self.data.source]
        problems = (
            (self.network not in NETWORKS, f"network is none of {', '.join(NETWORKS)}"),
            (not shares or min(shares) < 0 or sum(shares) <= 0, "shares of the sources"),
            (
                bool(shares) and min(shares) * CYCLE < sum(shares) * (1 - 1e-9),
                f"a share below a {CYCLE}th of all, whose frames would never be drawn",
            ),
            (self.data.batch < 1 or self.data.accumulate < 1, "batch and accumulate start at 1"),
            (not self.stage, "a recipe needs a stage"),
            (self.stride not in (1, 2, 4), "stride is 1, 2 or 4"),
            (self.checkpoint_every < 1, "checkpoint_every starts at 1"),
            (not 0 <= self.schedule.warmup < 1, "warmup is a share from 0 to below 1"),
            (not self.optimizer.lr > 0, "lr is above 0"),
            (not self.distillation.temperature > 0, "a distillation temperature is above 0"),
            (not 0 <= self.distillation.soft_share <= 1, "soft_share is from 0 to 1"),
            (any(s.steps < 0 or s.epochs < 0 for s in self.stage), "a stage cannot be negative"),
            (
                any(not s.steps and not s.epochs for s in self.stage),
                "a stage needs steps or epochs",
            ),
            (any(not _rising(s.scale) for s in self.data.source), "scale is two rising numbers"),
            (any(min(s.stretch) <= 0 for s in self.data.source), "a stretch is above 0"),
            (any(s.hold_out < 0 or s.erosion < 0 for s in self.data.source), "counts below 0"),
            (
                min(self.seed, self.evaluate_every, self.data.validation_frames) < 0,
                "seed, evaluate_every and validation_frames start at 0",
            ),
            (any(x <= 0 for s in self.data.source for x in s.scales), "scales are above 0"),
            (any(s.scale <= 0 or s.lr < 0 for s in self.stage), "scale or lr of a stage"),
            (not 0 <= self.dropout <= 3, "dropout is a factor from 0 to 3"),
            (min(asdict(self.augment).values()) < 0, "an augmentation is below 0"),
            (
                min(self.loss.void_weight, self.loss.auxiliary) < 0,
                "a weight of the loss is below 0",
            ),
            (not all(0 <= b < 1 for b in self.optimizer.betas), "betas are from 0 to below 1"),
            (min(_numbers(self.optimizer)) < 0, "a number of the optimizer is below 0"),
        )
        for wrong, what in problems:
            if wrong:
                raise UsageError(f"the recipe '{self.name or self.network}' does not fit: {what}")


def parse_hxw(text: str) -> tuple[int, int]:
    """Height and width of ``HxW``; UsageError otherwise."""
    height, _, width = text.partition("x")
    if height.isdigit() and width.isdigit() and int(height) and int(width):
        return int(height), int(width)
    raise UsageError(f"size '{text}' in the recipe is not HxW, such as 256x512")


def _numbers(spec: Optimizer) -> tuple[float, ...]:
    return spec.weight_decay, spec.momentum, spec.eps, spec.clip


def _rising(pair: tuple[float, float]) -> bool:
    return 0 < pair[0] <= pair[1]


def load_recipe(path: Path, network: str | None = None) -> Recipe:
    """A recipe from a TOML file, or the shipped one of that name.

    Args:
        path: file; where there is none, the name of a shipped recipe such as ``erfnet-edgeseg``.
        network: what the command line asked for; must agree.

    Raises:
        InputError: there is no such file.
        UsageError: no TOML, an unknown key, a wrong type or value, another network.
    """
    if not path.is_file():
        shipped = shipped_recipes()
        if str(path) not in shipped:
            raise InputError(
                f"recipe '{path}' is neither a file nor one of the shipped ones "
                f"({', '.join(sorted(shipped))})"
            )
        path = shipped[str(path)]
    if path.stat().st_size > _MAX_BYTES:
        raise UsageError(f"recipe '{path}' is larger than 1 MiB; give a recipe")
    try:
        values = _toml(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UsageError(f"recipe '{path}' is not valid TOML ({error}); mend it") from None
    schema = values.pop("schema", None)
    if schema != SCHEMA:
        raise UsageError(f"recipe '{path}' is of schema {schema!r}, and {SCHEMA!r} is read here")
    if network is not None:
        values.setdefault("network", network)
    if "network" not in values:
        raise UsageError(f"recipe '{path}' names no network; add network = \"erfnet\" or another")
    try:
        recipe: Recipe = _build(Recipe, {"name": path.stem, **values}, "")
        recipe.check()
    except UsageError as error:
        raise UsageError(f"recipe '{path}': {error}") from None
    if network is not None and recipe.network != network:
        raise UsageError(
            f"recipe '{path}' is for {recipe.network}, and {network} was asked for; give another"
        )
    return recipe


def default_recipe(network: str) -> Recipe:
    """What ``edgeseg train NETWORK`` does without ``--recipe``: a short run with augmentation."""
    return Recipe(
        network=network,
        name=f"{network}-default",
        stride=2,
        data=Data(source=(Source(scale=(0.75, 2.0)),)),
        augment=Augment(colour=0.5, noise=0.2, jpeg=0.2),
        optimizer=Optimizer(lr=2e-3, clip=5.0),
        schedule=Schedule(warmup=0.03),
        loss=Loss(class_weights="sqrt", auxiliary=0.5),
        stage=(Stage(epochs=10.0),),
    )


def void_recipe(network: str) -> Recipe:
    """What ``edgeseg finetune-void NETWORK`` does without ``--recipe``.

    Only the last layer learns: 30 epochs of Adam at 5e-5, weight decay 1e-4, void weighing 1, the
    rate falling as (1 - (t - 1) / T)^0.9 over the epochs.
    """
    return Recipe(
        network=network,
        name=f"{network}-void",
        data=Data(crop="512x1024", source=(Source(void="all"),)),
        optimizer=Optimizer(name="adam", lr=5e-5),
        schedule=Schedule(per="epoch"),
        stage=(Stage(part="last", epochs=30.0),),
    )


def with_fitting_loss(recipe: Recipe, isomax: bool) -> Recipe:
    """A recipe whose loss nobody chose, with the one that the network's outputs ask for.

    Args:
        recipe: with a loss on plain logits.
        isomax: whether the outputs are IsoMax+ distances.
    """
    if not isomax:
        return recipe
    return replace(
        recipe,
        loss=replace(recipe.loss, name="isomax"),
        structure={**recipe.structure, "isomax": True},
    )


def shipped_recipes() -> dict[str, Path]:
    """Names of the recipes that come with the package, and where they are."""
    package = Path(str(resources.files("edgeseg")))
    for folder in (package / "recipes", package.parent / "export" / "recipes"):
        if folder.is_dir():
            return {path.stem: path for path in sorted(folder.glob("*.toml"))}
    return {}


def _toml(text: str) -> dict[str, Any]:
    try:
        import tomllib
    except ImportError:  # Python 3.10
        raise UsageError("reading recipes needs Python 3.11 or later") from None
    return tomllib.loads(text)


def _build(kind: type[T], values: Mapping[str, Any], where: str) -> T:
    """An instance of a dataclass from TOML values, every key and type checked."""
    hints = get_type_hints(kind)
    known = {f.name for f in fields(kind)}  # type: ignore[arg-type]
    for key in values:
        if key not in known:
            raise UsageError(f"there is no '{where}{key}'; known here: {', '.join(sorted(known))}")
    return kind(**{k: _value(hints[k], v, f"{where}{k}") for k, v in values.items()})


def _value(hint: Any, value: Any, where: str) -> Any:
    origin = get_origin(hint)
    if is_dataclass(hint):
        if isinstance(value, Mapping):
            return _build(hint, value, f"{where}.")  # type: ignore[arg-type]
    elif origin is Literal:
        if value in get_args(hint):
            return value
        raise UsageError(f"'{where}' is {value!r}; choose one of {', '.join(get_args(hint))}")
    elif origin in (Union, UnionType):
        return _value(get_args(hint)[0], value, where)
    elif origin is tuple:
        inner = get_args(hint)
        if isinstance(value, list) and (inner[-1] is Ellipsis or len(inner) == len(value)):
            return tuple(_value(inner[0], v, where) for v in value)
    elif origin is dict:
        if isinstance(value, Mapping):
            try:
                return json.loads(json.dumps(value))
            except TypeError:  # a date
                pass
    elif hint is float:
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            return float(value)
    elif type(value) is hint:
        return value
    raise UsageError(f"'{where}' is {value!r}, which is not of the right type")
