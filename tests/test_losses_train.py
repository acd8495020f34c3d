"""Every combination of losses trains on drawn scenes."""

import itertools

import numpy as np
import pytest

pytest.importorskip("cv2", reason="training needs OpenCV")
torch = pytest.importorskip("torch", reason="training needs torch")

from edgeseg.training.initial import fresh_network  # noqa: E402
from edgeseg.training.recipe import Augment, Loss, Optimizer, Stage  # noqa: E402
from edgeseg.training.sampling import Batches, Mixture  # noqa: E402
from edgeseg.training.step import Stepper  # noqa: E402
from edgeseg.training.world import World  # noqa: E402
from tests.runs import tiny  # noqa: E402

STEPS = 200


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def batches():
    """The batches of 200 steps, cut out of eight scenes once for all losses."""
    recipe = tiny(source={"scale": (0.75, 1.5)}, augment=Augment(colour=0.3))
    stream = iter(Batches(Mixture(recipe, None), Stage(steps=STEPS), 0))
    return list(itertools.islice(stream, STEPS))


@pytest.mark.slow
@pytest.mark.parametrize("transform", ["plain", "isomax", "logitnorm"])
@pytest.mark.parametrize("base", ["ce", "focal", "ohem"])
def test_every_loss_trains(base, transform, batches):
    name = base if transform == "plain" else f"{base}+{transform}"
    recipe = tiny(
        loss=Loss(name),
        structure={"isomax": transform == "isomax"},
        optimizer=Optimizer(lr=3e-3, clip=5.0),
    )
    net = fresh_network(recipe)
    world = World(0, 1, torch.device("cpu"))
    stepper = Stepper(recipe, Stage(steps=STEPS), net, world, torch.linspace(0.5, 2.0, 20))
    losses = [stepper.run(step, [batch], 3e-3)["loss"] for step, batch in enumerate(batches)]
    assert np.isfinite(losses).all()
    assert all(torch.isfinite(p).all() for p in net.parameters())
    assert np.mean(losses[-20:]) < 0.8 * np.mean(losses[:20])
