"""Ranges are observed on harsher forms of the frames; means and thresholds are not."""

import numpy as np
import pytest

pytest.importorskip("torch", reason="observing starts from an exported network")
pytest.importorskip("onnx", reason="observing starts from an exported network")

from edgeseg.errors import UsageError
from edgeseg.export.observation import observe_frames
from edgeseg.export.widening import harsher
from tests.exported import body_of, frames, network


def test_forms_are_frames_with_more_of_something():
    rng = np.random.default_rng(3)
    frame = (100 + 40 * rng.random((32, 48, 3))).astype(np.uint8)
    kept = frame.copy()
    contrast, colour, hue, sharp = forms = list(harsher(frame))
    np.testing.assert_array_equal(frame, kept)
    for form in forms:
        assert form.shape == frame.shape
        assert form.dtype == np.uint8
        assert not np.array_equal(form, frame)
    assert contrast.std() > 2 * frame.std()
    spread = [float(np.ptp(x.astype(int), axis=2).mean()) for x in (frame, colour)]
    assert spread[1] > 2 * spread[0]
    np.testing.assert_array_equal(hue, colour[..., [1, 2, 0]])
    assert (
        np.abs(np.diff(sharp.astype(int), axis=1)).mean()
        > np.abs(np.diff(frame.astype(int), axis=1)).mean()
    )


@pytest.mark.parametrize("value", [0, 128, 255])
def test_a_frame_of_one_colour_is_no_exception(value):
    frame = np.full((16, 16, 3), value, np.uint8)
    for form in harsher(frame):
        assert (form == form[0, 0]).all()


def test_ranges_grow_and_the_rest_stays():
    body, batch = body_of("midenet"), frames(2, seed=7)
    calm = observe_frames(network("midenet"), body, "calm", batch, widen=0)
    half = observe_frames(network("midenet"), body, "calm", batch, widen=0.5)
    wide = observe_frames(network("midenet"), body, "calm", batch, widen=1)
    grown = 0
    for name, r in calm.tensors.items():
        w = wide.tensors[name]
        assert (w.low <= r.low).all()
        assert (w.high >= r.high).all()
        np.testing.assert_array_equal(w.mean, r.mean)
        middle = half.tensors[name]
        np.testing.assert_allclose(middle.high, (r.high + w.high) / 2, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(middle.low, (r.low + w.low) / 2, rtol=1e-5, atol=1e-6)
        grown += bool((w.high > r.high).any())
    assert grown > len(calm.tensors) / 2
    assert wide.frames == calm.frames == 2
    assert wide.provenance["thresholds"] == calm.provenance["thresholds"]
    assert "widened" in wide.provenance
    assert "widened" not in calm.provenance


@pytest.mark.parametrize("method", ["percentile", "entropy", "mse"])
def test_a_clip_is_chosen_by_the_frames_and_widened_with_their_ranges(method):
    body, batch = body_of("midenet"), frames(2, seed=7)
    calm, wide = (
        observe_frames(
            network("midenet"), body, "calm", batch, method=method, percentile=99, widen=share
        )
        for share in (0, 1)
    )
    unclipped = observe_frames(network("midenet"), body, "calm", batch, widen=1)
    assert any(r.clip != (1.0, 1.0) for r in calm.tensors.values())
    for name, r in calm.tensors.items():
        w = wide.tensors[name]
        assert w.clip == r.clip
        np.testing.assert_array_equal(w.low, unclipped.tensors[name].low)
        np.testing.assert_array_equal(w.high, unclipped.tensors[name].high)
    assert wide.provenance["method"] == calm.provenance["method"]
    assert wide.provenance["widened"] == unclipped.provenance["widened"]


@pytest.mark.parametrize("share", [-0.1, 1.5, float("nan")])
def test_a_share_that_is_none(share):
    with pytest.raises(UsageError, match=r"--widen .* is not from 0 to 1"):
        observe_frames(network("midenet"), body_of("midenet"), "x", frames(1), widen=share)
