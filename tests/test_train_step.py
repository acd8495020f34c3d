"""One step: what it trains and what it leaves alone, on which pixels, and what a loss is over."""

import math
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("cv2", reason="training needs OpenCV")
torch = pytest.importorskip("torch", reason="training needs torch")

from edgeseg.errors import UsageError  # noqa: E402
from edgeseg.networks import build  # noqa: E402
from edgeseg.runtime.machine import has_native_bf16  # noqa: E402
from edgeseg.training.initial import fresh_network  # noqa: E402
from edgeseg.training.recipe import (  # noqa: E402
    Distillation,
    Loss,
    Optimizer,
    Stage,
)
from edgeseg.training.sampling import Batch  # noqa: E402
from edgeseg.training.step import DivergedError, Stepper, as_input, make_optimizer  # noqa: E402
from edgeseg.training.world import World  # noqa: E402
from tests.runs import COUNTER, differing, final, run, tiny  # noqa: E402

ALONE = World(0, 1, torch.device("cpu"))
FROZEN = Stage(steps=8, freeze_batchnorm=True)


pytestmark = pytest.mark.usefixtures("one_thread")


def batch(seed=0, count=2, valid=1.0, size=(32, 64)):
    """Noise with random labels; a share of ``1 - valid`` is ignored."""
    rng = np.random.default_rng(seed)
    frames = rng.integers(0, 256, (count, *size, 3)).astype(np.uint8)
    labels = rng.integers(0, 20, (count, *size)).astype(np.uint8)
    labels[rng.random(labels.shape) >= valid] = 255
    return Batch(frames, labels, tuple(f"{seed}-{i}" for i in range(count)))


def joined(*batches):
    return Batch(
        np.concatenate([b.frames for b in batches]),
        np.concatenate([b.labels for b in batches]),
        sum((b.names for b in batches), ()),
    )


def stepper(recipe, net, stage=None, weights=None, **options):
    return Stepper(recipe, stage or recipe.stage[0], net, ALONE, weights, **options)


def without_dropout(net):
    for module in net.modules():
        if isinstance(module, torch.nn.Dropout2d):
            module.p = 0.0
    return net


def state(net):
    return {k: v.clone() for k, v in net.state_dict().items()}


def changed_by(recipe, net, **options):
    before = state(net)
    stepper(recipe, net, **options).run(0, [batch()], 1e-3)
    return differing(before, state(net))


# --- what is trained


@pytest.mark.parametrize(
    ("network", "structure", "expected"),
    [
        ("midenet", {}, {"classifier.weight", "classifier.bias"}),
        ("enet", {}, {"fullconv.weight"}),
        ("erfnet", {}, {"decoder.output_conv.weight", "decoder.output_conv.bias"}),
        (
            "midenet",
            {"isomax": True},
            {
                "classifier.weight",
                "classifier.bias",
                "isomax.prototypes",
                "isomax.distance_scale",
            },
        ),
    ],
    ids=["midenet", "enet", "erfnet", "isomax"],
)
def test_the_last_layer_alone(network, structure, expected):
    loss = Loss("isomax" if structure else "ce", auxiliary=0.5)
    recipe = tiny(network, structure=structure, loss=loss, stage=(Stage("last", steps=8),))
    assert changed_by(recipe, fresh_network(recipe)) == expected


def test_nothing_is_dropped_where_the_last_layer_learns_alone():
    recipe = tiny("erfnet", stage=(Stage("last", steps=8),))
    trained = stepper(recipe, fresh_network(recipe))
    losses = {trained.run(step, [batch()], 0.0)["loss"] for step in range(3)}
    assert len(losses) == 1


def test_the_encoder_alone():
    recipe = tiny("erfnet", stage=(Stage("encoder", steps=8),))
    changed = changed_by(recipe, fresh_network(recipe))
    assert all(name.startswith("encoder.") for name in changed)
    assert {"encoder.output_conv.weight", "encoder.initial_block.bn.running_mean"} <= changed


@pytest.mark.parametrize(
    ("network", "structure"), [("midenet", {}), ("enet", {}), ("erfnet", {"auxiliary": False})]
)
def test_an_encoder_without_a_classifier_is_not_trained_alone(tmp_path, network, structure):
    recipe = tiny(network, structure=structure, stage=(Stage("encoder", steps=8),))
    with pytest.raises(UsageError, match=r"has no classifier on its encoder; train all of it"):
        run(recipe, tmp_path / "o")
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss": Loss("isomax")}, "'isomax' does not fit a network that has no IsoMax"),
        ({"structure": {"isomax": True}}, "'ce' does not fit a network that has IsoMax"),
        ({"data": {"crop": "60x128"}}, "size 60x128 does not fit midenet"),
        ({"stage": (Stage(steps=3), Stage(steps=3, crop="64x100"))}, "size 64x100 does not fit"),
        ({"source": {"hold_out": 1}, "data": {"validation_size": "4x4"}}, "size 4x4 does not"),
        ({"data": {"crop": "64"}}, "size '64' in the recipe is not HxW"),
        ({"seed": -1}, "seed, evaluate_every and validation_frames start at 0"),
        ({"source": {"scales": (0.0,)}}, "scales are above 0"),
        ({"stage": (Stage(),)}, "a stage needs steps or epochs"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused_before_anything_is_written(tmp_path, changes, message):
    with pytest.raises(UsageError, match=message):
        run(tiny(**changes), tmp_path / "o")
    assert not (tmp_path / "o").exists()


def test_frozen_batchnorms_keep_their_statistics():
    recipe = tiny("enet", stage=(FROZEN,))
    net = fresh_network(recipe)
    statistics = {k for k, _ in net.named_buffers()}
    changed = changed_by(recipe, net)
    assert changed.isdisjoint(statistics)
    assert changed == {k for k, _ in net.named_parameters()}
    thawed = changed_by(tiny("enet"), net)
    assert {k for k in statistics if not k.endswith(COUNTER)} <= thawed


@pytest.mark.parametrize("auxiliary", [0.0, 0.5])
def test_an_auxiliary_head_is_trained_where_it_has_a_weight(auxiliary):
    recipe = tiny("erfnet", loss=Loss(auxiliary=auxiliary))
    changed = changed_by(recipe, fresh_network(recipe))
    assert ("encoder.output_conv.weight" in changed) == bool(auxiliary)


def test_biases_and_batchnorms_decay_only_where_the_recipe_says_so():
    net = build("midenet")
    decayed, spared = make_optimizer(Optimizer(decay_norms=False), net, 0.1).param_groups
    assert all(p.ndim > 1 for p in decayed["params"])
    assert all(p.ndim == 1 for p in spared["params"])
    assert (decayed["weight_decay"], spared["weight_decay"]) == (1e-4, 0.0)
    assert len(decayed["params"]) + len(spared["params"]) == len(list(net.parameters()))


# --- on which pixels


@pytest.mark.parametrize("phase", [(0, 0), (0, 1), (1, 0), (1, 1)])
@pytest.mark.parametrize("network", ["enet", "erfnet", "midenet", "bisenet"])
def test_sparse_logits_are_those_of_the_full_grid(network, phase):
    torch.manual_seed(0)
    net = build(network).eval()
    x = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        sparse, _ = net.forward_train(x, 2, phase)
        full = net(x)
    assert sparse.shape == (1, 20, 32, 48)
    if network in ("enet", "erfnet"):
        torch.testing.assert_close(
            sparse, full[..., phase[0] :: 2, phase[1] :: 2], rtol=1e-5, atol=1e-5
        )
    else:  # the coarser grid of a bilinear head: means of what the full one gives around
        near = torch.nn.functional.avg_pool2d(full, 2)
        assert (sparse - near).abs().max() < 0.2 * full.std()


def test_a_sparse_loss_looks_at_every_pixel_in_turn():
    recipe = tiny("erfnet", stride=2, stage=(FROZEN,))
    trained = stepper(recipe, without_dropout(fresh_network(recipe)))
    phases = {trained._phase(step) for step in range(20)}
    assert phases == {(0, 0), (0, 1), (1, 0), (1, 1)}
    full = stepper(replace(recipe, stride=1), trained.net).run(0, [batch()], 0.0)["loss"]
    losses = {}
    for step in range(20):
        losses[trained._phase(step)] = trained.run(step, [batch()], 0.0)["loss"]
    assert np.mean(list(losses.values())) == pytest.approx(full, rel=1e-5)


def test_bytes_become_rgb_from_zero_to_one():
    frames = torch.zeros(1, 2, 2, 3, dtype=torch.uint8)
    frames[..., 2] = 255  # red is the last of BGR
    x = as_input(frames)
    assert x.shape == (1, 3, 2, 2)
    assert x[:, 0].eq(1).all()
    assert not x[:, 1:].any()


# --- what the loss is over


LOSSES = [Loss(), Loss("focal", auxiliary=0.4), Loss("logitnorm", void_weight=0.3)]


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.name)
@pytest.mark.parametrize("network", ["midenet", "erfnet"])
def test_two_micro_batches_give_the_gradient_of_one_batch(network, loss):
    """However unlike their numbers of labelled pixels are."""
    recipe = tiny(network, loss=loss, stage=(FROZEN,))
    weights = torch.linspace(0.2, 3.0, 20)
    parts = [batch(1, valid=1.0), batch(2, valid=0.03)]
    runs = []
    for batches in (parts, [joined(*parts)]):
        net = without_dropout(fresh_network(recipe))
        figures = stepper(recipe, net, weights=weights).run(0, batches, 1e-3)
        runs.append((figures, {k: p.grad for k, p in net.named_parameters()}))
    (split, ours), (whole, theirs) = runs
    assert split["loss"] == pytest.approx(whole["loss"], rel=1e-5)
    assert split["gradient_norm"] == pytest.approx(whole["gradient_norm"], rel=1e-4)
    for name, gradient in theirs.items():
        if gradient is None:
            assert ours[name] is None
        else:
            scale = max(1.0, gradient.abs().max().item())
            assert (ours[name] - gradient).abs().max() <= 1e-5 * scale, name


def test_accumulated_runs_end_where_runs_of_whole_batches_do(tmp_path):
    recipes = [
        tiny("erfnet", dropout=0.0, stage=(replace(FROZEN, steps=3),), data=data)
        for data in ({"accumulate": 2, "batch": 1}, {"batch": 2})
    ]
    for index, recipe in enumerate(recipes):
        run(replace(recipe, optimizer=Optimizer("sgd", lr=0.01)), tmp_path / str(index))
    parts, whole = final(tmp_path / "0"), final(tmp_path / "1")
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=1e-4, atol=1e-5)


def test_only_the_ratios_of_class_weights_matter():
    recipe = tiny(stage=(FROZEN,))
    losses = []
    for factor in (1.0, 7.0):
        trained = stepper(recipe, fresh_network(recipe), weights=factor * torch.arange(1.0, 21.0))
        losses.append(trained.run(0, [batch()], 0.0)["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_a_step_without_a_labelled_pixel_teaches_nothing():
    recipe = tiny(optimizer=Optimizer(weight_decay=0.0), stage=(FROZEN,))
    net = fresh_network(recipe)
    before = state(net)
    figures = stepper(recipe, net).run(0, [batch(valid=0.0)], 1e-3)
    assert (figures["loss"], figures["gradient_norm"]) == (0.0, 0.0)
    assert differing(before, state(net)) == set()


@pytest.mark.parametrize("stride", [1, 2])
def test_a_student_that_equals_its_teacher_has_nothing_to_learn_from_it(stride):
    stage = Stage("last", steps=8)
    recipe = tiny("erfnet", stride=stride, distillation=Distillation(2.0, 1.0), stage=(stage,))
    trained = stepper(recipe, fresh_network(recipe), teacher=fresh_network(recipe))
    figures = trained.run(0, [batch()], 1e-3)
    assert figures["loss"] == pytest.approx(0.0, abs=1e-5)
    other = stepper(recipe, fresh_network(recipe), teacher=fresh_network(replace(recipe, seed=9)))
    assert other.run(0, [batch()], 1e-3)["loss"] > 1e-3
    assert all(p.grad is None for p in other.teacher.parameters())


@pytest.mark.skipif(not has_native_bf16(), reason="this processor does not multiply bfloat16")
def test_bfloat16_changes_the_arithmetic_and_not_the_weights_type(tmp_path):
    for precision in ("float32", "bf16"):
        run(tiny("enet"), tmp_path / precision, precision=precision)
    full, half = (final(tmp_path / p) for p in ("float32", "bf16"))
    assert {v.dtype for v in half.values()} == {torch.float32}
    assert differing(full, half)
    assert all(torch.isfinite(v).all() for v in half.values())


# --- no finite number


def test_the_poisoned_micro_batch_is_named_and_the_weights_stay():
    recipe = tiny(data={"accumulate": 2}, stage=(FROZEN,))
    net = fresh_network(recipe)
    net.initial.register_forward_hook(
        lambda module, args, out: out * (math.inf if args[0].mean() > 0.9 else 1)
    )
    bright = batch(1)
    bright.frames[:] = 255
    before = state(net)
    with pytest.raises(DivergedError, match=r"step 7, micro-batch 1 \(frames '1-0', '1-1'\)"):
        stepper(recipe, net).run(7, [batch(0), bright], 1e-3)
    assert differing(before, state(net)) == set()


def test_a_gradient_that_is_not_finite_is_found_too():
    recipe = tiny(stage=(FROZEN,))
    net = fresh_network(recipe)
    net.classifier.weight.register_hook(lambda gradient: gradient * math.nan)
    before = state(net)
    with pytest.raises(DivergedError, match=r"norm of the gradient is nan at step 3"):
        stepper(recipe, net).run(3, [batch(0)], 1e-3)
    assert differing(before, state(net)) == set()
