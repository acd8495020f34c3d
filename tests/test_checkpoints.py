"""Checkpoints: what loads, what is refused, and in which words."""

import io
import json
import os
import pickle
import struct

import pytest

torch = pytest.importorskip("torch", reason="checkpoints need torch")
pytest.importorskip("safetensors", reason="weights are written with safetensors")

from edgeseg.errors import ArtefactError, EdgesegError, InputError, UsageError  # noqa: E402
from edgeseg.networks import NETWORKS, build  # noqa: E402
from edgeseg.networks.checkpoints import (  # noqa: E402
    load_network,
    read_weights,
    save_network,
)
from edgeseg.networks.enet import PADDED_POOL_VARIANT  # noqa: E402
from edgeseg.networks.layouts import BISENET_MEAN, LAYOUTS  # noqa: E402

ENET_NUMBERED, ENET_KINDS = LAYOUTS[0], LAYOUTS[1]


def tiny():
    """A network whose file is small enough to damage byte by byte."""
    return build("midenet", {"initial": 4, "stage1": 2, "stage2": 2, "inner": [[1, 1]] * 6}).eval()


def pickled(content):
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def refused(name, path):
    """The sentence with which a file is refused."""
    with pytest.raises(ArtefactError) as caught:
        load_network(name, path)
    text = str(caught.value)
    assert path.name in text
    assert "\n" not in text
    assert ";" in text, "says what to do"
    return text


@pytest.mark.parametrize("name", NETWORKS)
def test_safetensors_give_back_the_same_network(name, tmp_path):
    torch.manual_seed(0)
    module = build(name, {"num_outputs": 12, "isomax": True}).eval()
    path = tmp_path / "a.safetensors"
    save_network(module, path, {"weights_name": "mine", "license": "MIT", "epochs": "3"})
    again = load_network(name, path)
    assert again.structure == module.structure
    assert not again.training
    assert again.provenance == {"weights_name": "mine", "license": "MIT"}
    assert read_weights(path).metadata["epochs"] == "3"
    x = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(again(x), module(x))


def test_saving_twice_gives_the_same_bytes_and_nothing_half_written(tmp_path):
    module = tiny()
    metadata = {"weights_name": "mine", "license": "MIT", "a": "1", "b": "2", "c": "3"}
    for name in ("a", "b"):
        save_network(module, tmp_path / name, metadata)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]
    with pytest.raises(InputError, match="cannot be written"):
        save_network(module, tmp_path / "a" / "inside", {})
    with pytest.raises(UsageError, match="network"):
        save_network(module, tmp_path / "c", {"network": "enet"})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]


def test_loading_does_not_disturb_a_training_seed(tmp_path):
    save_network(tiny(), tmp_path / "a", {})
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    load_network("midenet", tmp_path / "a")
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("wrapper", [None, "state_dict", "model"])
def test_published_forms_of_a_state_dict(prefix, wrapper, tmp_path):
    module = build("midenet", {"num_outputs": 19}).eval()
    state = {
        prefix + key: value
        for key, value in module.state_dict().items()
        if not key.endswith("num_batches_tracked")
    }
    path = tmp_path / "published.pth"
    path.write_bytes(pickled({wrapper: state, "epoch": 3} if wrapper else state))
    again = load_network("midenet", path)
    assert again.structure.num_outputs == 19
    assert again.structure.void_index is None
    assert again.provenance["weights_name"] == "published"
    x = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(again(x), module(x))


@pytest.mark.parametrize(
    ("layout", "fields"), [(ENET_NUMBERED, {}), (ENET_KINDS, PADDED_POOL_VARIANT)]
)
def test_both_enet_layouts(layout, fields, tmp_path):
    module = build("enet", fields).eval()
    path = tmp_path / "enet.pth"
    state = {layout.rename(key): value for key, value in module.state_dict().items()}
    assert len(state) == len(module.state_dict())
    path.write_bytes(pickled(state))
    again = load_network("enet", path)
    assert again.structure == module.structure
    for key, value in module.state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key


@pytest.mark.parametrize("two_convs", [False, True])
@pytest.mark.parametrize("auxiliary", [False, True])
def test_published_forms_of_bisenet(two_convs, auxiliary, tmp_path):
    fields = {"fusion_two_convs": two_convs, "auxiliary": auxiliary}
    module = build("bisenet", fields).eval()
    state = module.state_dict()
    del state["conv_out.conv_out.bias"]  # old checkpoints have none
    path = tmp_path / "bisenet.pth"
    path.write_bytes(pickled(state))
    again = load_network("bisenet", path)
    assert again.structure.fusion_two_convs == two_convs
    assert again.structure.auxiliary == auxiliary
    assert not again.conv_out.conv_out.bias.any()


@pytest.mark.parametrize(
    ("input_mean", "expected"),
    [((0.287, 0.325, 0.284), None), ((-0.18, -0.2, -0.19), BISENET_MEAN)],
)
def test_bisenets_input_is_recognised_by_its_first_batchnorm(input_mean, expected, tmp_path):
    torch.manual_seed(0)
    module = build("bisenet", {"auxiliary": False}).eval()
    first = module.sp.conv1
    first.bn.running_mean.copy_(
        (first.conv.weight.detach().sum(dim=(2, 3)) * torch.tensor(input_mean)).sum(dim=1)
    )
    path = tmp_path / "bisenet.pth"
    path.write_bytes(pickled(module.state_dict()))
    assert load_network("bisenet", path).structure.mean == expected
    forced = load_network("bisenet", path, {"mean": None, "std": None})
    assert forced.structure.mean is None


def test_wrong_keys_and_shapes_are_named_as_the_file_has_them(tmp_path):
    path = tmp_path / "enet.pth"
    state = {ENET_NUMBERED.rename(k): v for k, v in build("enet").state_dict().items()}
    path.write_bytes(pickled({k: v for k, v in state.items() if k != "bottleneck23.prelu2.weight"}))
    assert "lacks 'bottleneck23.prelu2.weight'" in refused("enet", path)
    path.write_bytes(pickled(state | {f"extra{i}": torch.zeros(1) for i in range(5)}))
    assert "'extra0', 'extra1', 'extra2' and 2 more keys too many" in refused("enet", path)
    narrow = {"bottleneck40.spatil_conv.weight": torch.zeros(64, 12, 1, 1)}
    path.write_bytes(pickled(state | narrow))
    text = refused("enet", path)
    assert "'bottleneck40.spatil_conv.weight' as 64x12x1x1 float32" in text
    assert "64x128x1x1 float32 is needed" in text


def test_weights_of_another_network_are_refused(tmp_path):
    path = tmp_path / "a.pth"
    path.write_bytes(pickled(build("erfnet").state_dict()))
    assert "weights of erfnet, not of enet" in refused("enet", path)
    save_network(tiny(), path, {})
    assert "weights of midenet, not of enet" in refused("enet", path)
    path.write_bytes(pickled({"backbone.conv.weight": torch.zeros(1)}))
    assert "backbone.conv.weight" in refused("enet", path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_no_training_leaves_are_refused(value, tmp_path):
    module = tiny()
    module.classifier.bias.data[3] = value
    save_network(module, tmp_path / "a", {})
    assert "classifier.bias" in refused("midenet", tmp_path / "a")


def test_a_negative_variance_is_refused(tmp_path):
    module = tiny()
    module.initial.bn.running_var[0] = -1.0
    save_network(module, tmp_path / "a", {})
    assert "initial.bn.running_var" in refused("midenet", tmp_path / "a")


class Malicious:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (self.target,)


@pytest.mark.parametrize("protocol", ["zip", "plain"])
def test_code_in_a_pickle_never_runs(protocol, tmp_path):
    target, path = tmp_path / "made", tmp_path / "evil.pth"
    content = {"state_dict": Malicious(str(target))}
    path.write_bytes(pickled(content) if protocol == "zip" else pickle.dumps(content, protocol=2))
    text = refused("erfnet", path)
    assert not target.exists()
    if protocol == "zip":
        assert "code" in text


def test_files_that_are_no_checkpoints(tmp_path):
    path = tmp_path / "a.pth"
    path.write_bytes(b"")
    assert "is empty" in refused("erfnet", path)
    for content in (b"x", b"hello world, this is text", bytes(1000), b"PK\x03\x04" + bytes(50)):
        path.write_bytes(content)
        refused("erfnet", path)
    for thing in ([torch.zeros(1)], {"a": 3}, {}, torch.zeros(2), {3: torch.zeros(1)}):
        path.write_bytes(pickled(thing))
        refused("erfnet", path)
    with pytest.raises(InputError, match="No such file"):
        load_network("erfnet", tmp_path / "absent.pth")
    with pytest.raises(InputError):
        load_network("erfnet", tmp_path)
    with pytest.raises(UsageError, match="unet"):
        load_network("unet", path)


def _with_metadata(path, **changes):
    content = path.read_bytes()
    (length,) = struct.unpack_from("<Q", content)
    header = json.loads(content[8 : 8 + length])
    header["__metadata__"] |= changes
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"structure": "{"}, "structure"),
        ({"structure": "[]"}, "structure"),
        ({"structure": "[" * 100_000}, "structure"),
        ({"structure": '{"stage1": 4000}'}, "needed"),
        ({"structure": '{"stage1": 1e99}'}, "stage1"),
        ({"network": "unet"}, "unet"),
        ({"format": "edgeseg.weights/9"}, "newer"),
    ],
)
def test_damaged_metadata_is_refused(changes, words, tmp_path):
    path = tmp_path / "a.safetensors"
    save_network(tiny(), path, {})
    _with_metadata(path, **changes)
    assert words in refused("midenet", path)


@pytest.mark.parametrize("kind", ["safetensors", "zip", "legacy"])
def test_damaged_files_never_give_another_error(kind, tmp_path):
    path = tmp_path / "a"
    module = tiny()
    if kind == "safetensors":
        save_network(module, path, {})
    else:
        # The old format is what checkpoints from before torch 1.6 have.
        torch.save(module.state_dict(), path, _use_new_zipfile_serialization=kind == "zip")
    whole = path.read_bytes()
    generator = torch.Generator().manual_seed(0)

    def attempt(content):
        path.write_bytes(content)
        try:
            load_network("midenet", path)
        except EdgesegError as error:
            assert "\n" not in str(error)  # noqa: PT017
            return 1
        return 0

    cuts = torch.randint(0, len(whole), (25,), generator=generator).tolist()
    assert sum(attempt(whole[:cut]) for cut in cuts) == len(cuts)
    places = torch.randint(0, len(whole), (60,), generator=generator).tolist()
    places += list(range(0, 40))
    values = torch.randint(1, 256, (len(places),), generator=generator).tolist()
    # Some flips fall into padding or into a weight's low bits, and load.
    assert sum(
        attempt(whole[:place] + bytes([whole[place] ^ value]) + whole[place + 1 :])
        for place, value in zip(places, values, strict=True)
    )


@pytest.mark.data
def test_fx_state_dict_is_told_apart(shared_data):
    text = refused("erfnet", shared_data / "weights" / "erfnet_void20_fx_int8.pth")
    assert "quantized by torch FX" in text
