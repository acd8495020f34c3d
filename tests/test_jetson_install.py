"""The archive's install script and the checklist, on a device that is played here.

What is real: the script, the virtual environment, pip and its offline install. What is played: the
processor's name, nvpmodel, jetson_clocks, tegrastats, and edgeseg itself.
"""

import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

pytest.importorskip("onnx", reason="exporting needs onnx")

from edgeseg.bundle import Bundle
from edgeseg.export.jetson.archive import device_wheels, write_archive
from edgeseg.export.jetson.boards import JetPack
from edgeseg.runtime.ready import ready_bundle
from tests.conftest import ROOT
from tests.jetson_wheels import board_for, fake_edgeseg, make_wheel, pip_wheel
from tools.check_jetson_result import faults

SCRIPT = ROOT / "edgeseg/export/jetson/device/install.sh"
PYTHON = "{}.{}".format(*sys.version_info)

GOLDEN = b"""import os, sys
print("golden", *sys.argv[1:])
sys.exit(int(os.environ.get("GOLDEN_CODE", "0")))
"""
MAIN = b"""import json, sys
if sys.argv[1] == "--version":
    print("edgeseg 0")
elif "--json" in sys.argv:
    times = {"p50": 9.5, "p90": 9.6, "p99": 9.9, "max": 10.0}
    print(json.dumps({"kind": "measured", "results": [{"latency_ms": times}]}))
else:
    print("edgeseg", *sys.argv[1:])
"""
# What the board does is kept in files beside it, so that what is not put back shows.
NVPMODEL = """#!/bin/sh
here=$(dirname "$0")
case $1 in
-q) printf 'NV Power Mode: %s\\n%s\\n' MODE "$(cat "$here/mode")" ;;
-m) echo "mode $2" >>"$here/log"; [ "$2" = 2 ] || echo "$2" >"$here/mode" ;;
esac
"""
JETSON_CLOCKS = """#!/bin/sh
echo "clocks $*" >>"$(dirname "$0")/log"
[ "$1" != --store ] || [ ! -e "$2" ] || exit 1
[ "$1" != --store ] || touch "$2"
"""
TEGRASTATS = """#!/bin/sh
echo 'RAM 2/7 MB GR3D_FREQ 97% cpu@50C gpu@51.5C VDD_IN 6000mW/6000mW'
echo 'RAM 2/7 MB GR3D_FREQ 99% cpu@50C gpu@51.5C VDD_IN 7000mW/6500mW'
exec sleep 60
"""
# Makes what looks like an environment, installs nothing, and runs the rest with played modules.
FAKE_PYTHON = f"""#!/bin/sh
here=$(dirname "$0")
if [ "$1 $2" = "-m venv" ]; then
    for folder; do :; done
    mkdir -p "$folder/bin" && touch "$folder/pyvenv.cfg"
    cp "$0" "$folder/bin/python" && cp -r "$here/modules" "$folder/bin"
    exit
fi
case $1 in
*/pip) exit 0 ;;
esac
export PYTHONPATH="$here/modules"
exec {sys.executable} -S "$@"
"""
MODULES = {
    "cv2.py": b"__version__ = '4'",
    "numpy.py": b"__version__ = '1.26.4'",
    "tensorrt.py": b"__version__ = '10.3.0'",
    "edgeseg/__init__.py": b"__version__ = '0'",
    "edgeseg/__main__.py": MAIN,
    "edgeseg/runtime/__init__.py": b"",
    "edgeseg/runtime/golden.py": GOLDEN,
}
CONFIGURATION = """< POWER_MODEL ID=0 NAME=15W >
CPU_ONLINE CORE_0 1
< POWER_MODEL ID=1 NAME=7W >
< POWER_MODEL ID=2 NAME=REBOOT >
"""


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("archive")
    wheels = folder / "wheels"
    wheels.mkdir()
    modules = {"__main__": MAIN, "runtime/__init__": b"", "runtime/golden": GOLDEN}
    fake_edgeseg(wheels, "py3-none-any", modules=modules)
    make_wheel(wheels, "numpy", "1.26.4", files={"numpy.py": b"__version__ = '1.26.4'\n"})
    pip_wheel(wheels)
    # As if it were the device's, so that it installs here.
    own = next(wheels.glob("edgeseg-*"))
    board = board_for(JetPack("here", "10.3.0", PYTHON))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("edgeseg.export.jetson.archive.build_wheel", lambda: own)
        found = device_wheels(board, wheels)
    destination = folder / "road-jetson-orin-nano-8.tar.gz"
    write_archive(Bundle.open(ready_bundle()), board, found, destination)
    return destination


@pytest.fixture
def device(archive: Path, tmp_path: Path) -> Path:
    """A folder with the unpacked archive, ``bin`` of the played programs, and ``root``."""
    with tarfile.open(archive) as packed:
        packed.extractall(tmp_path, filter="data")
    programs = {
        "uname": "#!/bin/sh\necho aarch64\n",
        "nvpmodel": NVPMODEL,
        "jetson_clocks": JETSON_CLOCKS,
        "tegrastats": TEGRASTATS,
        "sudo": '#!/bin/sh\nexec "$@"\n',
        "dpkg-query": "#!/bin/sh\nprintf 6.2\n",
        "fake-python": FAKE_PYTHON,
    }
    for name, content in MODULES.items():
        path = tmp_path / "bin" / "modules" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    for name, text in programs.items():
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "bin" / "mode").write_text("0\n")
    (tmp_path / "bin" / "log").write_text("")
    files = {
        "etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 1\n",
        "etc/nvpmodel.conf": CONFIGURATION,
        "proc/device-tree/model": "NVIDIA Jetson Orin Nano Developer Kit\0",
        "sys/class/devfreq/17000000.gpu/cur_freq": "624750000\n",
        "sys/class/devfreq/17000000.gpu/max_freq": "624750000\n",
        "sys/class/thermal/thermal_zone0/temp": "51500\n",
        "sys/class/thermal/cooling_device0/type": "pwm-fan\n",
        "sys/class/thermal/cooling_device0/cur_state": "2\n",
        "sys/class/hwmon/hwmon3/oc1_event_cnt": "4\n",
    }
    for name, text in files.items():
        (tmp_path / "root" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "root" / name).write_text(text)
    return tmp_path


def environment(device: Path, **more: str) -> dict[str, str]:
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "PIP", "VIRTUAL"))}
    return {
        **env,
        "PATH": f"{device / 'bin'}:{os.environ['PATH']}",
        "PYTHON": "fake-python",
        **more,
    }


def install(device: Path, *options: str, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [device / "road-jetson-orin-nano-8" / "install.sh", *options],
        cwd=device,
        env=environment(device, **more),
        capture_output=True,
        text=True,
        check=False,
    )


def test_scripts_are_posix_shell_without_faults():
    subprocess.run(["sh", "-n", SCRIPT], check=True)
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed (apt install shellcheck)")
    done = subprocess.run(["shellcheck", SCRIPT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
def test_installs_offline_tests_and_measures(device):
    done = install(device, "--backend", "onnxruntime", "--venv", "my venv", PYTHON=sys.executable)
    assert done.returncode == 0, done.stderr
    assert "golden bundle --backend onnxruntime" in done.stdout
    assert "edgeseg profile bundle --device jetson --backend onnxruntime" in done.stdout
    python = device / "my venv" / "bin" / "python"
    ask = "import numpy, sys; print(numpy.__file__, sys.prefix)"
    answer = subprocess.run([python, "-c", ask], capture_output=True, text=True, check=True).stdout
    assert answer.count("my venv") == 2
    # What JetPack has must be seen.
    assert "include-system-site-packages = true" in (device / "my venv/pyvenv.cfg").read_text()


def test_builds_and_measures_with_tensorrt(device):
    done = install(device)
    assert done.returncode == 0, done.stderr
    assert "golden bundle --backend tensorrt" in done.stdout
    assert "edgeseg profile bundle --device jetson --backend tensorrt" in done.stdout


@pytest.mark.parametrize("code", ["4", "8"])
def test_a_self_test_that_fails_ends_the_installation_with_its_code(device, code):
    done = install(device, GOLDEN_CODE=code)
    assert done.returncode == int(code)
    assert "do not use it" in done.stderr
    assert "profile" not in done.stdout


def test_without_tensorrt_it_says_what_to_install(device):
    (device / "bin" / "modules" / "tensorrt.py").write_text("raise ImportError")
    done = install(device)
    assert done.returncode == 3
    assert "nvidia-jetpack" in done.stderr.splitlines()[-1]
    assert "golden" not in done.stdout


@pytest.mark.parametrize("name", ["bundle/body.onnx", "wheels/numpy-1.26.4-py3-none-any.whl"])
def test_a_damaged_file_is_found_before_anything_is_done(device, name):
    path = device / "road-jetson-orin-nano-8" / name
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    done = install(device)
    assert done.returncode == 4
    assert name in done.stderr + done.stdout
    assert not (device / "road-jetson-orin-nano-8" / "venv").exists()


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--venv"], 2, "--venv needs a value"),
        (["--fast"], 2, "option '--fast' is unknown"),
        (["--backend", "openvino"], 2, "neither tensorrt nor onnxruntime"),
        (["--venv", "bin"], 2, "is no virtual environment"),
    ],
)
def test_wrong_options_change_nothing(device, options, code, said):
    before = sorted(device.rglob("*"))
    done = install(device, *options)
    assert done.returncode == code
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert sorted(device.rglob("*")) == before


def test_another_machine_and_another_python_are_refused(device):
    old = device / "bin" / "old-python"
    old.write_text("#!/bin/sh\necho 3.8\n")
    old.chmod(0o755)
    done = install(device, PYTHON="old-python")
    assert done.returncode == 3
    assert f"for Python {PYTHON} and this is 3.8" in done.stderr
    assert "./c" in done.stderr
    (device / "bin" / "uname").write_text("#!/bin/sh\necho x86_64\n")
    done = install(device)
    assert done.returncode == 3
    assert "this machine is x86_64" in done.stderr


# --- tools/jetson_checklist.py --------------------------------------------------------------------


def checklist(device: Path, archive: Path, *options: str, answers: str = "") -> str:
    script = ROOT / "tools/jetson_checklist.py"
    common = ["--root", device / "root", "--seconds", "0.1"]
    common += ["--work", device / "work", "-o", device / "result.json"]
    done = subprocess.run(
        [sys.executable, script, archive, *map(str, common), *options],
        cwd=device,
        env=environment(device),
        input=answers,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_checklist_measures_every_mode_and_puts_everything_back(device, archive):
    checklist(device, archive, "--yes")
    result = json.loads((device / "result.json").read_text())
    assert faults(result) == []
    assert [mode["name"] for mode in result["modes"]] == ["15W", "7W", "REBOOT"]
    first, second, third = result["modes"]
    assert first["skipped"] is second["skipped"] is None
    assert "reboot" in third["skipped"]
    assert second["profile"]["results"][0]["latency_ms"]["p50"] == 9.5
    assert second["clocks"]["gpu_highest_mhz"] == 624.75
    assert second["power_w"] == 6.5
    assert second["gpu_load_percent"] == 99
    # A running fan is no throttling.
    assert second["throttling"] == {
        "temperature_c": 51.5,
        "cooling_active": False,
        "overcurrent_events": 0,
    }
    assert result["device"]["l4t"] == "36.4.3"
    assert result["device"]["jetpack"] == "6.2"
    assert result["versions"]["numpy"] == "1.26.4"
    log = (device / "bin" / "log").read_text().split("\n")[:-1]
    changes = [line.partition(f" {device}")[0] for line in log]
    locked = ["clocks --store", "clocks ", "clocks --restore"]
    assert changes == [*locked, "mode 1", *locked, "mode 2", "mode 0"]
    assert (device / "bin" / "mode").read_text() == "0\n"


def test_what_is_declined_is_left_alone(device, archive):
    checklist(device, archive, answers="n\n" * 5)
    result = json.loads((device / "result.json").read_text())
    assert faults(result) == []
    assert [mode["skipped"] for mode in result["modes"]] == [None, "declined", "declined"]
    assert result["modes"][0]["clocks_locked"] is False
    assert (device / "bin" / "log").read_text() == ""


def test_a_dry_run_says_all_and_does_nothing(device, archive):
    before = sorted(device.rglob("*"))
    said = checklist(device, archive, "--dry-run")
    for part in (
        "install.sh",
        "nvpmodel -m 1",
        "jetson_clocks --restore",
        "edgeseg.runtime.golden",
    ):
        assert part in said
    assert sorted(device.rglob("*")) == before
    assert (device / "bin" / "log").read_text() == ""


def test_faults_of_a_result_are_named(device, archive):
    checklist(device, archive, "--no-power")
    result = json.loads((device / "result.json").read_text())
    assert faults(result) == []
    result["modes"][0]["profile"]["kind"] = "estimated"
    result["steps"][1]["exit_code"] = 8
    del result["device"]["model"]
    assert faults(result) == [
        "device.model is missing, not text",
        "step 'self-test' ended with 8",
        "mode 15W: profile is estimated, not measured",
        "no mode has a measured latency",
    ]
    assert faults({"schema": "other"}) == ["schema is not 'edgeseg.jetson-result/1'"]
