"""``edgeseg quantize --method fx``: graphs in INT8, their folders, and their evaluation."""

import hashlib
import json
import pickle
import shutil
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import typer
from typer.testing import CliRunner, Result

torch = pytest.importorskip("torch", reason="FX quantization is torch's")
pytest.importorskip("safetensors", reason="weights are written with safetensors")

from safetensors.torch import load_file, save_file  # noqa: E402

from edgeseg.cli.eval import eval_command  # noqa: E402
from edgeseg.cli.quantize import quantize_command  # noqa: E402
from edgeseg.compression import fx_network  # noqa: E402
from edgeseg.compression.fx_folder import read_manifest  # noqa: E402
from edgeseg.compression.quantize_fx import (  # noqa: E402
    FXPredictor,
    default_activation_bits,
    default_engine,
    float_operations,
    fx_counts,
    load_fx,
    quantize_fx,
    save_fx,
)
from edgeseg.data.samples import find_images, read_image  # noqa: E402
from edgeseg.data.transforms import resize_frame  # noqa: E402
from edgeseg.errors import (  # noqa: E402
    ArtefactError,
    EdgesegError,
    InputError,
    MissingDependencyError,
    UsageError,
)
from edgeseg.networks import build  # noqa: E402
from edgeseg.networks.checkpoints import load_network, save_network  # noqa: E402
from edgeseg.networks.counts import count  # noqa: E402
from edgeseg.networks.enet import PADDED_POOL_VARIANT  # noqa: E402

SIZE = (64, 128)
NARROW = {
    "bisenet": {
        "layers": [16, 16, 32, 32], "inner": [[16, 16], [16, 16], [32, 32], [32, 32]],
        "context": [16, 16, 16], "spatial": [16, 16, 16, 32], "fusion": 32, "classifier": 32,
        "mean": [0.3, 0.4, 0.3], "std": [0.2, 0.2, 0.2],
    },
}  # fmt: skip


def app(command: Any) -> typer.Typer:
    made = typer.Typer(pretty_exceptions_enable=False)
    made.command()(command)
    return made


QUANTIZE, EVAL = app(quantize_command), app(eval_command)


def run(program: typer.Typer, *arguments: Any) -> Result:
    return CliRunner().invoke(program, [str(a) for a in arguments])


def document(program: typer.Typer, *arguments: Any) -> dict[str, Any]:
    result = run(program, *arguments, "--json")
    assert result.exit_code == 0, result.exception or result.output
    return json.loads(result.stdout)  # type: ignore[no-any-return]


def refusal(program: typer.Typer, *arguments: Any) -> EdgesegError:
    error = run(program, *arguments).exception
    assert isinstance(error, EdgesegError), error
    assert "\n" not in str(error)
    return error


def frames(number: int = 2) -> list[np.ndarray]:
    """Smooth noise: neighbours that do not tie."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (number, SIZE[0] // 8, SIZE[1] // 8, 3), dtype=np.uint8)
    return [cv2.resize(frame, SIZE[::-1], interpolation=cv2.INTER_CUBIC) for frame in coarse]


def fresh(name: str, structure: dict[str, Any] | None = None) -> Any:
    """A network whose BatchNorms have statistics of their own."""
    torch.manual_seed(0)
    module = build(name, structure or NARROW.get(name))
    for layer in module.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.running_mean.uniform_(-0.2, 0.2)
            layer.running_var.uniform_(0.5, 1.5)
    return module.eval()


def logits(module: Any, x: Any) -> Any:
    with torch.inference_mode():
        return module(x)


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("float") / "mine.safetensors"
    save_network(fresh("midenet"), path, {"weights_name": "mine", "license": "MIT"})
    return path


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("frames")
    for index, frame in enumerate(frames(3)):
        cv2.imwrite(str(folder / f"{index}.png"), frame)
    return folder


@pytest.fixture(scope="session")
def kept(
    tmp_path_factory: pytest.TempPathFactory, weights: Path, images: Path
) -> tuple[Path, dict[str, Any]]:
    """A folder that the command wrote, and its document."""
    folder = tmp_path_factory.mktemp("kept") / "fx"
    found = document(
        QUANTIZE, "midenet", "--weights", weights, "--calibration", images, "-o", folder,
        "--size", "64x128", "--frames", 2,
    )  # fmt: skip
    return folder, found


@pytest.fixture
def folder(kept: tuple[Path, dict[str, Any]], tmp_path: Path) -> Path:
    """A copy of it, to be damaged."""
    return Path(shutil.copytree(kept[0], tmp_path / "fx"))


@pytest.mark.parametrize(
    ("name", "fields", "engine"),
    [
        ("midenet", {"isomax": True, "num_outputs": 19}, default_engine()),
        ("erfnet", {"isomax": True}, default_engine()),
        ("enet", {}, default_engine()),
        ("enet", PADDED_POOL_VARIANT, "qnnpack"),
        ("bisenet", {}, default_engine()),
        ("bisenet", {}, "qnnpack"),
    ],
)
def test_a_saved_network_comes_back_bit_by_bit(
    name: str, fields: dict[str, Any], engine: str, tmp_path: Path
) -> None:
    if engine not in torch.backends.quantized.supported_engines:
        pytest.skip(f"torch has no engine {engine} here")
    module = fresh(name, NARROW.get(name, {}) | fields)
    before = {key: value.clone() for key, value in module.state_dict().items()}
    module.provenance = {"weights_name": "mine", "license": "MIT"}
    selected = torch.backends.quantized.engine
    quantized = quantize_fx(module, frames(), engine=engine)
    written = save_fx(quantized, tmp_path / "fx", "street")
    # Nothing but tensors and text, and the caller's network and settings are as they were.
    assert sorted(p.name for p in (tmp_path / "fx").iterdir()) == ["fx.json", "fx.safetensors"]
    assert written == json.loads((tmp_path / "fx" / "fx.json").read_text())
    assert written["schema"] == "edgeseg.fx/1"
    assert (written["weights_name"], written["license"]) == ("mine", "MIT")
    assert all(torch.equal(before[k], v) for k, v in module.state_dict().items())
    assert torch.backends.quantized.engine == selected
    again = load_fx(name, tmp_path / "fx")
    assert again.provenance == module.provenance
    x = torch.rand(2, 3, *SIZE)
    assert torch.equal(logits(again, x), logits(quantized, x))
    counts, total = fx_counts(again, *SIZE), count(module, *SIZE)
    assert counts.macs_integer + counts.macs_float == total.macs
    assert counts.params == total.params
    assert counts.macs_integer > 0.85 * total.macs
    # Nearly what float computes: no random network's labels are sure.
    float_logits = logits(module, x)
    error = (logits(again, x) - float_logits).abs().mean()
    assert error < 0.35 * float_logits.std()


@pytest.mark.parametrize("name", ["enet", "erfnet"])
def test_every_integer_layer_gives_what_its_definition_says(name: str) -> None:
    nnq = torch.ao.nn.quantized
    module = fresh(name, PADDED_POOL_VARIANT if name == "enet" else None)
    for index, layer in enumerate(m for m in module.modules() if isinstance(m, torch.nn.PReLU)):
        layer.weight.data.fill_((-0.6, 0.01, 0.25, 1.7)[index % 4])
    quantized = quantize_fx(module, frames())
    seen = set()

    class Check(torch.fx.Interpreter):
        def call_module(self, target: str, args: Any, kwargs: Any) -> Any:
            y = super().call_module(target, args, kwargs)
            layer = self.fetch_attr(target)
            x = args[0].dequantize()
            if isinstance(layer, nnq.ConvTranspose2d):
                expected = torch.nn.functional.conv_transpose2d(
                    x, layer.weight().dequantize(), layer.bias(), layer.stride, layer.padding,
                    layer.output_padding,
                )  # fmt: skip
            elif isinstance(layer, nnq.Conv2d):
                expected = torch.nn.functional.conv2d(
                    x, layer.weight().dequantize(), layer.bias(), layer.stride, layer.padding,
                    layer.dilation,
                )  # fmt: skip
            elif isinstance(layer, nnq.PReLU):
                slopes = module.get_submodule(target).weight
                assert (layer.weight.dequantize() - slopes).abs().max() < 0.01
                expected = torch.nn.functional.prelu(x, layer.weight.dequantize())
            else:
                return y
            seen.add(type(layer).__name__)
            if "ReLU2d" in type(layer).__name__:
                expected = expected.relu()
            low, high = (y.q_scale() * (end - y.q_zero_point()) for end in (0, 255))
            assert (y.dequantize() - expected.clamp(low, high)).abs().max() < 1.01 * y.q_scale()
            return y

    with torch.no_grad(), fx_network.graphs_module().running(default_engine()):
        Check(quantized.graph).run(torch.rand(1, 3, *SIZE))
    assert seen >= {"ConvTranspose2d", "Conv2d"}


def test_what_stays_float_is_told() -> None:
    quantized = quantize_fx(fresh("midenet"), frames(1))
    assert float_operations(quantized) == {"Concatenation": 1, "Conv2d": 1, "interpolate": 1}
    part = quantize_fx(fresh("midenet"), frames(1), float_modules=["bottleneck1"])
    assert fx_counts(part, *SIZE).macs_integer < fx_counts(quantized, *SIZE).macs_integer
    kinds = float_operations(part)
    assert sum(n for kind, n in kinds.items() if kind.startswith("Conv")) == 11


def test_the_command_tells_what_it_did(kept: tuple[Path, dict[str, Any]]) -> None:
    folder, found = kept
    assert found["schema"] == "edgeseg.quantize/1"
    assert (found["network"], found["method"], found["engine"]) == (
        "midenet", "fx", default_engine(),
    )  # fmt: skip
    assert (found["weights_name"], found["license"]) == ("mine", "MIT")
    assert found["calibration"]["frames"] == 2
    assert found["calibration"]["size"] == "64x128"
    assert found["calibration"]["equal_labels_percent"] > 80
    assert found["file_bytes"] == sum(p.stat().st_size for p in folder.iterdir()) < 120_000
    assert found["counts"]["macs_integer"] > 30 * found["counts"]["macs_float"]
    assert read_manifest(folder)[0]["torch"] == torch.__version__


def test_weights_are_int8_and_scales_stand_beside_them(folder: Path) -> None:
    tensors = load_file(folder / "fx.safetensors")
    weight = tensors["body.bottleneck1.0.conv2.weight"]
    assert weight.dtype == torch.int8
    assert tensors["body.bottleneck1.0.conv2.weight.scales"].shape == weight.shape[:1]
    largest = max(value.abs().max() for k, value in tensors.items() if k.endswith(".weight"))
    assert largest in (127, 128)


def test_an_earlier_folder_is_replaced_and_others_are_refused(
    folder: Path, weights: Path, images: Path, tmp_path: Path
) -> None:
    call = ("midenet", "--weights", weights, "--calibration", images, "--size", "64x128", "-o")
    before = (folder / "fx.safetensors").read_bytes()
    document(QUANTIZE, *call, folder, "--frames", 1)
    assert (folder / "fx.safetensors").read_bytes() != before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["fx"]
    (folder / "notes.txt").write_text("mine")
    assert isinstance(refusal(QUANTIZE, *call, folder), UsageError)
    (tmp_path / "file").touch()
    assert isinstance(refusal(QUANTIZE, *call, tmp_path / "file"), UsageError)
    assert isinstance(refusal(QUANTIZE, *call, tmp_path / "file" / "inside"), UsageError)


def test_bad_options_are_named(weights: Path, images: Path, tmp_path: Path) -> None:
    call = ("midenet", "--weights", weights, "-o", tmp_path / "fx", "--calibration")
    for options, kind, word in (
        ((images, "--size", "60x128"), UsageError, "60x128"),
        ((images, "--size", "64x128", "--float", "encoder"), UsageError, "'encoder'"),
        ((tmp_path / "none",), InputError, "none"),
        ((tmp_path,), InputError, "image"),
        ((images, "--weights", tmp_path / "none"), InputError, "none"),
    ):
        error = refusal(QUANTIZE, *call, *options)
        assert isinstance(error, kind)
        assert word in str(error)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UsageError, match="x86, qnnpack"):
        quantize_fx(fresh("midenet"), frames(1), engine="onednn")
    with pytest.raises(UsageError, match="7 or 8"):
        quantize_fx(fresh("midenet"), frames(1), activation_bits=4)
    with pytest.raises(InputError, match="no frame"):
        quantize_fx(fresh("midenet"), [])


def test_evaluation_takes_the_folder(folder: Path, weights: Path, tmp_path: Path) -> None:
    root = tmp_path / "sets" / "street"
    for part in ("images", "labels_masks"):
        (root / part).mkdir(parents=True)
    for index, frame in enumerate(frames(2)):
        label = np.zeros(SIZE, np.uint8)
        label[20:40, 30:70] = 1
        cv2.imwrite(str(root / "images" / f"{index}.png"), frame)
        cv2.imwrite(str(root / "labels_masks" / f"{index}.png"), label)
    call = ("midenet", "--data", tmp_path / "sets", "--dataset", "anomaly:street", "--size",
            "64x128", "--threads", 1, "--weights")  # fmt: skip
    found = document(EVAL, *call, folder, "--backend", "torch-fx")
    assert (found["precision"], found["backend"], found["frames"]) == ("int8", "torch-fx", 2)
    assert len(found["results"]) == 5
    assert document(EVAL, *call, folder) == found
    assert document(EVAL, *call, weights)["results"] != found["results"]
    for path, backend, kind, word in (
        (weights, "torch-fx", ArtefactError, "float weights"),
        (folder, "torch", UsageError, "--backend torch-fx"),
        (tmp_path / "none", "torch-fx", InputError, "none"),
        (tmp_path / "sets", "torch-fx", ArtefactError, "fx.json"),
    ):
        error = refusal(EVAL, *call, path, "--backend", backend)
        assert isinstance(error, kind)
        assert word in str(error)
    assert isinstance(refusal(EVAL, *call[:-1], "--backend", "torch-fx"), UsageError)
    assert isinstance(
        refusal(EVAL, "enet", *call[1:], folder, "--backend", "torch-fx"), ArtefactError
    )


def test_a_float_checkpoint_of_torch_is_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "float.pth"
    torch.save({"state_dict": {"a.weight": torch.zeros(2)}}, path)
    with pytest.raises(ArtefactError, match="float weights"):
        load_fx("erfnet", path)


class Malicious:
    def __init__(self, target: Path) -> None:
        self.target = str(target)

    def __reduce__(self) -> Any:
        return Path.mkdir, (Path(self.target),)


@pytest.mark.parametrize("form", ["zip", "plain"])
def test_code_in_a_pickle_never_runs(form: str, tmp_path: Path) -> None:
    target, path = tmp_path / "made", tmp_path / "evil.pth"
    if form == "zip":
        torch.save({"a": Malicious(target)}, path)
    else:
        path.write_bytes(pickle.dumps({"a": Malicious(target)}, protocol=2))
    with pytest.raises(ArtefactError, match=r"evil\.pth"):
        load_fx("erfnet", path)
    assert not target.exists()


def change(folder: Path, **fields: Any) -> None:
    path = folder / "fx.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def rewrite(folder: Path, tensors: dict[str, Any]) -> None:
    """Other weights with a manifest that describes them."""
    path = folder / "fx.safetensors"
    save_file(tensors, path)
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    change(folder, files={path.name: {"sha256": digest, "bytes": len(content)}})


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"schema": "edgeseg.fx/9"}, "newer"),
        ({"schema": "edgeseg.bundle/1"}, "damaged"),
        ({"recipe": None}, "damaged"),
        ({"recipe": {"engine": "cuda"}}, "damaged"),
        ({"files": {}}, "damaged"),
        ({"network": "unet"}, "unet"),
        ({"structure": {"stage1": "wide"}}, "stage1"),
        ({"structure": {"stage1": 4000, "stage2": 4000}}, "larger"),
        ({"structure": {"stage1": 32}}, "needed"),
    ],
)
def test_damaged_manifests_are_refused(folder: Path, fields: dict[str, Any], words: str) -> None:
    change(folder, **fields)
    with pytest.raises(ArtefactError, match=words) as caught:
        load_fx("midenet", folder)
    assert "fx" in str(caught.value)


def test_damaged_weights_are_refused(folder: Path) -> None:
    path = folder / "fx.safetensors"
    whole = path.read_bytes()
    for content in (b"", whole[:-1], whole[:5000] + bytes([whole[5000] ^ 1]) + whole[5001:]):
        path.write_bytes(content)
        with pytest.raises(ArtefactError, match="sha256"):
            load_fx("midenet", folder)
    path.unlink()
    with pytest.raises(ArtefactError, match="cannot be read"):
        load_fx("midenet", folder)
    (folder / "fx.json").write_text("{")
    with pytest.raises(ArtefactError, match="damaged"):
        load_fx("midenet", folder)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("body.initial.conv.scale", -1.0),
        ("body.initial.conv.scale", float("nan")),
        ("body.initial.conv.zero_point", 900),
        ("body.initial.conv.weight.scales", 0.0),
        ("body.classifier.weight", float("inf")),
    ],
)
def test_values_that_no_calibration_gives_are_refused(folder: Path, key: str, value: float) -> None:
    tensors = load_file(folder / "fx.safetensors")
    tensors[key] = torch.full_like(tensors[key], value)
    rewrite(folder, tensors)
    with pytest.raises(ArtefactError, match=key):
        load_fx("midenet", folder)


def test_missing_and_superfluous_tensors_are_named(folder: Path) -> None:
    tensors = load_file(folder / "fx.safetensors")
    rewrite(folder, {k: v for k, v in tensors.items() if k != "body.initial.conv.scale"})
    with pytest.raises(ArtefactError, match=r"lacks 'body\.initial\.conv\.scale'"):
        load_fx("midenet", folder)
    rewrite(folder, tensors | {"body.extra": torch.zeros(1)})
    with pytest.raises(ArtefactError, match=r"no place for 'body\.extra'"):
        load_fx("midenet", folder)


def test_a_processor_that_would_overflow_is_told(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = json.loads((folder / "fx.json").read_text())
    change(folder, recipe=document["recipe"] | {"engine": "x86", "activation_bits": 8})
    monkeypatch.setattr(fx_network, "cpu_flags", lambda: frozenset({"avx2"}))
    assert default_activation_bits("x86") == 7
    assert default_activation_bits("qnnpack") == 8
    with pytest.raises(MissingDependencyError, match="--activation-bits 7"):
        load_fx("midenet", folder)
    monkeypatch.setattr(type(torch.backends.quantized), "supported_engines", ["none"])
    with pytest.raises(MissingDependencyError, match="no engine 'x86'"):
        load_fx("midenet", folder)


def test_seven_bits_stay_below_128() -> None:
    if default_engine() != "x86":
        pytest.skip("seven bits are for x86")
    quantized = quantize_fx(fresh("midenet"), frames(1), activation_bits=7)
    largest = []

    class Look(torch.fx.Interpreter):
        def run_node(self, n: Any) -> Any:
            y = super().run_node(n)
            if isinstance(y, torch.Tensor) and y.is_quantized:
                largest.append(int(y.int_repr().max()))
            return y

    with torch.no_grad(), fx_network.graphs_module().running("x86"):
        Look(quantized.graph).run(fx_network.graphs_module().as_input(frames(1)[0]))
    assert 100 < max(largest) < 135  # values beyond the observed range may pass it a little


@pytest.mark.parametrize("torchao", [True, False])
def test_a_torch_without_fx_is_told(
    folder: Path, torchao: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    import edgeseg.compression

    monkeypatch.setitem(sys.modules, "torch.ao.quantization.quantize_fx", None)
    monkeypatch.delitem(sys.modules, "edgeseg.compression.fx_graph", raising=False)
    monkeypatch.delattr(edgeseg.compression, "fx_graph", raising=False)
    find = fx_network.importlib.util.find_spec
    monkeypatch.setattr(
        fx_network.importlib.util,
        "find_spec",
        lambda name, *rest: torchao or None if name == "torchao" else find(name, *rest),
    )
    with pytest.raises(MissingDependencyError, match=r"torch>=2\.4,<=2\.13") as caught:
        load_fx("midenet", folder)
    assert ("not used by this version yet" in str(caught.value)) == torchao
    assert caught.value.exit_code == 3


@pytest.mark.data
def test_a_trained_network_keeps_its_labels(shared_data: Path) -> None:
    module = load_network("midenet", shared_data / "weights" / "midenet_void20.pth")
    images = find_images(shared_data / "cityscapes" / "leftImg8bit", recursive=True)
    small = [resize_frame(read_image(path), (256, 512)) for path in images[:4]]
    quantized = quantize_fx(module, small)
    # Measured: 97 of 100 with eight bits, 95 with seven.
    assert quantized.calibration["equal_labels_percent"] > 93
    frame = FXPredictor(quantized).logits(small[3])
    assert frame.shape == (20, 256, 512)


@pytest.mark.data
def test_the_published_state_dict_is_read(shared_data: Path, tmp_path: Path) -> None:
    path = shared_data / "weights" / "erfnet_void20_fx_int8.pth"
    quantized = load_fx("erfnet", path)
    assert quantized.provenance["weights_name"] == "erfnet_void20_fx_int8"
    assert quantized.structure.num_outputs == 20
    recovered = load_network("erfnet", shared_data / "weights" / "erfnet_void20.pth")
    image = find_images(shared_data / "cityscapes" / "leftImg8bit" / "val", recursive=True)[1]
    frame = resize_frame(read_image(image), (256, 512))
    x = fx_network.graphs_module().as_input(frame)
    ours, theirs = logits(quantized, x), logits(recovered, x)
    # It rounds the pooled picture to a few levels; at 512x1024 80 to 88 of 100 labels agree.
    assert (ours[:, :19].argmax(1) == theirs[:, :19].argmax(1)).float().mean() > 0.7
    save_fx(quantized, tmp_path / "fx")
    assert torch.equal(logits(load_fx("erfnet", tmp_path / "fx"), x), ours)
    with pytest.raises(ArtefactError, match="not enet"):
        load_fx("enet", path)
    content = torch.load(path, weights_only=True)
    for key, value, word in (
        ("encoder_layers_1_dropout_scale_0", torch.tensor(0.5), "dropout"),
        ("encoder.layers.2.conv1x3_1.bias", torch.zeros(3), "needed"),
        ("decoder.output_conv.weight", torch.zeros(16, 20, 2, 2), "no layout"),
    ):
        torch.save(content | {key: value}, tmp_path / "changed.pth")
        with pytest.raises(ArtefactError, match=word):
            load_fx("erfnet", tmp_path / "changed.pth")
