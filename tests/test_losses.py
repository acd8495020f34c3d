"""What training minimises: values, gradients, ignored pixels, class weights."""

import itertools
import math

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs torch")

from edgeseg.errors import UsageError  # noqa: E402
from edgeseg.training.losses import (  # noqa: E402
    NORM_EPSILON,
    LossSpec,
    PixelLoss,
    enet_class_weights,
    erfnet_class_weights,
)

BASES = ("ce", "focal", "ohem")
TRANSFORMS = ("plain", "isomax", "logitnorm")
COMBINATIONS = list(itertools.product(BASES, TRANSFORMS))
OUTPUTS = 5
WEIGHTS = torch.tensor([0.5, 1.0, 2.0, 3.5, 0.25])


def spec_of(base, transform):
    # Away from the defaults; LogitNorm's 1 / T is small enough for differences to show.
    return LossSpec(
        base, transform, gamma=1.5, alpha=0.75, entropic_scale=3.0, temperature=0.4,
        ohem_threshold=0.4, ohem_min_kept=0.125,
    )  # fmt: skip


def batch(*, isomax=False, seed=0, ignored=0.2):
    """Logits float64 ``[2, 5, 4, 6]``, labels int64 ``[2, 4, 6]`` with some ignored."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(2, OUTPUTS, 4, 6, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, OUTPUTS, (2, 4, 6), generator=generator)
    labels[torch.rand(2, 4, 6, generator=generator) < ignored] = 255
    return -logits.abs() if isomax else logits, labels


def reference(spec, logits, labels, class_weights=None):
    """The sum of the loss, pixel by pixel as in the papers."""
    if class_weights is None:
        class_weights = np.ones(OUTPUTS)
    pixels = []
    for n, y, x in np.ndindex(*labels.shape):
        t = labels[n, y, x]
        if t == 255:
            continue
        f = logits[n, :, y, x]
        if spec.transform == "isomax":
            f = spec.entropic_scale * f
        elif spec.transform == "logitnorm":
            f = f / np.sqrt((f**2).sum() + NORM_EPSILON**2) / spec.temperature
        pixels.append((np.exp(f[t]) / np.exp(f).sum(), class_weights[t]))
    p, w = np.array(pixels).T
    if spec.base == "ce":
        return (-w * np.log(p)).sum()
    if spec.base == "focal":
        return (-spec.alpha * w * (1 - p) ** spec.gamma * np.log(p)).sum()
    order = np.argsort(p)
    kept = order[: max((p < spec.ohem_threshold).sum(), 1, int(spec.ohem_min_kept * len(p)))]
    return (-w[kept] * np.log(p[kept])).sum() / w[kept].sum() * w.sum()


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["unweighted", "weighted"])
@pytest.mark.parametrize(("base", "transform"), COMBINATIONS)
def test_value_is_that_of_the_papers(base, transform, weights):
    spec = spec_of(base, transform)
    logits, labels = batch(isomax=transform == "isomax")
    wanted = reference(
        spec, logits.numpy(), labels.numpy(), None if weights is None else weights.double().numpy()
    )
    loss = PixelLoss(spec, OUTPUTS, weights)
    got = loss(logits, labels)
    assert got.dtype == torch.float64
    assert float(got) == pytest.approx(wanted, rel=1e-12)
    single = loss(logits.float(), labels.to(torch.uint8))
    assert single.dtype == torch.float32
    assert float(single) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["unweighted", "weighted"])
@pytest.mark.parametrize(("base", "transform"), COMBINATIONS)
def test_gradient(base, transform, weights):
    logits, labels = batch(isomax=transform == "isomax", seed=1)
    loss = PixelLoss(spec_of(base, transform), OUTPUTS, weights)
    assert torch.autograd.gradcheck(lambda x: loss(x, labels), logits.requires_grad_())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("base", "transform"), COMBINATIONS)
def test_half_precision_is_computed_in_float32(base, transform, dtype):
    logits, labels = batch(isomax=transform == "isomax")
    logits = logits.to(dtype).requires_grad_()
    loss = PixelLoss(spec_of(base, transform), OUTPUTS, WEIGHTS)
    got = loss(logits, labels)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, loss(logits.detach().float(), labels), rtol=0, atol=0)
    got.backward()
    assert logits.grad.dtype == dtype


@pytest.mark.parametrize(("base", "transform"), COMBINATIONS)
def test_ignored_pixels_count_for_nothing(base, transform):
    logits, labels = batch(isomax=transform == "isomax")
    loss = PixelLoss(spec_of(base, transform), OUTPUTS, WEIGHTS)
    ignored = (labels == 255).unsqueeze(1).expand_as(logits)
    assert ignored.any()
    other = torch.where(ignored, -7 * logits.abs(), logits).requires_grad_()
    value = loss(other, labels)
    torch.testing.assert_close(value, loss(logits, labels), rtol=0, atol=0)
    value.backward()
    assert (other.grad[ignored] == 0).all()


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["unweighted", "weighted"])
@pytest.mark.parametrize(("base", "transform"), COMBINATIONS)
def test_nothing_but_ignored_pixels(base, transform, weights):
    logits, labels = batch(ignored=1.1)
    loss = PixelLoss(spec_of(base, transform), OUTPUTS, weights)
    value = loss(logits.requires_grad_(), labels)
    value.backward()
    assert value.item() == 0 == float(loss.weight(labels))
    assert (logits.grad == 0).all()


@pytest.mark.parametrize(("base", "transform"), COMBINATIONS)
def test_another_ignore_index(base, transform):
    logits, labels = batch()
    spec = spec_of(base, transform)
    usual = PixelLoss(spec, OUTPUTS, WEIGHTS)
    other = PixelLoss(spec, OUTPUTS, WEIGHTS, ignore_index=-100)
    relabelled = labels.masked_fill(labels == 255, -100)
    assert float(other(logits, relabelled)) == float(usual(logits, labels))
    assert float(other.weight(relabelled)) == float(usual.weight(labels))


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("base", ["ce", "focal"])
def test_parts_of_a_batch_add_up(base, transform):
    logits, labels = batch(isomax=transform == "isomax")
    labels[0, :2] = 255  # The halves have different weights, so a mean of means would be wrong.
    loss = PixelLoss(spec_of(base, transform), OUTPUTS, WEIGHTS)
    halves = list(zip(logits.split(1), labels.split(1), strict=True))
    total = sum(loss.weight(y) for _, y in halves)
    assert float(loss.weight(halves[0][1])) != float(loss.weight(halves[1][1]))
    torch.testing.assert_close(total, loss.weight(labels))
    whole = loss(logits, labels) / loss.weight(labels)
    torch.testing.assert_close(sum(loss(x, y) / total for x, y in halves), whole)


def test_weight_is_the_sum_of_the_class_weights():
    labels = torch.tensor([[[0, 0, 2], [4, 255, 3]]])
    assert float(PixelLoss(LossSpec(), OUTPUTS).weight(labels)) == 5
    weighted = PixelLoss(LossSpec(), OUTPUTS, WEIGHTS)
    assert float(weighted.weight(labels)) == 0.5 + 0.5 + 2 + 0.25 + 3.5
    assert float(weighted.weight(labels.to(torch.uint8))) == 6.75


def test_cross_entropy_over_its_weight_is_torchs_mean():
    logits, labels = batch()
    loss = PixelLoss(LossSpec(), OUTPUTS, WEIGHTS)
    mean = torch.nn.functional.cross_entropy(logits, labels, WEIGHTS.double(), ignore_index=255)
    torch.testing.assert_close(loss(logits, labels) / loss.weight(labels), mean)


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_focal_with_gamma_0_is_cross_entropy(transform):
    logits, labels = batch(isomax=transform == "isomax")
    focal = PixelLoss(LossSpec("focal", transform, gamma=0.0), OUTPUTS, WEIGHTS)
    plain = PixelLoss(LossSpec("ce", transform), OUTPUTS, WEIGHTS)
    a, b = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    values = focal(a, labels), plain(b, labels)
    torch.testing.assert_close(*values)
    for value in values:
        value.backward()
    torch.testing.assert_close(a.grad, b.grad)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_focal_is_finite_where_the_network_is_certain(gamma):
    logits = torch.zeros(1, OUTPUTS, 1, 2)
    logits[0, 1] = torch.tensor([200.0, -200.0])
    logits.requires_grad_()
    value = PixelLoss(LossSpec("focal", gamma=gamma), OUTPUTS)(logits, torch.ones(1, 1, 2).long())
    value.backward()
    assert value.item() == pytest.approx(200 + math.log(4), rel=1e-6)
    assert logits.grad.isfinite().all()


def test_isomax_is_cross_entropy_on_logits_times_the_entropic_scale():
    logits, labels = batch(isomax=True)
    isomax = PixelLoss(LossSpec.parse("isomax", entropic_scale=10), OUTPUTS)
    plain = PixelLoss(LossSpec(), OUTPUTS)
    torch.testing.assert_close(isomax(logits, labels), plain(10 * logits, labels))


def test_logitnorm_does_not_see_the_size_of_the_logits():
    logits, labels = batch()
    loss = PixelLoss(LossSpec.parse("logitnorm"), OUTPUTS)
    torch.testing.assert_close(loss(logits, labels), loss(50 * logits, labels), rtol=1e-5, atol=0)


def test_logitnorm_is_finite_at_0():
    logits = torch.zeros(1, OUTPUTS, 2, 3, requires_grad=True)
    value = PixelLoss(LossSpec.parse("logitnorm"), OUTPUTS)(logits, torch.zeros(1, 2, 3).long())
    value.backward()
    assert value.item() == pytest.approx(6 * math.log(OUTPUTS))
    bound = 1 / (0.04 * NORM_EPSILON)
    torch.testing.assert_close(logits.grad[0, 0], torch.full((2, 3), -0.8 * bound))
    torch.testing.assert_close(logits.grad[0, 1], torch.full((2, 3), 0.2 * bound))


@pytest.mark.parametrize(
    ("threshold", "share", "fewest"),
    [(0.4, 0.01, None), (1e-9, 0.3, 0.3), (1e-9, 1e-6, 0), (1.0, 0.01, 1.0)],
    ids=["by threshold", "by share", "always one", "all"],
)
def test_ohem_keeps_the_hardest_pixels(threshold, share, fewest):
    logits, labels = batch(seed=2)
    logits.requires_grad_()
    spec = LossSpec("ohem", ohem_threshold=threshold, ohem_min_kept=share)
    PixelLoss(spec, OUTPUTS)(logits, labels).backward()
    kept = (logits.grad != 0).any(1).numpy()

    valid = labels.numpy() != 255
    probabilities = logits.detach().softmax(1).numpy()
    targets = np.where(valid, labels.numpy(), 0)
    p = np.where(valid, np.take_along_axis(probabilities, targets[:, None], 1)[:, 0], 2)
    if fewest is None:
        wanted = p < threshold
        assert 1 < wanted.sum() < valid.sum()
    else:
        wanted = p <= np.sort(p, axis=None)[max(1, int(fewest * valid.sum())) - 1]
    np.testing.assert_array_equal(kept, wanted)


def test_ohem_with_every_pixel_is_the_mean_times_the_weight():
    logits, labels = batch()
    everything = PixelLoss(LossSpec("ohem", ohem_min_kept=1.0), OUTPUTS, WEIGHTS)
    plain = PixelLoss(LossSpec(), OUTPUTS, WEIGHTS)
    torch.testing.assert_close(everything(logits, labels), plain(logits, labels))


@pytest.mark.parametrize("base", BASES)
def test_classes_of_weight_0(base):
    logits, labels = batch()
    loss = PixelLoss(spec_of(base, "plain"), OUTPUTS, torch.zeros(OUTPUTS))
    value = loss(logits.requires_grad_(), labels)
    value.backward()
    assert value.item() == 0 == float(loss.weight(labels))
    assert (logits.grad == 0).all()


def test_class_weights_are_not_part_of_a_checkpoint():
    assert PixelLoss(LossSpec(), OUTPUTS, WEIGHTS).state_dict() == {}


def test_what_does_not_fit_is_refused():
    logits, labels = batch()
    with pytest.raises(ValueError, match="5 logits, the loss was made for 4"):
        PixelLoss(LossSpec(), 4)(logits, labels)
    with pytest.raises(ValueError, match="label 4 with 4 outputs"):
        PixelLoss(LossSpec(), 4).weight(labels)
    for wrong in (torch.ones(4), -torch.ones(OUTPUTS), torch.full((OUTPUTS,), math.nan)):
        with pytest.raises(ValueError, match="class weights must be 5 numbers"):
            PixelLoss(LossSpec(), OUTPUTS, wrong)


@pytest.mark.parametrize(
    ("text", "base", "transform", "name"),
    [
        ("ce", "ce", "plain", "ce"),
        ("focal", "focal", "plain", "focal"),
        ("ohem", "ohem", "plain", "ohem"),
        ("isomax", "ce", "isomax", "isomax"),
        ("ce+isomax", "ce", "isomax", "isomax"),
        ("logitnorm+ce", "ce", "logitnorm", "logitnorm"),
        ("isomax+focal", "focal", "isomax", "focal+isomax"),
        ("Focal + LogitNorm", "focal", "logitnorm", "focal+logitnorm"),
        ("logitnorm+ohem", "ohem", "logitnorm", "ohem+logitnorm"),
    ],
)
def test_names(text, base, transform, name):
    spec = LossSpec.parse(text, gamma=3.0)
    assert spec == LossSpec(base, transform, gamma=3.0)
    assert spec.name == name
    assert LossSpec.parse(name, gamma=3.0) == spec


@pytest.mark.parametrize(
    "text", ["", "dice", "ce+focal", "ce+ce", "isomax+logitnorm", "focal+", "ce+dice", "plain"]
)
def test_names_of_nothing(text):
    with pytest.raises(UsageError, match=r"--loss .*ce, focal, ohem.*isomax, logitnorm"):
        LossSpec.parse(text)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("gamma", -1.0), ("gamma", math.nan), ("alpha", 0.0), ("entropic_scale", -10.0),
        ("temperature", 0.0), ("temperature", math.inf), ("ohem_threshold", 1.5),
        ("ohem_min_kept", 0.0),
    ],
)  # fmt: skip
def test_numbers_out_of_range(field, value):
    with pytest.raises(UsageError, match=field):
        LossSpec(**{field: value})


def test_enet_class_weights_by_hand():
    # Shares 0.6, 0.3, 0.1, 0: 1 / ln 1.62, 1 / ln 1.32, 1 / ln 1.12, 1 / ln 1.02.
    by_hand = [2.072856, 3.601894, 8.823891, 50.498350]
    weights = enet_class_weights([600, 300, 100, 0], void_weight=0.5)
    assert weights.dtype == torch.float32
    np.testing.assert_allclose(weights, [*by_hand, 0.5], rtol=1e-6)
    np.testing.assert_allclose(
        enet_class_weights(torch.tensor([6, 3, 1, 0]), num_outputs=4), by_hand, rtol=1e-6
    )
    assert enet_class_weights([1, 1])[2] == 1
    # With as many void pixels as known ones the shares halve: 1 / ln 1.32 for the first.
    assert float(enet_class_weights([600, 400], void_pixels=1000)[0]) == pytest.approx(
        by_hand[1], rel=1e-6
    )


def test_erfnet_class_weights_are_those_of_its_training_code():
    # Road, sidewalk and motorcycle of its decoder's table, and the shares that it solves to.
    shares = torch.tensor([0.32654, 0.05392, 0.00087])
    rest = 1 - shares.sum()
    counts = torch.round(1e7 * torch.cat([shares, rest[None] - 0.1146])).long()
    void = 10_000_000 - int(counts.sum())
    decoder = erfnet_class_weights(counts, void_pixels=void, void_weight=0)
    np.testing.assert_allclose(decoder[:3], [2.8149202, 6.9850030, 10.4053555], rtol=2e-4)
    assert decoder[4] == 0
    # Of the encoder's table; its labels are smaller, so the shares differ by up to 0.002.
    encoder = erfnet_class_weights(counts, encoder=True, void_pixels=void, void_weight=0)
    np.testing.assert_allclose(encoder[:3], [2.3653598, 4.4237881, 5.4631009], rtol=2e-3)


def test_class_weights_that_make_no_sense():
    for counts in ([], [0, 0], [1, -1], [[1, 2]]):
        with pytest.raises(ValueError, match="pixel counts"):
            enet_class_weights(counts)
    with pytest.raises(ValueError, match="c is 1"):
        enet_class_weights([1, 2], 1.0)
    with pytest.raises(ValueError, match="2 known classes do not fit 4 outputs"):
        erfnet_class_weights([1, 2], num_outputs=4)
