"""The head in numpy against torch's operators, its layouts, and what it refuses."""

import dataclasses

import numpy as np
import pytest

from edgeseg.errors import ArtefactError
from edgeseg.scoring.head import HEAD_KINDS, Head, IsoMaxPlus

RNG = np.random.default_rng(0)


def make(kind, isomax=False, layout="nchw", factor=8):
    kernel = {"deconv2x2": 2, "deconv3x3": 3}.get(kind)
    weight = RNG.normal(size=(16, 20, kernel, kernel)).astype(np.float32) if kernel else None
    return Head(
        kind=kind,
        num_outputs=20,
        num_known=19,
        void_index=19,
        factor=2 if kernel else factor if kind == "bilinear" else 1,
        weight=weight,
        bias=RNG.normal(size=20).astype(np.float32) if kernel else None,
        isomax=IsoMaxPlus(-1.7, RNG.normal(size=20).astype(np.float32)) if isomax else None,
        layout=layout,
    )


def by_torch(head, features):
    torch = pytest.importorskip("torch")
    f = torch.from_numpy(features)[None].double()
    if head.weight is not None:
        edge = {} if head.kind == "deconv2x2" else {"padding": 1, "output_padding": 1}
        weight, bias = (torch.from_numpy(t).double() for t in (head.weight, head.bias))
        f = torch.nn.functional.conv_transpose2d(f, weight, bias, stride=2, **edge)
    elif head.kind == "bilinear":
        f = torch.nn.functional.interpolate(
            f, scale_factor=head.factor, mode="bilinear", align_corners=False
        )
    if head.isomax is not None:
        prototypes = torch.from_numpy(head.isomax.prototypes).view(1, -1, 1, 1)
        f = -abs(head.isomax.distance_scale) * (f - prototypes).abs()
    return f[0].numpy()


@pytest.mark.parametrize("isomax", [False, True])
@pytest.mark.parametrize("kind", HEAD_KINDS)
def test_logits_are_torchs(kind, isomax):
    head = make(kind, isomax)
    for h, w in [(1, 1), (1, 5), (4, 3), (8, 16)]:
        features = RNG.normal(size=(head.channels_in, h, w)).astype(np.float32)
        logits = head.logits(features)
        assert logits.shape == (20, h * head.factor, w * head.factor)
        assert logits.dtype == np.float32
        # Sums of at most 64 products in float32.
        np.testing.assert_allclose(logits, by_torch(head, features), atol=2e-5)


@pytest.mark.parametrize("factor", [1, 2, 3, 4, 16, 32])
def test_bilinear_by_any_factor(factor):
    head = make("bilinear", factor=factor)
    features = RNG.normal(size=(20, 3, 5)).astype(np.float32)
    np.testing.assert_allclose(head.logits(features), by_torch(head, features), atol=2e-6)


@pytest.mark.parametrize("kind", HEAD_KINDS)
def test_both_layouts_mean_the_same(kind):
    planes = make(kind)
    pixels = dataclasses.replace(planes, layout="nhwc")
    features = RNG.normal(size=(1, planes.channels_in, 3, 4)).astype(np.float32)
    turned = features.transpose(0, 2, 3, 1)
    for a, b in [(features, turned), (features[0], turned[0])]:  # the batch axis is optional
        np.testing.assert_array_equal(planes.channel_first(a), features[0])
        np.testing.assert_array_equal(pixels.channel_first(b), features[0])


def test_nan_features_reach_the_logits():
    for kind in HEAD_KINDS:
        features = np.zeros((make(kind).channels_in, 4, 4), np.float32)
        features[0, 2, 2] = np.nan
        assert np.isnan(make(kind, isomax=True).logits(features)).any()


@pytest.mark.parametrize("shape", [(15, 4, 4), (16, 4), (1, 16, 4, 4), (4, 4, 16)])
def test_features_of_another_shape_are_refused(shape):
    with pytest.raises(ArtefactError, match=r"\[16, h, w\]"):
        make("deconv2x2").logits(np.zeros(shape, np.float32))


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("deconv2x2", {"kind": "nearest"}),
        ("deconv2x2", {"layout": "hwc"}),
        ("deconv2x2", {"factor": 4}),
        ("deconv2x2", {"weight": None}),
        ("deconv2x2", {"bias": None}),
        ("deconv2x2", {"weight": np.zeros((16, 20, 3, 3), np.float32)}),
        ("deconv2x2", {"weight": np.zeros((16, 19, 2, 2), np.float32)}),
        ("deconv2x2", {"weight": np.zeros((0, 20, 2, 2), np.float32)}),
        ("deconv2x2", {"weight": np.float32(1)}),
        ("deconv3x3", {"bias": np.zeros(19, np.float32)}),
        ("deconv3x3", {"kind": "deconv2x2"}),
        ("deconv3x3", {"num_outputs": 21}),
        ("bilinear", {"factor": 0}),
        ("bilinear", {"factor": 33}),
        ("bilinear", {"weight": np.zeros((20, 20, 2, 2), np.float32)}),
        ("bilinear", {"num_known": 0}),
        ("bilinear", {"num_known": 21}),
        ("bilinear", {"num_outputs": 65}),
        ("bilinear", {"void_index": 18}),
        ("bilinear", {"void_index": 20}),
        ("bilinear", {"isomax": IsoMaxPlus(1.0, np.zeros(19, np.float32))}),
        ("identity", {"factor": 2}),
    ],
)
def test_heads_that_cannot_be_are_refused(kind, change):
    with pytest.raises(ArtefactError):
        dataclasses.replace(make(kind), **change)


def test_weights_do_not_fill_the_screen():
    assert len(repr(make("deconv3x3"))) < 400
