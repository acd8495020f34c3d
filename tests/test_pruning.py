"""Removing channels: equal to zeroing them, dead ones without a change."""

import copy

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="pruning needs torch")
pytest.importorskip("onnx", reason="exporting needs onnx")

from edgeseg.compression.calibration import observe  # noqa: E402
from edgeseg.compression.dead_filters import find_dead  # noqa: E402
from edgeseg.compression.pruning import Request, prune  # noqa: E402
from edgeseg.compression.quantize_onnx import quantize_body  # noqa: E402
from edgeseg.compression.ranking import Planner  # noqa: E402
from edgeseg.compression.surgery import remove_classes  # noqa: E402
from edgeseg.compression.topology import couple  # noqa: E402
from edgeseg.export.body import export_body  # noqa: E402
from edgeseg.networks import NETWORKS, build  # noqa: E402
from edgeseg.networks.checkpoints import load_network, save_network  # noqa: E402
from edgeseg.networks.counts import count  # noqa: E402
from edgeseg.networks.enet import PADDED_POOL_VARIANT  # noqa: E402
from tests.exported import HEIGHT, WIDTH, frames, network, run, torch_logits  # noqa: E402
from tests.prunable import ANY_WIDTH, amount, copied, outputs  # noqa: E402

PADDED = tuple(sorted(PADDED_POOL_VARIANT.items()))
VARIANTS = [
    *((name, ()) for name in NETWORKS),
    ("enet", PADDED),
    ("bisenet", (("fusion_two_convs", True),)),
    ("bisenet", (("auxiliary", False),)),
    ("midenet", (("published_order", True), ("isomax", True))),
    ("erfnet", (("auxiliary", False), ("mean", (0.3, 0.3, 0.3)), ("std", (0.2, 0.2, 0.2)))),
]
LAYERS = (torch.nn.Conv2d, torch.nn.ConvTranspose2d)


def ident(value):
    if isinstance(value, str):
        return value
    return {PADDED: "padded"}.get(value) or "+".join(k for k, _ in value) or "published"


def silenced(module, coupling, keep):
    """A copy whose channels that are not kept are zero: filters, biases and BatchNorms."""
    module = copy.deepcopy(module)
    layers = dict(module.named_modules())
    with torch.no_grad():
        for step in coupling.steps:
            if step.kind in ("conv", "norm"):
                layer = layers[step.module]
                gone = torch.from_numpy(~keep[coupling.wires[step.output]])
                weight = layer.weight
                if isinstance(layer, torch.nn.ConvTranspose2d):
                    weight = weight.transpose(0, 1)
                weight[gone] = 0.0
                if layer.bias is not None:
                    layer.bias[gone] = 0.0
                if step.kind == "norm":
                    layer.running_mean[gone] = 0.0
    return module


def parameters(module):
    return sum(p.numel() for p in module.parameters())


# --- coupling


@pytest.mark.parametrize(("name", "fields"), VARIANTS, ids=ident)
def test_every_layer_with_weights_has_its_step(name, fields):
    module = network(name, **dict(fields))
    steps = [s.module for s in couple(module).steps if s.module]
    kinds = (*LAYERS, torch.nn.BatchNorm2d, torch.nn.PReLU)
    assert sorted(steps) == sorted(k for k, m in module.named_modules() if isinstance(m, kinds))


def test_streams_are_coupled_as_the_networks_add_and_concatenate():
    groups = {g.name: g for g in couple(build("erfnet")).groups}
    # A downsampler hands on what it pools, so its channels run to the end of the encoder.
    assert len(groups["encoder.initial_block.conv"].classes) == 13
    assert groups["encoder.initial_block.conv"].filters == 1 + 5 + 8
    assert len(groups["encoder.layers.0.conv"].classes) == 64 - 16
    assert groups["decoder.layers.3.conv"].writers == (
        "decoder.layers.3.conv", "decoder.layers.4.conv1x3_2", "decoder.layers.5.conv1x3_2",
    )  # fmt: skip
    # ENet unpools by the encoder's choices, so its decoder has the encoder's channels.
    stream = {g.name: g for g in couple(build("enet")).groups}["down1.conv3"]
    assert {"up4.conv3", "up4.skip_conv", "stage4.1.conv3", "stage3.7.conv3"} <= set(stream.writers)
    bisenet = {g.name: g for g in couple(build("bisenet")).groups}
    assert set(bisenet["cp.conv_head32.conv"].writers) == {
        "cp.conv_head32.conv", "cp.arm16.conv.conv", "cp.arm16.conv_atten",
    }  # fmt: skip
    assert {n for n, g in bisenet.items() if g.training_only} == {
        "conv_out16.conv.conv", "conv_out32.conv.conv",
    }  # fmt: skip


# --- removing is zeroing


@pytest.mark.parametrize(("name", "fields"), VARIANTS, ids=ident)
@pytest.mark.parametrize("seed", [0, 1])
def test_removing_channels_is_zeroing_them(name, fields, seed):
    module = copied(name, fields)
    planner = Planner(module, ANY_WIDTH)
    rng = np.random.default_rng(seed)
    keep = planner.coupling.fixed.copy()
    for group in planner.groups:  # any choice, not only that of the smallest norms
        number = max(1, round(len(group.classes) * rng.uniform(0.3, 0.9)))
        keep[rng.choice(group.classes, number, replace=False)] = True
    small = remove_classes(module, planner.coupling, keep, planner.dead)
    zero = silenced(module, planner.coupling, keep)
    assert parameters(small) < 0.7 * parameters(module)
    for ours, theirs, before in zip(outputs(small), outputs(zero), outputs(module), strict=True):
        assert (theirs - before).abs().max() > 1e-3  # the channels did matter
        torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize(("name", "fields"), VARIANTS, ids=ident)
def test_the_original_stays_as_it_was(name, fields):
    module = network(name, **dict(fields))
    before = {k: v.clone() for k, v in module.state_dict().items()}
    generator = torch.get_rng_state()
    prune(module, amount(0.5))
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())


@pytest.mark.parametrize(("name", "fields"), VARIANTS, ids=ident)
def test_a_pruned_network_is_saved_loaded_and_pruned_again(name, fields, tmp_path):
    module = network(name, **dict(fields))
    once = prune(module, amount(0.3, round_to=1)).network
    save_network(once, tmp_path / "once.safetensors", {})
    loaded = load_network(name, tmp_path / "once.safetensors")
    assert loaded.structure == once.structure
    assert all(map(torch.equal, outputs(loaded), outputs(once)))
    save_network(loaded, tmp_path / "again.safetensors", {"weights_name": "once"})
    save_network(once, tmp_path / "same.safetensors", {"weights_name": "once", "license": ""})
    assert (tmp_path / "again.safetensors").read_bytes() == (
        tmp_path / "same.safetensors"
    ).read_bytes()
    twice = prune(loaded, amount(0.3, round_to=1)).network
    sizes = [count(m, HEIGHT, WIDTH).params for m in (module, once, twice)]
    assert sizes[1] < 0.7 * sizes[0]
    assert sizes[2] < 0.75 * sizes[1]
    assert all(torch.isfinite(o).all() for o in outputs(twice))


@pytest.mark.parametrize(("name", "fields"), [*VARIANTS[:5]], ids=ident)
def test_a_pruned_network_is_exported_and_quantized(name, fields):
    module = prune(network(name, **dict(fields)), amount(0.4, round_to=1)).network
    body, (frame,) = export_body(module, HEIGHT, WIDTH), frames(1)
    head = module.head_spec()
    rows, columns = HEIGHT // head.factor, WIDTH // head.factor
    theirs = torch_logits(module, frame)

    def logits(model):
        features = run(model, [frame])[0].reshape(rows, columns, -1)
        return head.logits(features.transpose(2, 0, 1))

    # ENet's pooling turns rounding into other places where two values all but tie.
    error = np.abs(logits(body) - theirs)
    assert np.quantile(error, 0.99 if name == "enet" else 1) < 1e-3 * max(1, theirs.std())
    quantized = logits(quantize_body(body, observe(body, frames(2))).model)
    assert np.corrcoef(quantized.ravel(), theirs.ravel())[0, 1] > 0.9


# --- dead filters


def planted(name, fields, seed=0):
    """A network with filters of zeros in a third of its inner channels, and unread ones."""
    module = copied(name, fields)
    coupling = couple(module)
    layers = dict(module.named_modules())
    rng = np.random.default_rng(seed)
    for group in coupling.groups:
        chosen = rng.random(len(group.classes)) < 0.3
        unread = rng.random() < 0.5
        for step in coupling.convolutions:
            layer = layers[step.module]
            out, read = coupling.wires[step.output], coupling.wires[step.inputs[0]]
            weight = layer.weight.detach()
            if isinstance(layer, torch.nn.ConvTranspose2d):
                weight = weight.transpose(0, 1)
            if unread:
                weight[:, torch.from_numpy(np.isin(read, group.classes[chosen]))] = 0.0
            else:
                weight[torch.from_numpy(np.isin(out, group.classes[chosen]))] = 0.0
    return module


@pytest.mark.parametrize(("name", "fields"), VARIANTS, ids=ident)
def test_dead_channels_go_without_a_change(name, fields):
    module = planted(name, fields)
    coupling = couple(module)
    dead = find_dead(module, coupling)
    assert dead.classes.sum() > 0.03 * coupling.num_classes
    assert dead.zero == dead.zero_removable + dead.zero_border + dead.zero_shared
    small = remove_classes(module, coupling, ~dead.classes, dead)
    assert parameters(small) < parameters(module)
    for ours, theirs in zip(outputs(small), outputs(module), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=1e-9)


def constant(layer, channel, value):
    """Let a convolution give the same number at every pixel of a channel."""
    with torch.no_grad():
        layer.weight[channel] = 0.0
        layer.bias[channel] = value


def test_a_constant_goes_only_where_no_padding_meets_it():
    module = copied("erfnet")
    block = module.encoder.layers[1]
    constant(block.conv3x1_1, 3, -1.0)  # zero behind the ReLU
    constant(block.conv3x1_1, 5, 1.0)  # read by a 1x3 convolution that pads
    constant(block.conv3x1_2, 7, 1.0)  # the same, but only its middle tap has weights
    with torch.no_grad():
        block.conv1x3_2.weight[:, 7, :, [0, 2]] = 0.0
    coupling = couple(module)
    dead = find_dead(module, coupling)
    groups = {g.name: g for g in coupling.groups}
    found = {
        name: np.flatnonzero(dead.classes[groups[f"encoder.layers.1.{name}"].classes]).tolist()
        for name in ("conv3x1_1", "conv3x1_2")
    }
    assert found == {"conv3x1_1": [3], "conv3x1_2": [7]}
    assert (dead.zero, dead.zero_removable, dead.zero_border) == (3, 2, 1)
    # Why: without channel 5 the inside is right, and the border is not.
    keep = np.ones(coupling.num_classes, bool)
    keep[groups["encoder.layers.1.conv3x1_1"].classes[5]] = False
    small = remove_classes(module, coupling, keep, dead)
    x = torch.rand(1, 64, 12, 16, dtype=torch.float64)
    with torch.no_grad():
        first = [
            m.encoder.layers[1].conv1x3_1(torch.relu(m.encoder.layers[1].conv3x1_1(x)))
            for m in (module, small)
        ]
    difference = (first[0] - first[1]).abs().amax((0, 1, 2))
    assert difference[1:-1].max() < 1e-9
    assert min(difference[0], difference[-1]) > 1e-4


def test_a_constant_without_a_bias_behind_moves_into_the_batchnorm():
    module = copied("midenet")
    block = module.bottleneck1[1]
    with torch.no_grad():
        block.conv2.weight[2] = 0.0
        block.bn2.weight[2] = 1.0
        block.bn2.bias[2] = 3.0 + block.bn2.running_mean[2] / block.bn2.running_var[2].sqrt()
    coupling = couple(module)
    dead = find_dead(module, coupling)
    assert dead.removable == 1  # conv3 is 1x1, so nothing pads
    small = remove_classes(module, coupling, ~dead.classes, dead)
    assert not torch.equal(small.bottleneck1[1].bn3.running_mean, block.bn3.running_mean)
    torch.testing.assert_close(outputs(small)[0], outputs(module)[0], atol=1e-9, rtol=1e-9)


def test_a_layer_that_is_all_dead_keeps_a_channel():
    module = copied("erfnet")
    with torch.no_grad():
        module.encoder.layers[2].conv1x3_2.weight.zero_()
    pruned = prune(module.float(), amount(0.0, round_to=1))
    assert pruned.network.structure.stage1_inner[1] == (1, 1, 1)
    torch.testing.assert_close(outputs(pruned.network)[0], outputs(module)[0], atol=1e-4, rtol=1e-4)


def test_an_amount_of_zero_removes_dead_filters_alone():
    module = planted("erfnet", ()).float()
    pruned = prune(module, amount(0.0))
    assert 0 < pruned.dead["removed"] < pruned.dead["removable"]  # some fill up widths
    assert pruned.dead["max_abs_difference"] < 1e-4
    for ours, theirs in zip(outputs(pruned.network), outputs(module), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    assert all(g.after >= g.before - g.dead for g in pruned.groups)


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "weights", "zero", "removable"),
    [
        ("erfnet", "erfnet_pretrained20", 1199, 1128),
        ("erfnet", "erfnet_void20", 1017, 961),
        ("enet", "enet_void20", 0, 0),
        ("midenet", "midenet_void20", 0, 0),
    ],
)
def test_dead_filters_of_published_weights(shared_data, name, weights, zero, removable):
    module = load_network(name, shared_data / "weights" / f"{weights}.pth")
    pruned = prune(module, Request(amount=0.0, rules=ANY_WIDTH, size=(HEIGHT, WIDTH)))
    assert (pruned.dead["zero"], pruned.dead["zero_removable"]) == (zero, removable)
    assert pruned.dead["zero_border"] == 0
    assert pruned.dead["max_abs_difference"] < 3e-5
    x = torch.rand(1, 3, 64, 128, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        torch.testing.assert_close(pruned.network(x), module(x), atol=3e-5, rtol=0)
    if zero:
        assert count(pruned.network, 64, 128).params < 0.7 * count(module, 64, 128).params
