"""``edgeseg profile --host``: measured over a real ssh, against an sshd on loopback."""

import getpass
import json
import math
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import time
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from xml.etree import ElementTree

import pytest

from edgeseg.bundle import Bundle
from edgeseg.errors import UsageError
from edgeseg.profiling.devices import device_names
from edgeseg.profiling.remote import agent, loader, reply, ssh
from edgeseg.profiling.remote.host import BEGIN, Host
from edgeseg.profiling.remote.payload import pack
from tests.bundles import make_bundle
from tests.conftest import ROOT
from tests.test_cli import one_line, run_main

SSHD = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin:/usr/bin")
MEASURE = ("--backend", "onnxruntime", "--threads", "1", "--seconds", "0.1")
# What a host need not have. Whatever else is installed here, the agent must do without.
ABSENT = ("typer", "rich", "torch", "onnx", "cv2", "safetensors", "PIL")


@dataclass
class Server:
    """A running sshd, and a host that can be logged in to by a configuration file."""

    folder: Path
    port: int

    @property
    def scratch(self) -> Path:
        """Where the host makes temporary folders."""
        return self.folder / "scratch"

    @property
    def home(self) -> Path:
        return self.folder / "home"

    def config(self, name: str = "config", **changes: str) -> Path:
        """A configuration of ssh in which ``there`` is this host."""
        options = {
            "HostName": "127.0.0.1",
            "Port": str(self.port),
            "User": getpass.getuser(),
            "IdentityFile": str(self.folder / "key"),
            "IdentitiesOnly": "yes",
            "UserKnownHostsFile": str(self.folder / "known_hosts"),
            "GlobalKnownHostsFile": "/dev/null",
            **changes,
        }
        path = self.folder / name
        path.write_text("Host there\n" + "".join(f"  {k} {v}\n" for k, v in options.items()))
        return path

    def python(self, name: str, text: str) -> Path:
        """A program for ``--remote-python``; arguments are -B -c TEXT NONCE LENGTH FOLDER."""
        path = self.folder / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
        return path

    def left(self) -> list[str]:
        """What a run left behind."""
        found = [p.name for folder in (self.scratch, self.home) for p in folder.iterdir()]
        return [name for name in found if name != ".bashrc"]

    def wait_until_clean(self) -> None:
        deadline = time.monotonic() + 30
        while self.left() and time.monotonic() < deadline:
            time.sleep(0.1)
        assert self.left() == []


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def make_key(path: Path) -> str:
    """A new key; the public half without its comment."""
    command = ("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path))
    subprocess.run(command, check=True)
    return " ".join(path.with_suffix(".pub").read_text().split()[:2])


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    if SSHD is None or shutil.which("ssh") is None:
        pytest.skip("there is no sshd or no ssh on this machine (OpenSSH)")
    folder = tmp_path_factory.mktemp("server")
    found = Server(folder, free_port())
    for part in (found.scratch, found.home):
        part.mkdir()
    # What the log-in shell says is no answer, and must not spoil one.
    noise = "echo welcome; echo 0123456789abcdef result {}; printf unfinished; echo careful >&2\n"
    (found.home / ".bashrc").write_text(noise)
    public = make_key(folder / "host_key")
    (folder / "authorized_keys").write_text(make_key(folder / "key") + "\n")
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{found.port} {public}\n")
    block = folder / "site"
    block.mkdir()
    (block / "sitecustomize.py").write_text(
        f"import sys\nfor name in {ABSENT}:\n    sys.modules[name] = None\n"
    )
    found.python("python", f'PYTHONPATH={block} exec {sys.executable} "$@"')
    settings = {
        "Port": found.port,
        "ListenAddress": "127.0.0.1",
        "HostKey": folder / "host_key",
        "AuthorizedKeysFile": folder / "authorized_keys",
        "PidFile": "none",
        "StrictModes": "no",
        "UsePAM": "no",
        "PasswordAuthentication": "no",
        "KbdInteractiveAuthentication": "no",
        "PermitRootLogin": "prohibit-password",
        "SetEnv": f"TMPDIR={found.scratch} HOME={found.home} OMP_NUM_THREADS=1",
    }
    (folder / "sshd_config").write_text("".join(f"{k} {v}\n" for k, v in settings.items()))
    made = Path("/run/sshd")
    own = os.geteuid() == 0 and not made.exists()
    if own:  # what the service's unit does; sshd of root does not start without it
        made.mkdir(mode=0o755)
    log = (folder / "log").open("w+")
    process = subprocess.Popen([SSHD, "-D", "-e", "-f", folder / "sshd_config"], stderr=log)
    try:
        wait_for(found.port, process, folder / "log")
        yield found
    finally:
        process.terminate()
        process.wait()
        log.close()
        if own:
            made.rmdir()


def wait_for(port: int, process: "subprocess.Popen[bytes]", log: Path) -> None:
    for _ in range(100):
        if process.poll() is not None:
            pytest.skip(f"sshd does not start here: {log.read_text().strip()}")
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.1)
    pytest.skip("sshd does not listen")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return make_bundle(tmp_path_factory.mktemp("bundle") / "small")


@pytest.fixture
def program(monkeypatch, capfd, server):
    """``edgeseg profile --host there``: exit code, stdout, stderr; nothing may be left there."""
    monkeypatch.delenv("EDGESEG_TRACEBACK", raising=False)

    def run(*options, host="there", config=None, python=None):
        where = ("--host", host, "--ssh-config", config or server.config())
        python = python or server.folder / "python"
        found = run_main(monkeypatch, capfd, "profile", *options, *where, "--remote-python", python)
        # After a cut connection the host removes its folder by itself, a moment later.
        give_up = time.monotonic() + 30
        while server.left() and time.monotonic() < give_up:
            time.sleep(0.1)
        assert server.left() == []
        return found

    return run


@pytest.fixture
def document(program):
    """The ``--json`` document of a run that must succeed, and what it said beside it."""

    def run(*options, **kwargs):
        code, out, err = program(*options, "--json", **kwargs)
        assert code == 0, err
        return json.loads(out), err

    return run


# --- what is measured


def test_rows_are_those_of_a_measurement_here_and_name_the_host(document, bundle, server):
    found, err = document(bundle, *MEASURE, "--scorer", "msp", "--layers")
    assert (found["schema"], found["kind"], found["device"]) == (
        "edgeseg.profile/1",
        "measured",
        "cpu",
    )
    assert found["host"]["name"] == "there"
    assert found["host"]["machine"] == os.uname().machine
    assert found["host"]["kernels"] == "copied"
    (row,) = found["results"]
    assert (row["host"], row["kind"]) == ("there", "measured")
    assert (row["backend"], row["threads"], row["scorer"]) == ("onnxruntime", 1, "msp")
    assert row["bundle"] == str(bundle)
    assert row["file_bytes"] == Bundle.open(bundle).file_bytes
    latency = row["latency_ms"]
    assert 0 < latency["p50"] <= latency["p90"] <= latency["p99"] <= latency["max"]
    # No OpenCV there: nothing to decode with.
    assert set(row["stages_ms"]) == {"body", "head"}
    assert row["frames"] >= 30
    assert sum(layer["macs"] for layer in row["layers"]) == row["macs"]
    assert err == ""


def test_tables_and_remarks_for_people_name_the_host(program, bundle):
    code, out, err = program(bundle, *MEASURE)
    assert (code, err) == (0, "")
    assert "Measured on there" in out
    assert "welcome" not in out


def test_networks_are_exported_here_first(document, monkeypatch, bundle):
    from edgeseg.cli import profile_job
    from edgeseg.profiling.subjects import from_bundle

    asked = []

    def made(*options):
        asked.append(options)
        return from_bundle(Bundle.open(bundle), options[0])

    monkeypatch.setattr(profile_job, "bundle_of", made)
    found, _ = document("enet", "erfnet", *MEASURE, "--size", "64x128")
    assert [row["host"] for row in found["results"]] == ["there", "there"]
    assert asked == [("enet", None, None, (64, 128)), ("erfnet", None, None, (64, 128))]


def test_a_named_device_gives_the_budgets(document, bundle):
    found, err = document(bundle, *MEASURE, "--device", "orin-nx-16")
    assert (found["device"], found["kind"]) == ("orin-nx-16", "measured")
    assert found["results"][0]["budget_ms"] == pytest.approx(33.3, abs=70)
    assert "only the budgets" in err


def test_checks_reach_ci(program, monkeypatch, bundle, tmp_path):
    from edgeseg.runtime import ready

    reference = make_bundle(tmp_path / "reference", seed=5)
    monkeypatch.setattr(ready, "ready_bundle", lambda: reference)
    baseline, junit = tmp_path / "baseline.json", tmp_path / "junit.xml"
    code, _, err = program(bundle, *MEASURE, "--save-baseline", baseline)
    assert code == 0, err
    options = (bundle, *MEASURE, "--check", "--baseline", baseline, "--junit", junit, "--json")
    code, out, err = program(*options, "--budget-ms", "0.001")
    assert code == 6
    figures = {f["figure"]: f["state"] for f in json.loads(out)["check"]}
    assert figures["p99 latency"] == "exceeded"
    assert figures["macs"] == "ok"
    assert "latency ratio" in figures
    suite = ElementTree.parse(junit).find("testsuite")
    assert suite.get("name") == "edgeseg profile on cpu at there"


@pytest.mark.slow
def test_libraries_of_another_machine_are_built_there(document, monkeypatch, bundle):
    if shutil.which("cc") is None:
        pytest.skip("there is no C compiler on this machine")
    monkeypatch.setattr("platform.machine", lambda: "another")
    found, err = document(bundle, *MEASURE)
    assert found["host"]["kernels"] == "built there"
    assert found["results"][0]["engine"].get("path_reason") in (None, "")
    assert err == ""


def test_without_a_compiler_numpy_works_and_that_is_said(document, monkeypatch, bundle, server):
    python = server.python("bare", f'CC=no-such-compiler exec {server.folder}/python "$@"')
    monkeypatch.setattr("platform.machine", lambda: "another")
    found, err = document(bundle, *MEASURE, python=python)
    assert found["host"]["kernels"] == "numpy"
    assert "install a C compiler" in one_line(err)


# --- what is refused, a sentence each


def refused(found, code, *words):
    got, out, err = found
    assert (got, out) == (code, "")
    line = one_line(err)
    assert all(word in line for word in words), line


def test_an_unknown_key_is_refused_whatever_the_configuration_says(program, bundle, server):
    nobody = server.folder / "nobody_known"
    config = server.config(
        "careless", UserKnownHostsFile=str(nobody), StrictHostKeyChecking="no", CheckHostIP="no"
    )
    refused(program(bundle, config=config), 7, "not known here", f"ssh -F {config} there")
    assert not nobody.exists()


def test_a_changed_key_is_refused(program, bundle, server, tmp_path):
    known = tmp_path / "known"
    known.write_text(f"[127.0.0.1]:{server.port} {make_key(tmp_path / 'other')}\n")
    config = server.config("changed", UserKnownHostsFile=str(known), StrictHostKeyChecking="no")
    refused(program(bundle, config=config), 7, "not the one that is known", "ssh-keygen -R")


def test_a_refused_log_in_says_so(program, bundle, server, tmp_path):
    make_key(tmp_path / "stranger")
    config = server.config("stranger", IdentityFile=str(tmp_path / "stranger"))
    refused(program(bundle, config=config), 7, "refuses the log-in")


def test_a_host_that_does_not_listen_says_so(program, bundle, server):
    config = server.config("silent", Port=str(free_port()))
    refused(program(bundle, config=config), 7, "cannot be reached", "refused")


def test_a_host_without_python_or_numpy_says_what_to_install(program, bundle, server):
    refused(program(bundle, python="/no/python"), 3, "'/no/python'", "--remote-python")
    bare = server.python("no-site", f'exec {sys.executable} -S "$@"')
    refused(program(bundle, python=bare), 3, "no numpy and no onnxruntime or openvino")


def test_an_old_python_is_named(program, bundle, server):
    old = server.python(
        "old",
        f"shift 3; exec {sys.executable} -c "
        f"'import sys; sys.version_info=(3, 8, 10); exec(sys.argv[-1])' \"$@\" '{BEGIN}'",
    )
    refused(program(bundle, python=old), 3, "older than 3.10", "--remote-python")


def test_what_fails_there_keeps_its_exit_code(program, bundle):
    refused(program(bundle, "--backend", "tensorrt"), 3, "on 'there'", "tensorrt")


def test_a_crash_there_is_told_and_cleaned_up(program, bundle, server):
    text = "import os, signal; open('x', 'w'); os.kill(os.getpid(), signal.SIGKILL)"
    crash = server.python("crash", f'cd "$6" && exec {sys.executable} -c "{text}"')
    refused(program(bundle, python=crash), 7, "SIGKILL", "without a result")


def test_a_host_without_room_for_a_folder_says_so(monkeypatch, capfd, bundle, server):
    options = ("--host", "there", "--ssh-config", server.config())
    server.scratch.rmdir()
    try:
        found = run_main(monkeypatch, capfd, "profile", bundle, *options)
    finally:
        server.scratch.mkdir()
    refused(found, 7, "no temporary folder", "mktemp")


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


def test_names_of_programs_are_quoted(program, bundle, server):
    touched = server.folder / "touched"
    got, _, err = program(bundle, python=f"x'; touch {touched}; echo '$(touch {touched})")
    assert got == 3
    assert "cannot be run as Python" in one_line(err)
    assert not touched.exists()


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (("--estimate",), 2, "--estimate"),
        (("--device", "toaster"), 2, "toaster"),
        (("--device", "orin-nx-16", "--mode", "9kW"), 2, "9kW"),
        (("--scorer", "void"), 2, "no scorer"),
        (("--size", "128x256"), 2, "64x128"),
    ],
)
def test_bad_input_never_reaches_the_host(monkeypatch, capfd, tmp_path, options, code, words):
    plain = make_bundle(tmp_path / "plain", void=False)
    monkeypatch.setattr(ssh.subprocess, "Popen", None)
    found = run_main(monkeypatch, capfd, "profile", plain, "--host", "pi", *options)
    refused(found, code, words)


def test_options_of_a_host_without_one_are_refused(monkeypatch, capfd, tmp_path):
    found = run_main(monkeypatch, capfd, "profile", "midenet", "--remote-python", "python3")
    refused(found, 2, "--host")
    found = run_main(
        monkeypatch, capfd, "profile", "midenet", "--host", "pi", "--ssh-config", tmp_path / "no"
    )
    refused(found, 7, "--ssh-config")


# --- what is left behind


@pytest.fixture
def running(server, bundle):
    """A long run in a process of its own, which has begun to measure on the host."""
    options = ("--backend", "onnxruntime", "--threads", "1", "--seconds", "60")
    where = ("--host", "there", "--ssh-config", server.config())
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "edgeseg", "profile", *[bundle] * 60, *options, *where),
            *("--remote-python", server.folder / "python"),
        ],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A shell's background jobs ignore Ctrl-C, and what they start inherits that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    deadline = time.monotonic() + 60
    while not list(server.scratch.glob("*/scratch")):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    yield process
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    process.stderr.close()


def test_ctrl_c_cleans_up_before_it_ends(running, server):
    os.killpg(running.pid, signal.SIGINT)
    assert running.wait(60) == 130
    assert server.left() == []
    assert "Traceback" not in running.stderr.read()


def test_a_killed_program_leaves_nothing(running, server):
    running.kill()
    running.wait()
    server.wait_until_clean()


def test_a_lost_connection_is_told_and_leaves_nothing(running, server):
    children = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
    (client,) = [pid for pid in map(int, children) if name_of(pid) == "ssh"]
    os.kill(client, signal.SIGKILL)
    code, err = running.wait(60), running.stderr.read()
    assert code == 7
    assert "was lost" in one_line(err)
    server.wait_until_clean()


def name_of(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()


# --- what a host may not do


def hostile(server: Server, name: str, *lines: str) -> Path:
    """A Python that prints these after the nonce, and reads what is sent."""
    told = "".join(f"printf '%s %s\\n' \"$4\" '{line}'\n" for line in lines)
    return server.python(name, f"{told}cat >/dev/null")


FACTS = (
    'facts {"python": "3.11", "system": "Linux", "machine": "x", "numpy": true, '
    '"engines": ["onnxruntime"]}'
)


@pytest.mark.parametrize(
    ("line", "code", "words"),
    [
        (r'error {"code": 4, "message": "a\u001b]0;b\u0007c\u202ed [link=x]y"}', 4, "a ]0;b c d"),
        ('error {"code": 130, "message": "odd"}', 1, "odd"),
        ('error {"code": "x", "message": "odd"}', 7, "answered with"),
        ("error 3", 7, "answered with"),
        ("result NaN", 7, "no JSON"),
        ("result {}", 7, "no 'rows'"),
        ("result " + "[" * 3000, 7, "no JSON"),
        ("progress [0, 1]", 7, "answered with"),
    ],
)
def test_hostile_answers_are_refused_in_plain_text(program, bundle, server, line, code, words):
    found = program(bundle, python=hostile(server, "hostile", FACTS, line))
    refused(found, code, words)
    assert found[2].rstrip("\n").isprintable()


def test_facts_are_checked_too(program, bundle, server):
    python = hostile(server, "liar", 'facts {"python": 3}')
    refused(program(bundle, python=python), 7, "answered with")


def test_a_flood_is_cut_off(program, bundle, server):
    flood = server.python("flood", f"printf '%s %s\\n' \"$4\" '{FACTS}'; cat /dev/zero")
    refused(program(bundle, python=flood), 7, "far more")


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
