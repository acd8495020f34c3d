"""The shipped weights: there, documented, ours."""

import json
import re
from pathlib import Path

import pytest
import torch

from edgeseg.networks import NETWORKS
from edgeseg.networks.checkpoints import load_network, read_weights
from edgeseg.networks.zoo import shipped_calibration, shipped_metadata, shipped_weights
from edgeseg.training.recipe import shipped_recipes
from tests.conftest import ROOT

SHIPPED = [name for name in NETWORKS if shipped_weights(name) is not None]
PUBLISHED = {
    "erfnet": ("erfnet_void20", "erfnet_pretrained20"),
    "enet": ("enet_void20",),
    "midenet": ("midenet_void20",),
}


def path(name: str) -> Path:
    found = shipped_weights(name)
    assert found is not None
    return found


def test_all_together_are_below_40_megabytes() -> None:
    assert sum(path(name).stat().st_size for name in SHIPPED) < 40e6


@pytest.mark.parametrize("name", SHIPPED)
def test_convolutions_are_float16_and_everything_loads(name: str) -> None:
    weights = read_weights(path(name))
    for key, tensor in weights.tensors.items():
        assert tensor.dtype == (torch.float16 if tensor.ndim > 1 else torch.float32), key
    module = load_network(name, path(name))
    assert module.structure.num_outputs == 20
    x = torch.rand(1, 3, 64, 128)
    assert bool(torch.isfinite(module(x)).all())


@pytest.mark.parametrize("name", SHIPPED)
def test_terms_and_recipe_travel_with_the_weights(name: str) -> None:
    metadata = shipped_metadata(name)
    assert metadata["weights_name"] == f"edgeseg-{name}"
    assert "non-commercial" in metadata["license"]
    recipe = json.loads(metadata["recipe"])
    assert recipe["network"] == name
    # No source but train splits and the generator.
    assert {s["split"] for s in recipe["data"]["source"]} == {"train"}
    assert f"{name}-edgeseg" in shipped_recipes()


@pytest.mark.parametrize("name", SHIPPED)
def test_the_ranges_belong_to_the_weights(name: str) -> None:
    found = shipped_calibration(name)
    assert found is not None
    provenance = json.loads(found.read_text(encoding="utf-8"))["provenance"]
    assert provenance["weights_name"] == shipped_metadata(name)["weights_name"]


@pytest.mark.parametrize("name", SHIPPED)
def test_a_model_card_says_what_a_user_must_know(name: str) -> None:
    text = (ROOT / "edgeseg" / "weights" / f"{name}.md").read_text(encoding="utf-8")
    for word in ("Terms", "## Data", "## Recipe", "edgeseg train", "hours", "mIoU"):
        assert word in text, word
    assert not re.search(r"\bTODO\b|Not measured yet", text)


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "checkpoint"), [(n, c) for n in SHIPPED for c in PUBLISHED.get(n, ())]
)
def test_no_published_weights_were_the_start(name: str, checkpoint: str, shared_data: Path) -> None:
    """Weights that went a way of their own point elsewhere; those of a fine-tuned copy do not."""
    ours = load_network(name, path(name)).state_dict()
    theirs = load_network(name, shared_data / "weights" / f"{checkpoint}.pth").state_dict()
    convolutions = [k for k, v in ours.items() if v.ndim == 4 and v.shape[2:] != (1, 1)]
    a = torch.cat([ours[k].flatten() for k in convolutions])
    b = torch.cat([theirs[k].flatten() for k in convolutions])
    assert abs(torch.cosine_similarity(a, b, dim=0).item()) < 0.1
    assert (a - b).norm() > 0.9 * b.norm()
