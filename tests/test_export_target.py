"""`edgeseg export --target`: what is refused before anything is written."""

import sys

import pytest

pytest.importorskip("torch", reason="exporting needs torch")
pytest.importorskip("onnx", reason="exporting needs onnx")

from edgeseg import cli


def refused(monkeypatch, capfd, *options):
    monkeypatch.setattr(sys, "argv", ["edgeseg", "export", "midenet", *map(str, options)])
    monkeypatch.delenv("EDGESEG_TRACEBACK", raising=False)
    for name in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(SystemExit) as caught:
        cli.main()
    out, err = capfd.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    return caught.value.code, err


@pytest.mark.parametrize(
    ("target", "package"), [("tensorrt", "tensorrt"), ("tensorrt-rtx", "tensorrt-rtx-cu12")]
)
@pytest.mark.parametrize("precision", ["--int8", "--fp16"])
def test_a_target_without_its_builder_is_said_before_anything_is_made(
    monkeypatch, capfd, tmp_path, target, package, precision
):
    code, err = refused(
        monkeypatch, capfd, "--target", target, precision, "-o", tmp_path / "bundle"
    )
    assert code == 3
    assert f"pip install {package}" in err
    assert list(tmp_path.iterdir()) == []


def test_dla_needs_its_target(monkeypatch, capfd, tmp_path):
    code, err = refused(monkeypatch, capfd, "--dla", 0, "-o", tmp_path / "bundle")
    assert code == 2
    assert "--target tensorrt" in err
    assert list(tmp_path.iterdir()) == []
