"""Recovery brings an INT8 body nearer to float on frames that it was not trained on."""

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="recovery trains by torch")
pytest.importorskip("onnx", reason="recovery starts from an exported network")

from edgeseg.compression import int8_recovery  # noqa: E402
from edgeseg.compression.calibration import observe  # noqa: E402
from edgeseg.compression.graph_module import GraphModule  # noqa: E402
from edgeseg.compression.int8_recovery import RecoveryOptions, recover  # noqa: E402
from edgeseg.compression.quantize_onnx import quantize_body  # noqa: E402
from edgeseg.errors import InputError, UsageError  # noqa: E402
from edgeseg.scoring.head import IsoMaxPlus  # noqa: E402
from tests.exported import HEIGHT, WIDTH, body_of, frames, network  # noqa: E402

FAST = RecoveryOptions(steps=40, batch=2, crop=(64, 64), learning_rate=0.2, looks=2, threads=1)


def case(name="midenet", damage=0.0):
    """Float body, INT8 body and head; ``damage``: weights are off by so many steps."""
    body = body_of(name)
    model = quantize_body(body, observe(body, frames(3, seed=4))).model
    if damage:
        module = GraphModule(model)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for p in module.parameters():
                p.copy_(damage * torch.randn(p.shape, generator=generator))
        module.limit()
        model = module.to_onnx()
    return body, model, replace(network(name).head_spec(), layout="nhwc")


@pytest.fixture(scope="module")
def midenet():
    return case(damage=4.0)


def test_recovery_brings_scores_nearer_to_float(midenet):
    told = []
    result = recover(*midenet, frames(6, seed=4), FAST, progress=told.append)
    assert result.kept_step > 0
    for name, before in result.before.values.items():
        assert 0 < result.after.values[name] <= before
    assert sum(result.after.values.values()) < 0.8 * sum(result.before.values.values())
    assert (result.trained_frames, result.apart_frames, result.steps) == (5, 1, 40)
    assert result.model.SerializeToString() != midenet[1].SerializeToString()
    assert len(told) == 3
    document = result.document()
    assert document["change_after"] == result.after.values


def test_the_same_seed_gives_the_same_body(midenet):
    options = replace(FAST, steps=6, looks=1)
    first, second = (recover(*midenet, frames(4, seed=4), options) for _ in range(2))
    assert first.kept_step == second.kept_step == 6
    assert first.model.SerializeToString() == second.model.SerializeToString()
    other = recover(*midenet, frames(4, seed=4), replace(options, seed=1))
    assert other.model.SerializeToString() != first.model.SerializeToString()


def test_scales_of_activations_stay_as_they_are(midenet):
    result = recover(*midenet, frames(4, seed=4), replace(FAST, steps=6, looks=1))
    assert result.kept_step == 6
    before, after = (
        {c.name: c.raw_data for c in m.graph.initializer} for m in (midenet[1], result.model)
    )
    scales = {n.input[1] for n in midenet[1].graph.node if n.op_type == "QuantizeLinear"}
    assert scales
    assert all(before[n] == after[n] for n in scales)


def test_what_gets_worse_is_not_kept(midenet):
    # Half the range of a weight at a time.
    wild = replace(FAST, learning_rate=60.0, steps=3)
    result = recover(*midenet, frames(4, seed=4), wild)
    assert result.kept_step == 0
    assert result.after == result.before
    assert result.model.SerializeToString() == midenet[1].SerializeToString()


def test_bodies_that_are_given_stay_as_they_are(midenet):
    body, model, head = midenet
    before = body.SerializeToString(), model.SerializeToString()
    threads = torch.get_num_threads()
    recover(body, model, head, frames(3, seed=4), replace(FAST, steps=2, looks=1))
    assert (body.SerializeToString(), model.SerializeToString()) == before
    assert torch.get_num_threads() == threads


def test_an_interrupt_passes_and_gives_the_threads_back(midenet):
    def stop(message):
        if message.startswith("step"):
            raise KeyboardInterrupt

    threads = torch.get_num_threads()
    with pytest.raises(KeyboardInterrupt):
        recover(*midenet, frames(3, seed=4), FAST, progress=stop)
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("name", ["enet", "erfnet", "bisenet"])
def test_every_head_is_trained_through(name):
    body, model, head = case(name)
    result = recover(
        body, model, head, frames(3, seed=4), replace(FAST, steps=2, looks=1, learning_rate=0.02)
    )
    assert result.steps == 2
    assert set(result.before.values) == {"max_logit", "void_log_odds"}


@pytest.mark.parametrize("name", ["erfnet", "enet", "midenet"])
@pytest.mark.parametrize("isomax", [False, True])
def test_logits_are_the_heads_own(name, isomax):
    head = network(name).head_spec()
    if isomax:
        prototypes = np.linspace(-1, 1, head.num_outputs, dtype=np.float32)
        head = replace(head, isomax=IsoMaxPlus(2.0, prototypes))
    features = np.random.default_rng(0).normal(size=(head.channels_in, 6, 8)).astype(np.float32)
    ours = int8_recovery._logits(head, torch.from_numpy(features[None]), (1, 0))[0].numpy()
    if head.weight is None:
        head = replace(head, factor=1, kind="identity")
        expected = head.logits(features)
    else:
        expected = head.logits(features)[:, 1::2, 0::2]
    np.testing.assert_allclose(ours, expected, atol=1e-4)


def test_crops_come_from_the_frames_with_no_more_noise_than_asked():
    frame = np.full((64, 128, 3), 100, np.uint8)
    options = replace(FAST, noise=3, batch=32, crop=(40, 500))
    batch = int8_recovery._draw([frame], options, 16, np.random.default_rng(0))
    assert batch.shape == (32, 32, 128, 3)
    assert batch.dtype == np.uint8
    assert np.abs(batch.astype(int) - 100).max() == 3
    plain = int8_recovery._draw([frame], replace(options, noise=0), 16, np.random.default_rng(0))
    assert (plain == 100).all()


@pytest.mark.parametrize(
    "change",
    [
        {"steps": 0},
        {"batch": 0},
        {"looks": 0},
        {"threads": 0},
        {"crop": (0, 64)},
        {"noise": 65},
        {"learning_rate": float("nan")},
        {"temperature": 0.0},
    ],
)
def test_options_that_cannot_be_are_refused(midenet, change):
    with pytest.raises(UsageError, match="of the recovery is"):
        recover(*midenet, frames(3), replace(FAST, **change))


def test_one_frame_is_too_few(midenet):
    with pytest.raises(InputError, match="two frames"):
        recover(*midenet, frames(1), FAST)


def test_frames_of_another_size_are_refused(midenet):
    with pytest.raises(InputError, match="resize it"):
        recover(*midenet, [f[:32] for f in frames(3)], FAST)


def test_an_export_can_be_trained(tmp_path):
    import cv2

    from edgeseg.export.exporter import export_bundle

    folder = tmp_path / "frames"
    folder.mkdir()
    for i, frame in enumerate(frames(3, seed=4)):
        assert cv2.imwrite(str(folder / f"{i}.png"), frame)
    bundle = export_bundle(
        network("midenet"),
        tmp_path / "bundle",
        height=HEIGHT,
        width=WIDTH,
        precision="int8",
        calibration=folder,
        recovery=replace(FAST, steps=2, looks=1),
    )
    told = bundle.manifest.accuracy["recovery"]
    assert (told["steps"], told["frames"], told["frames_apart"]) == (2, 2, 1)
    assert told["change_after"]["max_logit"] <= told["change_before"]["max_logit"]
