"""The parts of ``edgeseg profile --host``, without a host: names, answers, what is sent."""

import json
import math
import re
import tarfile
from copy import deepcopy
from io import BytesIO

import pytest

from edgeseg.bundle import Bundle
from edgeseg.errors import UsageError
from edgeseg.profiling.devices import device_names
from edgeseg.profiling.remote import agent, loader, reply
from edgeseg.profiling.remote.host import Host
from edgeseg.profiling.remote.payload import pack
from tests.bundles import make_bundle

# --- names


@pytest.mark.parametrize(
    "name",
    [
        "-oProxyCommand=touch /tmp/x",
        "root@-oProxyCommand=x",
        "a b",
        "host;id",
        "$(id)",
        "`id`",
        "u'@host",
        "host\n",
        "host\x1b[2J",
        "",
        "@host",
        "ssh://host/path",
        "ssh://-x",
    ],
)
def test_hosts_that_ssh_or_a_shell_could_misread_are_refused(name):
    with pytest.raises(UsageError, match="is no host"):
        Host(name)


@pytest.mark.parametrize(
    "name", ["pi", "pi@board", "a.b@10.0.0.7", "ssh://pi@board:2222", "ssh://u@[fe80::1]:22"]
)
def test_hosts_stand_behind_all_options(name):
    command = Host(name).command("ssh", "n", 1, ask=False)
    assert command[-3:-1] == ["--", name]
    assert command.index("StrictHostKeyChecking=yes") < command.index("--")
    assert "-F" not in command


def test_every_log_in_shell_passes_the_command_on():
    command = Host("pi").command("ssh", "n", 1, ask=False)[-1]
    assert not set(command) & set("\n\\!")


@pytest.mark.parametrize("python", ["-c", "", "py\x1bthon"])
def test_programs_that_are_options_are_refused(python):
    with pytest.raises(UsageError, match="is no program"):
        Host("pi", python=python)


# --- answers


STATE = {
    **{"governor": "performance", "clock_mhz": 2000.0, "temperature_c": None},
    **{"power_mode": None, "throttle_count": 3},
}
ANSWER = {
    **{"kernels": "copied", "processor": "p", "device": "cpu", "here": True, "note": ""},
    "rows": [
        {
            **{"latency_ms": [1.0, 2], "stages_ms": {"body": 1.0}, "fps_pipelined": None},
            **{"memory_bytes": 5, "energy_joule": None, "energy_source": None},
            **{"before": STATE, "after": None, "verdict": "comparable", "reasons": []},
            **{"backend": "onnxruntime", "threads": 1, "notes": [], "ratios": None},
            "engine": {"provider": "CPU", "threads": 1, "gpu": None, "graph": False},
        }
    ],
}


def test_an_answer_is_read_as_it_was_told():
    found = reply.read_reply(json.loads(json.dumps(ANSWER)), ["msp"])
    (row,) = found.rows
    assert row.found.latency_ms.tolist() == [1.0, 2.0]
    assert row.found.before.clock_mhz == 2000.0
    assert row.describe() == ANSWER["rows"][0]["engine"]
    assert (row.scorer, row.ratios, found.device.name) == ("msp", None, "cpu")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("rows",), []),
        (("rows",), [1]),
        (("rows",), {}),
        (("device",), "toaster"),
        (("device",), ["cpu"]),
        (("kernels",), "\x1b[2J"),
        (("here",), 1),
        (("note",), None),
        (("rows", 0, "latency_ms"), []),
        (("rows", 0, "latency_ms"), [0.0]),
        (("rows", 0, "latency_ms"), [1.0] * 2001),
        (("rows", 0, "latency_ms"), [math.inf]),
        (("rows", 0, "latency_ms"), ["1"]),
        (("rows", 0, "latency_ms"), [True]),
        (("rows", 0, "latency_ms"), [10**400]),
        (("rows", 0, "stages_ms"), {"a[red]": 1.0}),
        (("rows", 0, "stages_ms"), {f"s{i}": 1.0 for i in range(17)}),
        (("rows", 0, "backend"), "[link=http://x]"),
        (("rows", 0, "threads"), -1),
        (("rows", 0, "threads"), 1.5),
        (("rows", 0, "verdict"), "fine"),
        (("rows", 0, "reasons"), [1]),
        (("rows", 0, "before", "clock_mhz"), "fast"),
        (("rows", 0, "before", "throttle_count"), math.nan),
        (("rows", 0, "engine"), {"a": []}),
        (("rows", 0, "ratios"), [0]),
    ],
)
def test_answers_out_of_their_range_are_refused(path, value):
    changed = deepcopy(ANSWER)
    place = changed
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(ValueError, match=r"."):
        reply.read_reply(changed, ["msp"])
    del place[path[-1]]
    with pytest.raises(ValueError, match=f"no '{path[-1]}'"):
        reply.read_reply(changed, ["msp"])


def test_texts_lose_what_terminals_obey():
    changed = deepcopy(ANSWER)
    changed["rows"][0]["reasons"] = ["a\x1b[31mb\nc\x9bd" + "x" * 1000]
    (reason,) = reply.read_reply(changed, ["msp"]).rows[0].found.reasons
    assert reason.startswith("a [31mb c d")
    assert reason.isprintable()
    assert len(reason) == 300


# --- the parts that run there


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return make_bundle(tmp_path_factory.mktemp("bundle") / "small")


def test_only_what_is_needed_is_packed(bundle, tmp_path):
    (bundle / "private.txt").write_text("not listed by the manifest")
    opened = Bundle.open(bundle)
    with pack([opened], libraries=False, reference=False) as file:
        data = file.read()
    (bundle / "private.txt").unlink()
    target = tmp_path / "target"
    loader.unpack(BytesIO(data), len(data), str(target))
    names = {p.relative_to(target).as_posix() for p in target.rglob("*") if p.is_file()}
    assert "edgeseg/profiling/remote/agent.py" in names
    assert {f"edgeseg/profiles/{n}.toml" for n in device_names()} <= names
    assert {n for n in names if n.startswith("bundles/0/")} == {
        "bundles/0/bundle.json",
        *(f"bundles/0/{n}" for n in opened.manifest.files),
    }
    others = {n for n in names if n.endswith((".so", ".0", ".pyc", ".safetensors"))}
    assert others == {"bundles/0/head.safetensors"}
    assert not {n for n in names if re.match(r"edgeseg/(cli|networks|weights|training)/", n)}


@pytest.mark.parametrize(
    ("name", "kind"),
    [("../out", "0"), ("/out", "0"), ("a/../../out", "0"), ("link", "2"), ("pipe", "6")],
)
def test_nothing_is_unpacked_beside_the_folder(tmp_path, name, kind):
    out = BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        entry = tarfile.TarInfo(name)
        entry.type, entry.linkname = kind.encode(), "/etc/passwd"
        archive.addfile(entry)
    data = out.getvalue()
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(ValueError, match="no plain file"):
        loader.unpack(BytesIO(data), len(data), str(folder))
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]
    assert not list(folder.iterdir())


def test_half_a_file_is_noticed(bundle, tmp_path):
    with pack([Bundle.open(bundle)], libraries=False, reference=False) as file:
        data = file.read()
    with pytest.raises((EOFError, tarfile.TarError)):
        loader.unpack(BytesIO(data[: len(data) // 2]), len(data), str(tmp_path))


@pytest.mark.parametrize(
    ("board", "gpu", "engines", "name", "words"),
    [
        (None, None, (), "cpu", ""),
        ("Raspberry Pi 5 Model B Rev 1.0", None, ("onnxruntime",), "raspberry-pi-5", ""),
        ("NVIDIA Jetson Orin NX 16GB", None, ("tensorrt",), "orin-nx-16", ""),
        ("NVIDIA Jetson Orin NX 16GB", None, ("onnxruntime",), "cpu", "no tensorrt"),
        (None, "NVIDIA GeForce RTX 4090", ("tensorrt",), "rtx-4090", ""),
        ("NVIDIA Jetson Nano Developer Kit", None, ("tensorrt",), "cpu", "processor"),
        ("some other board", "some other card", ("tensorrt",), "cpu", ""),
    ],
)
def test_a_host_is_measured_as_what_it_is(monkeypatch, board, gpu, engines, name, words):
    monkeypatch.setattr(
        agent.importlib.util, "find_spec", lambda wanted: True if wanted in engines else None
    )
    device, here, note = agent.detect(lambda: board, lambda: gpu)
    assert (device.name, here) == (name, True)
    assert words in note
    assert bool(note) is bool(words)
