"""Options of ``edgeseg prune`` that would be ignored."""

import pytest

pytest.importorskip("torch", reason="pruning needs torch")
pytest.importorskip("onnx", reason="exporting needs onnx")

from edgeseg.networks.checkpoints import save_network
from tests.exported import network
from tests.test_cli import one_line


@pytest.fixture
def pruned(edgeseg, tmp_path):
    """``edgeseg prune midenet`` into a folder that is there and holds something."""
    weights = tmp_path / "given.safetensors"
    save_network(network("midenet"), weights, {})
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "prune.json").write_text("{}")
    return lambda *options: edgeseg(
        "prune", "midenet", "--weights", weights, "--size", "64x128", "-o", tmp_path / "out",
        *options,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--resume",), "--resume goes on with fine-tuning; give --data or --recipe"),
        (("--workers", 0), "--workers is for fine-tuning"),
        (("--precision", "auto"), "--precision is for fine-tuning"),
        (("--source", "a=."), "--source is for fine-tuning"),
        (("--backend", "auto"), "--backend is what --target-ms is measured on"),
    ],
    ids=str,
)
def test_what_would_be_ignored_is_refused_before_any_work(pruned, tmp_path, options, words):
    code, out, err = pruned("--amount", 0.3, *options)
    assert (code, out) == (2, "")
    assert words in one_line(err)
    assert (tmp_path / "out" / "prune.json").read_text() == "{}"
