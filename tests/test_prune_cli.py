"""``edgeseg prune``: what it leaves, what it prints, what it refuses."""

import json
import sys

import pytest

torch = pytest.importorskip("torch", reason="pruning needs torch")
pytest.importorskip("onnx", reason="exporting needs onnx")

from edgeseg.compression import targets  # noqa: E402
from edgeseg.compression.targets import Timing  # noqa: E402
from edgeseg.networks.checkpoints import load_network, read_weights, save_network  # noqa: E402
from edgeseg.networks.counts import count  # noqa: E402
from tests.exported import network  # noqa: E402
from tests.runs import TOML  # noqa: E402
from tests.test_cli import one_line, run_main  # noqa: E402

PLAIN = ("--workers", 0, "--threads", 1, "--device", "cpu", "--precision", "float32")


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "given" / "mine.safetensors"
    save_network(network("midenet"), path, {"weights_name": "mine", "license": "research only"})
    return path


@pytest.fixture
def program(monkeypatch, capfd, tmp_path, weights):
    """``edgeseg prune midenet`` with these options: exit code, stdout, stderr."""
    monkeypatch.delenv("EDGESEG_TRACEBACK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)

    def run(*options, output="out", name="midenet"):
        return run_main(
            monkeypatch, capfd, "prune", name, "--weights", weights, "--size", "64x128",
            "-o", tmp_path / output, *options,
        )  # fmt: skip

    return run


def recipe(tmp_path):
    """Four steps on drawn scenes."""
    pytest.importorskip("tomllib", reason="recipes need Python 3.11")
    path = tmp_path / "r.toml"
    path.write_text(TOML.replace("steps = 20", "steps = 4"))
    return path


class FakeStopwatch:
    """20 ms for the unpruned network, in proportion to the operations for others."""

    def __init__(self, reference, size, *, backend="auto", threads=None):
        self._size, self._whole = size, count(reference, *size).macs
        assert (backend, threads) == ("onnxruntime", 1)

    def __call__(self, module):
        return Timing(20.0, 20.0 * count(module, *self._size).macs / self._whole, "onnxruntime")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


# --- what it leaves


def test_an_amount_leaves_one_file_of_weights_and_a_report(program, tmp_path, weights):
    code, out, err = program("--amount", 0.5, "--round-to", 1)
    assert (code, err) == (0, "")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "midenet.safetensors", "prune.json",
    ]  # fmt: skip
    assert sorted(p.name for p in tmp_path.iterdir()) == ["given", "out"]
    final = tmp_path / "out" / "midenet.safetensors"
    module = load_network("midenet", final)
    assert module.provenance == {"weights_name": "mine-pruned", "license": "research only"}
    metadata = read_weights(final).metadata
    assert metadata["pruned_from"] == "mine"
    assert json.loads(metadata["pruning"])["amount"] == 0.5
    report = json.loads((tmp_path / "out" / "prune.json").read_text())
    counts = count(module, 64, 128)
    assert report["schema"] == "edgeseg.prune/1"
    assert (report["after"]["params"], report["after"]["macs"]) == (counts.params, counts.macs)
    assert report["macs_fraction"] == pytest.approx(counts.macs / report["before"]["macs"])
    assert report["after"]["weight_bytes"] < final.stat().st_size
    assert final.stat().st_size < 0.7 * weights.stat().st_size
    assert report["removed_percent"] == pytest.approx(50, abs=2)
    for words in ("bottleneck1.0.conv3", "parameters", "MACs at 64x128", "weights", "next: "):
        assert words in out
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o755  # not the temporary folder's


def test_one_json_document(program, tmp_path):
    code, out, err = program("--amount", 0.5, "--json")
    assert (code, err) == (0, "")
    document = json.loads(out)
    assert document["weights"] == str(tmp_path / "out" / "midenet.safetensors")
    assert document["file_bytes"] == (tmp_path / "out" / "midenet.safetensors").stat().st_size
    kept = json.loads((tmp_path / "out" / "prune.json").read_text())
    assert {k: v for k, v in document.items() if k not in ("weights", "file_bytes")} == kept
    assert kept["pruned_from"]["file"] == "mine.safetensors"
    assert kept["fine_tuning"] is None
    assert kept["latency_ms"] is None
    assert {"name", "layers", "before", "dead", "after", "protected"} == set(kept["groups"][0])


def test_the_same_request_gives_the_same_bytes(program, tmp_path):
    for output in ("a", "b"):
        assert program("--amount", 0.3, "--ranking", "global", output=output)[0] == 0
    for name in ("midenet.safetensors", "prune.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_little_that_could_go_is_said(program):
    code, out, _ = program("--amount", 0.3)
    assert code == 0
    assert "widths stay multiples of 16; a smaller --round-to takes more" in out


def test_what_was_pruned_is_pruned_again(program, monkeypatch, capfd, tmp_path):
    assert program("--amount", 0.3, "--round-to", 1)[0] == 0
    first = tmp_path / "out" / "midenet.safetensors"
    code, _, _ = run_main(
        monkeypatch, capfd, "prune", "midenet", "--weights", first, "--size", "64x128",
        "--target-macs", 0.5, "--round-to", 1, "-o", tmp_path / "again",
    )  # fmt: skip
    assert code == 0
    again = load_network("midenet", tmp_path / "again" / "midenet.safetensors")
    assert again.provenance["weights_name"] == "mine-pruned"
    macs = count(load_network("midenet", first), 64, 128).macs
    assert count(again, 64, 128).macs == pytest.approx(0.5 * macs, rel=0.1)


def test_milliseconds_stand_in_the_report(program, monkeypatch, tmp_path):
    monkeypatch.setattr(targets, "Stopwatch", FakeStopwatch)
    code, out, err = program(
        "--target-ms", 11, "--round-to", 1, "--backend", "onnxruntime", "--threads", 1
    )
    assert (code, err) == (0, "")
    report = json.loads((tmp_path / "out" / "prune.json").read_text())
    latency = report["latency_ms"]
    assert latency["before"] == 20.0
    assert latency["backend"] == "onnxruntime"
    assert latency["after"] == pytest.approx(11, rel=0.1)
    assert report["macs_fraction"] == pytest.approx(0.55, rel=0.1)
    assert "float32 on onnxruntime" in out


def test_a_target_that_cannot_be_met_leaves_nothing(program, monkeypatch, tmp_path):
    monkeypatch.setattr(targets, "Stopwatch", FakeStopwatch)
    for target in (("--target-macs", 0.01), ("--target-ms", 0.1, "--backend", "onnxruntime")):
        code, out, err = program(*target, "--threads", 1)
        assert (code, out) == (6, "")
        assert "cannot be" in one_line(err)
        assert sorted(p.name for p in tmp_path.iterdir()) == ["given"]


def test_zeroing_keeps_the_size(program, tmp_path, weights):
    code, out, _ = program("--amount", 0.3, "--mode", "zero")
    assert code == 0
    assert "filters were set to zero; nothing gets smaller or faster" in out
    final = tmp_path / "out" / "midenet.safetensors"
    assert abs(final.stat().st_size - weights.stat().st_size) < 1500
    module = load_network("midenet", final)
    assert module.provenance["weights_name"] == "mine-zeroed"
    assert module.structure == network("midenet").structure


# --- fine-tuning


def test_fine_tuning_leaves_one_file_at_the_top(program, tmp_path):
    code, out, err = program(
        "--amount", 0.5, "--round-to", 1, "--steps", 2, "--recipe", recipe(tmp_path),
        "--license", "mine alone", "--json", *PLAIN,
    )  # fmt: skip
    assert code == 0, err
    report = json.loads(out)
    assert [p.name for p in (tmp_path / "out").glob("*.safetensors")] == ["midenet.safetensors"]
    assert (tmp_path / "out" / "fine-tuning" / "step-2" / "metrics.jsonl").is_file()
    assert report["fine_tuning"]["steps"] == 8
    assert report["fine_tuning"]["recipe"] == "r"
    module = load_network("midenet", tmp_path / "out" / "midenet.safetensors")
    assert module.provenance == {"weights_name": "mine-pruned", "license": "mine alone"}
    assert report["after"]["params"] == count(module, 64, 128).params
    assert report["removed_percent"] == pytest.approx(50, abs=2)


def test_epochs_are_those_of_all_steps(program, tmp_path):
    code, out, err = program(
        "--amount", 0.5, "--steps", 2, "--recipe", recipe(tmp_path), "--epochs", 2, "--json", *PLAIN
    )
    assert code == 0, err
    # Eight scenes in batches of two: four steps an epoch.
    assert json.loads(out)["fine_tuning"]["steps"] == 8


def test_fine_tuning_that_was_stopped_goes_on(program, monkeypatch, tmp_path):
    from edgeseg.training import loop

    options = ("--amount", 0.5, "--round-to", 1, "--recipe", recipe(tmp_path), *PLAIN)
    saved = loop.save_state

    def interrupted(*arguments):
        saved(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "save_state", interrupted)
    code, _, err = program(*options)
    assert code == 130
    assert "--resume goes on" in err
    assert not list((tmp_path / "out").glob("*.safetensors"))
    monkeypatch.setattr(loop, "save_state", saved)
    code, _, err = program(*options)
    assert code == 2
    assert "go on with --resume" in err
    assert program(*options, "--resume")[0] == 0
    assert program(*options, output="whole")[0] == 0
    ours, theirs = (
        read_weights(tmp_path / name / "midenet.safetensors").tensors for name in ("out", "whole")
    )
    assert all(torch.equal(v, theirs[k]) for k, v in ours.items())


def test_zeros_stay_zeros_while_training(program, tmp_path):
    code, _, err = program("--amount", 0.3, "--mode", "zero", "--recipe", recipe(tmp_path), *PLAIN)
    assert code == 0, err
    module = load_network("midenet", tmp_path / "out" / "midenet.safetensors")
    weight = module.bottleneck2[1].conv2.weight
    zero = ~weight.flatten(1).any(dim=1)
    assert int(zero.sum()) == round(0.3 * 32)
    before = network("midenet").bottleneck2[1].conv2.weight
    assert not torch.equal(weight[~zero], before[~zero])


@pytest.mark.parametrize("options", [("--data", "nowhere"), ("--recipe", "none-such")])
def test_training_that_cannot_begin_leaves_nothing(program, tmp_path, options):
    code, out, err = program("--amount", 0.5, *options)
    assert (code, out) == (7, "")
    one_line(err)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["given"]


def test_an_empty_folder_of_frames_leaves_nothing(program, tmp_path):
    (tmp_path / "empty").mkdir()
    code, out, err = program("--amount", 0.5, "--data", tmp_path / "empty", "--epochs", 1)
    assert (code, out) == (7, "")
    one_line(err)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty", "given"]


# --- refusals


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), "--amount SHARE, --target-macs SHARE and --target-ms MS"),
        (("--amount", 0.3, "--target-macs", 0.5), "one of --amount"),
        (("--amount", 1.5), "--amount 1.5"),
        (("--target-macs", 2), "--target-macs 2"),
        (("--target-ms", -1), "--target-ms -1"),
        (("--amount", 0.3, "--ranking", "best"), "'best' is unknown"),
        (("--amount", 0.3, "--mode", "mask"), "--mode 'mask'"),
        (("--amount", 0.3, "--protect", "nothing"), "no layer 'nothing'"),
        (("--amount", 0.3, "--epochs", 3), "--epochs needs frames"),
        (("--amount", 0.3, "--data", ".", "--epochs", 0), "--epochs 0"),
        (("--amount", 0.3, "--size", "60x100"), "divisible by 8"),
        (("--amount", 0.3, "--device", "tpu"), "--device 'tpu'"),
    ],
)
def test_mistakes_are_one_sentence_and_leave_nothing(program, tmp_path, options, words):
    code, out, err = program(*options)
    assert (code, out) == (2, "")
    assert words in one_line(err)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["given"]


def test_a_full_folder_is_refused_and_left_alone(program, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    code, _, err = program("--amount", 0.3)
    assert code == 2
    assert "is not empty" in one_line(err)
    assert (tmp_path / "out" / "mine.txt").read_text() == "mine"
    (tmp_path / "file").write_text("x")
    code, _, err = program("--amount", 0.3, output="file")
    assert code == 2
    assert "is a file" in one_line(err)


def test_an_empty_folder_is_filled(program, tmp_path):
    (tmp_path / "out").mkdir()
    assert program("--amount", 0.3)[0] == 0
    assert (tmp_path / "out" / "midenet.safetensors").is_file()


def test_a_folder_that_cannot_be_made(program):
    code, _, err = program("--amount", 0.3, output="given/mine.safetensors/out")
    assert code in (2, 7)
    assert "out'" in one_line(err)


def test_weights_of_another_network(program, tmp_path):
    code, _, err = program("--amount", 0.3, name="erfnet")
    assert code == 4
    assert "holds weights of midenet" in one_line(err)
    code, _, err = program("--amount", 0.3, name="unet")
    assert code == 2
    one_line(err)
    assert not (tmp_path / "out").exists()


def test_many_processes_are_refused(program, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, _, err = program("--amount", 0.3)
    assert code == 2
    assert "one process" in one_line(err)


def test_missing_packages_are_named(program, monkeypatch, forget_modules, tmp_path):
    forget_modules("edgeseg.compression.")
    monkeypatch.setitem(sys.modules, "edgeseg.networks.checkpoints", None)
    code, _, err = program("--amount", 0.3)
    assert code == 3
    assert "pip install 'edgeseg[build]'" in one_line(err)
    assert not (tmp_path / "out").exists()
