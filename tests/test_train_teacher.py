"""A step with a teacher: whose logits are scaled, and on which pixels it is followed."""

from dataclasses import replace

import pytest

pytest.importorskip("cv2", reason="training needs OpenCV")
torch = pytest.importorskip("torch", reason="training needs torch")

from torch.nn import functional as F  # noqa: E402

from edgeseg.networks import build  # noqa: E402
from edgeseg.training.initial import fresh_network  # noqa: E402
from edgeseg.training.recipe import Distillation, Loss, Stage  # noqa: E402
from edgeseg.training.step import as_input  # noqa: E402
from tests.runs import records, run, tiny  # noqa: E402
from tests.test_train_step import batch, stepper, without_dropout  # noqa: E402

ALL_SOFT = Distillation(soft_share=1.0, on_ignored=True)


pytestmark = pytest.mark.usefixtures("one_thread")


def isomax_network(recipe):
    """One whose distances differ between the outputs, as trained ones do."""
    net = fresh_network(recipe)
    with torch.no_grad():
        net.isomax.prototypes.copy_(torch.linspace(-1, 1, 20).view_as(net.isomax.prototypes))
    return net


@pytest.mark.parametrize("scale", [10.0, 4.0])
def test_an_isomax_student_that_equals_its_teacher_has_nothing_to_learn(scale):
    loss = Loss("isomax", entropic_scale=scale)
    stage = Stage("last", steps=8)
    recipe = tiny(structure={"isomax": True}, loss=loss, distillation=ALL_SOFT, stage=(stage,))
    trained = stepper(recipe, isomax_network(recipe), teacher=isomax_network(recipe))
    figures = trained.run(0, [batch()], 1e-3)
    assert figures["loss"] == pytest.approx(0.0, abs=1e-5)
    assert figures["gradient_norm"] < 1e-4


@pytest.mark.parametrize(("isomax", "expected"), [(True, 7.0), (False, 1.0)])
def test_the_teacher_is_scaled_by_what_it_is_and_not_by_what_the_student_is(isomax, expected):
    teacher = build("midenet", {"isomax": isomax})
    loss = Loss("isomax", entropic_scale=7.0)
    pupil = tiny(structure={"isomax": True}, loss=loss)
    for recipe in (pupil, tiny(loss=replace(loss, name="ce"))):
        trained = stepper(recipe, fresh_network(recipe), teacher=teacher)
        assert trained.distillation.teacher_scale == expected


# --- the encoder alone


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("teacher", ["erfnet", "enet", "midenet", "bisenet"])
def test_an_encoder_follows_its_teacher_where_its_labels_are(teacher, stride):
    """At the middle of every 8x8 pixels, or for a bilinear head at its own logits there."""
    stage = Stage("encoder", steps=8, freeze_batchnorm=True)
    recipe = tiny("erfnet", stride=stride, distillation=ALL_SOFT, stage=(stage,))
    net = without_dropout(fresh_network(recipe))
    torch.manual_seed(3)
    master = build(teacher).eval()
    frames = batch(size=(64, 128))
    x = as_input(torch.from_numpy(frames.frames))
    with torch.no_grad():
        own = net.eval().forward_encoder(x).log_softmax(1)
        # What a bilinear head stretches are logits at the middle of each cell.
        said = master(x)[..., 4::8, 4::8] if teacher in ("erfnet", "enet") else master.body(x)
        wanted = F.kl_div(own, said.log_softmax(1), reduction="none", log_target=True).sum(1)
    figures = stepper(recipe, net, teacher=master).run(0, [frames], 0.0)
    assert figures["loss"] == pytest.approx(float(wanted.mean()), rel=1e-3)
    assert figures["gradient_norm"] > 0


def test_a_recipe_of_two_stages_has_a_teacher_in_both(tmp_path):
    stages = (Stage("encoder", steps=10), Stage(steps=10))
    recipe = tiny("erfnet", stage=stages)
    taught = fresh_network(replace(recipe, seed=9))
    run(recipe, tmp_path / "taught", teacher=taught)
    run(recipe, tmp_path / "alone")
    ours, alone = (records(tmp_path / name) for name in ("taught", "alone"))
    assert [r["step"] for r in ours] == [10, 20]
    assert all(a["loss"] != b["loss"] for a, b in zip(ours, alone, strict=True))
