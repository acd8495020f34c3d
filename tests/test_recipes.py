"""The shipped recipes say what the papers say, and a recipe that is wrong is refused."""

import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from edgeseg.errors import ArtefactError, InputError, UsageError
from edgeseg.networks.zoo import NETWORKS, counts
from edgeseg.training.recipe import (
    SCHEMA,
    Recipe,
    default_recipe,
    load_recipe,
    shipped_recipes,
    void_recipe,
)
from tests.conftest import ROOT

FOLDER = ROOT / "export" / "recipes"
SHIPPED = sorted(path.stem for path in FOLDER.glob("*.toml"))
MINIMAL = f'schema = "{SCHEMA}"\nnetwork = "erfnet"\n[[stage]]\nsteps = 1\n'

ERFNET_LOSS = {
    "network": "erfnet",
    "stage.0.part": "encoder",
    "stage.0.epochs": 50,
    "stage.1.part": "all",
    "stage.1.epochs": 50,
    "keep": "best",
}
FOCAL = {"loss.gamma": 2, "loss.alpha": 1, "loss.class_weights": "none"}
ISOMAX = {"loss.entropic_scale": 10, "structure.isomax": True}
LOGITNORM = {"loss.temperature": 0.04}
LAST_LAYER = {
    "stage.0.part": "last",
    "stage.0.epochs": 30,
    "loss.void_weight": 1,
    "optimizer.name": "adam",
    "optimizer.lr": 5e-5,
    "optimizer.weight_decay": 1e-4,
    "data.crop": "512x1024",
    "data.source.0.void": "all",
    "schedule.name": "poly",
    "schedule.power": 0.9,
    "schedule.per": "epoch",
}
# What the papers say of every row, literally.
STATED: dict[str, dict[str, Any]] = {
    "paper1-erfnet-void": {
        "network": "erfnet",
        "data.source.0.void": "all",
        "optimizer.lr": 5e-4 / 10,
        "optimizer.name": "adam",
        "optimizer.weight_decay": 1e-4,
    },
    "paper1-enet-void": {
        "network": "enet",
        "data.source.0.void": "all",
        "optimizer.lr": 5e-4 / 10,
        "optimizer.name": "adam",
        "optimizer.weight_decay": 2e-4,
    },
    "paper1-bisenet-void": {
        "network": "bisenet",
        "data.source.0.void": "all",
        "optimizer.name": "sgd",
        "data.batch": 16,
        "optimizer.momentum": 0.9,
        "optimizer.weight_decay": 1e-4,
        "schedule.name": "poly",
        "schedule.power": 0.9,
        "stage.0.epochs": 300,
        "data.crop": "512x1024",
        "augment.flip": True,
        "loss.name": "ce",
        "loss.class_weights": "none",
    },
    "paper1-erfnet-ce": {**ERFNET_LOSS, "loss.name": "ce", "loss.class_weights": "erfnet"},
    "paper1-erfnet-focal": {**ERFNET_LOSS, **FOCAL, "loss.name": "focal"},
    "paper1-erfnet-isomax": {**ERFNET_LOSS, **ISOMAX, "loss.name": "isomax"},
    "paper1-erfnet-logitnorm": {**ERFNET_LOSS, **LOGITNORM, "loss.name": "logitnorm"},
    "paper1-erfnet-isomax-focal": {**ERFNET_LOSS, **FOCAL, **ISOMAX, "loss.name": "focal+isomax"},
    "paper1-erfnet-logitnorm-focal": {
        **ERFNET_LOSS,
        **FOCAL,
        **LOGITNORM,
        "loss.name": "focal+logitnorm",
    },
    "paper2-erfnet-void": {**LAST_LAYER, "network": "erfnet"},
    "paper2-enet-void": {**LAST_LAYER, "network": "enet"},
    "paper2-bisenet-void": {**LAST_LAYER, "network": "bisenet"},
    "paper2-enet-scratch": {
        "network": "enet",
        "optimizer.lr": 0.04,
        "stage.0.epochs": 560,
        "data.crop": "1024x2048",
    },
    "paper2-enet-scratch-340": {
        "network": "enet",
        "optimizer.lr": 0.04,
        "stage.0.epochs": 340,
        "data.crop": "1024x2048",
    },
    "paper2-erfnet-pruned-finetune": {"network": "erfnet", "stage.0.epochs": 10},
    "paper2-midenet-distilled": {"network": "midenet", "distillation.soft_share": 1},
}
OWN = {f"{network}-{run}" for network in NETWORKS for run in ("edgeseg", "2")}


def look_up(recipe: Recipe, key: str) -> Any:
    value: Any = asdict(recipe)
    for part in key.split("."):
        value = value[int(part)] if part.isdigit() else value[part]
    return value


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "recipe.toml"
    path.write_text(text, encoding="utf-8")
    return path


def refused(path: Path, network: str | None = None) -> str:
    """The message, which is one sentence."""
    with pytest.raises((UsageError, InputError)) as caught:
        load_recipe(path, network)
    text = str(caught.value)
    assert "\n" not in text
    assert not text.endswith(".")
    return text


def test_every_shipped_recipe_is_known() -> None:
    assert set(shipped_recipes()) == set(SHIPPED) == {*STATED, *OWN}


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_recipe_loads_by_name_and_by_file(name: str) -> None:
    recipe = load_recipe(Path(name))
    assert recipe == load_recipe(FOLDER / f"{name}.toml", recipe.network)
    assert recipe.name == name
    assert recipe.about
    assert recipe.network in name


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_recipe_fits_its_network(name: str) -> None:
    recipe = load_recipe(Path(name))
    divisor = counts(recipe.network)["size_divisor"]
    sizes = [recipe.data.crop, *(stage.crop for stage in recipe.stage if stage.crop)]
    for side in (int(side) for size in sizes for side in size.split("x")):
        assert side % divisor == 0


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_recipe_can_be_built(name: str) -> None:
    torch = pytest.importorskip("torch", reason="training needs torch")
    from edgeseg.networks import build
    from edgeseg.training.losses import LossSpec
    from edgeseg.training.step import make_optimizer

    recipe = load_recipe(Path(name))
    with torch.device("meta"):
        net = build(recipe.network, recipe.structure)
    transform = LossSpec.parse(recipe.loss.name).transform
    assert net.structure.isomax == (transform == "isomax")
    assert make_optimizer(recipe.optimizer, net, recipe.optimizer.lr).param_groups


@pytest.mark.parametrize("name", STATED)
def test_recipe_says_what_the_paper_says(name: str) -> None:
    recipe = load_recipe(Path(name))
    found = {key: look_up(recipe, key) for key in STATED[name]}
    assert found == STATED[name]
    assert [s.folder for s in recipe.data.source] == ["."]
    assert [s.split for s in recipe.data.source] == ["train"]


def test_first_papers_fine_tuning_is_20_epochs() -> None:
    for name in ("paper1-erfnet-void", "paper1-enet-void"):
        assert sum(stage.epochs for stage in load_recipe(Path(name)).stage) == 20


def test_first_papers_bisenet_scales_are_of_half_size_photos() -> None:
    recipe = load_recipe(Path("paper1-bisenet-void"))
    (source,) = recipe.data.source
    assert [2 * scale for scale in source.scales] == [0.75, 1, 1.5, 1.75, 2]
    assert recipe.structure == {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


def test_second_papers_void_recipe_is_what_finetune_void_does_by_default() -> None:
    ours, theirs = void_recipe("erfnet"), load_recipe(Path("paper2-erfnet-void"))
    assert theirs.optimizer == ours.optimizer
    assert theirs.schedule == ours.schedule
    assert theirs.stage == ours.stage
    assert theirs.loss == ours.loss


def test_readme_lists_every_recipe_with_its_network() -> None:
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    listed = dict(re.findall(r"(?m)^\| `([a-z0-9-]+)` \| ([a-z]+) \|", text))
    assert listed == {name: load_recipe(Path(name)).network for name in SHIPPED}


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("make", [default_recipe, void_recipe])
def test_default_recipes_pass_their_own_check(network: str, make: Any) -> None:
    recipe = make(network)
    recipe.check()
    assert recipe.network == network


def test_network_of_the_command_line_fills_a_gap(tmp_path: Path) -> None:
    path = written(tmp_path, f'schema = "{SCHEMA}"\n[[stage]]\nsteps = 1\n')
    assert load_recipe(path, "enet").network == "enet"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (MINIMAL.replace("/1", "/2"), "schema"),
        (MINIMAL.split("\n", 1)[1], "schema None"),
        ("network = \n", "not valid TOML"),
        ("learning = 1\n" + MINIMAL, "'learning'"),
        (MINIMAL + "speed = 3\n", "'stage.speed'"),
        (MINIMAL + "[data]\ncolour = 1\n", "'data.colour'"),
        (MINIMAL + '[data]\nbatch = "eight"\n', "'data.batch' is 'eight'"),
        (MINIMAL + "[data]\nbatch = 8.0\n", "'data.batch'"),
        (MINIMAL + "[data]\nbatch = true\n", "'data.batch'"),
        (MINIMAL + "[optimizer]\nlr = nan\n", "'optimizer.lr'"),
        (MINIMAL + "[optimizer]\nbetas = [0.9]\n", "'optimizer.betas'"),
        (MINIMAL + '[optimizer]\nname = "lion"\n', "choose one of adam, adamw, sgd"),
        (MINIMAL + "[[data.source]]\nscale = [2.0, 1.0]\n", "rising"),
        (MINIMAL + "[data.source]\nscale = [1.0, 2.0]\n", "'data.source'"),
        (MINIMAL + "[[stage]]\nsteps = 0\n", "steps or epochs"),
        (MINIMAL + "[optimizer]\nlr = 0\n", "lr is above 0"),
        ("stride = 3\n" + MINIMAL, "stride"),
        (MINIMAL.replace("erfnet", "segnet"), "network is none of"),
    ],
)
def test_wrong_recipe_is_refused_in_one_sentence(tmp_path: Path, text: str, said: str) -> None:
    assert said in refused(written(tmp_path, text))


def test_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_bytes(b"\xff\xfe\x00")
    assert "not valid TOML" in refused(path)


def test_file_that_is_much_too_large_is_refused(tmp_path: Path) -> None:
    assert "1 MiB" in refused(written(tmp_path, "#" * (1 << 20) + "\n" + MINIMAL))


def test_recipe_of_another_network_is_refused(tmp_path: Path) -> None:
    assert "for erfnet" in refused(written(tmp_path, MINIMAL), "enet")
    assert "for midenet" in refused(Path("paper2-midenet-distilled"), "enet")


def test_missing_recipe_names_the_shipped_ones(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="paper1-erfnet-focal"):
        load_recipe(tmp_path / "none.toml")


def test_structure_of_another_network_is_refused() -> None:
    pytest.importorskip("torch", reason="training needs torch")
    from edgeseg.networks import build

    recipe = load_recipe(Path("paper1-bisenet-void"))
    with pytest.raises(ArtefactError, match="fusion"):
        build("erfnet", {**recipe.structure, "fusion": 256})


def test_digest_is_of_what_decides_the_result() -> None:
    recipe = load_recipe(Path("paper1-erfnet-ce"))
    assert replace(recipe, name="another", about="another").digest() == recipe.digest()
    faster = replace(recipe, optimizer=replace(recipe.optimizer, lr=6e-4))
    longer = replace(recipe, stage=(recipe.stage[0], replace(recipe.stage[1], epochs=51.0)))
    assert len({recipe.digest(), faster.digest(), longer.digest()}) == 3
