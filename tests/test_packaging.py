"""What a user gets from the wheel, in an environment that has only what a device has.

The wheel is built from the source distribution, so both are shown to be complete.
"""

import json
import os
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from edgeseg import __version__
from edgeseg.bundle import Bundle
from edgeseg.data.synthetic import scene
from edgeseg.networks.checkpoints import load_network
from edgeseg.networks.zoo import shipped_metadata, shipped_weights
from edgeseg.runtime.session import Session
from edgeseg.taxonomy import NUM_KNOWN
from tests.conftest import ROOT

PACKAGE = ROOT / "edgeseg"
READY = PACKAGE / "bundles" / "ready"
MAX_READY_BYTES = 3_000_000

needs_ready_bundle = pytest.mark.skipif(
    not (READY / "bundle.json").is_file(), reason="this checkout has no ready bundle (make ranges)"
)


def command(*arguments: str | Path, cwd: Path, **kwargs: str) -> subprocess.CompletedProcess[str]:
    """Run a program outside the repository, without what this environment would lend it."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV"))}
    return subprocess.run(
        [str(a) for a in arguments],
        cwd=cwd,
        env={**env, **kwargs},
        capture_output=True,
        text=True,
        check=False,
    )


def succeed(*arguments: str | Path, cwd: Path, **kwargs: str) -> str:
    done = command(*arguments, cwd=cwd, **kwargs)
    assert done.returncode == 0, f"{arguments}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution of the files that git would commit."""
    checkout = tmp_path_factory.mktemp("checkout")
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    files = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, files.split("\0")):
        if (ROOT / name).is_file():
            (checkout / name).parent.mkdir(parents=True, exist_ok=True)
            (checkout / name).write_bytes((ROOT / name).read_bytes())
    out = tmp_path_factory.mktemp("sdist")
    build = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"
    succeed(sys.executable, "-c", build, out, cwd=checkout)
    (archive,) = out.glob("*.tar.gz")
    return archive


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    (source,) = folder.iterdir()
    out = tmp_path_factory.mktemp("wheel")
    options = ("--quiet", "--no-deps", "--no-build-isolation", "--no-cache-dir")
    succeed(sys.executable, "-m", "pip", "wheel", *options, "-w", out, source, cwd=folder)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def device(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ``bin`` folder of an environment with the wheel, its dependencies and OpenCV."""
    folder = tmp_path_factory.mktemp("device")
    # --without-pip: the environment is what a device has, and it is made in a second.
    succeed(sys.executable, "-m", "venv", "--without-pip", folder / "venv", cwd=folder)
    python = folder / "venv" / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--python", python, "install", "--quiet")
    constraint = ("--constraint", ROOT / "constraints.txt")
    succeed(*pip, *constraint, f"edgeseg[opencv] @ {wheel.as_uri()}", cwd=folder)
    return python.parent


@pytest.mark.slow
def test_wheel_fits_the_platform_and_any_python(wheel: Path) -> None:
    platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
    assert wheel.name == f"edgeseg-{__version__}-py3-none-{platform}.whl"


@pytest.mark.slow
def test_wheel_carries_what_a_device_needs_and_no_more(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    expected = {
        "edgeseg/py.typed",
        "edgeseg/networks/zoo.json",
        "edgeseg/scoring/native/_edgeseg_kernels.so",
        "edgeseg/scoring/native/edgeseg_kernels.h",
        "edgeseg/lib/libedgeseg.so.0",
        "edgeseg/lib/pkgconfig/edgeseg.pc",
        "edgeseg/lib/cmake/edgeseg/edgesegConfig.cmake",
        "edgeseg/include/edgeseg.h",
        f"edgeseg-{__version__}.dist-info/licenses/LICENSE",
    }
    for pattern in ("calibration_data/*.json", "profiles/*.toml", "export/recipes/*.toml"):
        expected |= {f"edgeseg/{p.parent.name}/{p.name}" for p in ROOT.glob(pattern)}
    for pattern in ("weights/*", "bundles/*/*", "profiling/graphs/*.json", "**/*.py"):
        expected |= {p.relative_to(ROOT).as_posix() for p in PACKAGE.glob(pattern)}
    assert expected <= names
    outside = {n for n in names if not n.startswith(("edgeseg/", f"edgeseg-{__version__}."))}
    assert not outside
    assert not {n for n in names if n.endswith((".c", ".pyc"))}


@pytest.mark.slow
def test_version_and_lists_without_torch(device: Path, tmp_path: Path) -> None:
    program = device / "edgeseg"
    assert succeed(program, "--version", cwd=tmp_path) == f"edgeseg {__version__}\n"
    found = command(device / "python", "-c", "import torch", cwd=tmp_path)
    assert "No module named 'torch'" in found.stderr
    table = json.loads(succeed(program, "networks", "--json", cwd=tmp_path))
    assert [row["network"] for row in table["networks"]] == ["enet", "erfnet", "bisenet", "midenet"]
    shipped = {p.name for p in (PACKAGE / "weights").glob("*.safetensors")}
    assert {row["weights"] for row in table["networks"]} - {None} == shipped
    for network in (path.stem for path in (ROOT / "calibration_data").glob("*.json")):
        ask = f"from edgeseg.networks.zoo import shipped_calibration as f; print(f({network!r}))"
        answer = succeed(device / "python", "-c", ask, cwd=tmp_path)
        assert answer.strip().endswith(f"site-packages/edgeseg/calibration_data/{network}.json")


@pytest.mark.slow
def test_doctor_finds_the_native_kernels_and_an_engine(device: Path, tmp_path: Path) -> None:
    found = json.loads(succeed(device / "edgeseg", "doctor", "--json", cwd=tmp_path))
    assert found["schema"] == "edgeseg.doctor/1"
    assert found["kernels"]["native"] is True
    assert found["backends"]["onnxruntime"]["usable"] is True
    assert found["torch"] is None


@pytest.mark.slow
def test_export_without_torch_says_what_to_install(device: Path, tmp_path: Path) -> None:
    weights = tmp_path / "erfnet.safetensors"
    weights.write_bytes(b"")
    done = command(device / "edgeseg", "export", "erfnet", "--weights", weights, cwd=tmp_path)
    assert done.returncode == 3
    assert "pip install 'edgeseg[build]'" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@needs_ready_bundle
def test_ready_bundle_runs_without_torch(device: Path, tmp_path: Path) -> None:
    image = tmp_path / "street.png"
    frame, _ = scene(3, 512, 1024)
    cv2.imwrite(str(image), frame)
    out = tmp_path / "out"
    summary = json.loads(
        succeed(
            *(device / "edgeseg", "run", "--input", image, "--save", out, "--json"),
            cwd=tmp_path,
            XDG_CACHE_HOME=str(tmp_path / "cache"),
        )
    )
    assert (summary["frames"], summary["corrupt"]) == (1, 0)
    assert summary["precision"] == "int8"
    assert summary["weights"]
    (score_file,) = out.rglob("*.npy")
    score = np.load(score_file)
    assert score.dtype == np.float16
    assert score.shape == Bundle.open(READY).size
    assert score.max() > score.min()


@pytest.mark.slow
@needs_ready_bundle
def test_ready_bundle_is_made_of_the_shipped_weights() -> None:
    network = Bundle.open(READY).manifest.network
    weights = shipped_weights(network)
    assert weights is not None
    frame, _ = scene(0, 512, 1024)
    rgb = torch.from_numpy(np.ascontiguousarray(frame[..., ::-1])).permute(2, 0, 1)[None]
    with torch.inference_mode():
        logits = load_network(network, weights)(rgb.float() / 255)[0]
    with Session(READY, backend="onnxruntime") as session:
        labels = session.run(frame).class_map
    # INT8 keeps 98.7% of the labels here; the published MiDE-Net has 23% in common with ours.
    assert (logits[:NUM_KNOWN].argmax(0).numpy() == labels).mean() > 0.97


@needs_ready_bundle
def test_shipped_ranges_and_bundle_name_the_shipped_weights() -> None:
    manifest = Bundle.open(READY).manifest
    ranges = json.loads((ROOT / "calibration_data" / f"{manifest.network}.json").read_text())
    name = shipped_metadata(manifest.network)["weights_name"]
    assert ranges["provenance"]["weights_name"] == manifest.weights_name == name


@needs_ready_bundle
def test_ready_bundle_is_small_and_whole() -> None:
    bundle = Bundle.open(READY)
    assert sum(p.stat().st_size for p in READY.iterdir()) < MAX_READY_BYTES
    assert {p.name for p in READY.iterdir()} == {"bundle.json", *bundle.manifest.files}
    assert bundle.manifest.precision == "int8"
    # A threshold for every scorer: without one, `edgeseg run` reports no regions.
    assert all(d.threshold is not None for d in bundle.manifest.scorers.values())
    assert bundle.manifest.weights_name
    assert bundle.manifest.license
