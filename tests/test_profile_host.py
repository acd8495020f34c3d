"""``edgeseg profile --host``: measured over a real ssh, against an sshd on loopback."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from xml.etree import ElementTree

import pytest

from edgeseg.bundle import Bundle
from edgeseg.profiling.remote import ssh
from edgeseg.profiling.remote.host import BEGIN
from tests.bundles import make_bundle
from tests.conftest import ROOT
from tests.ssh_host import Server, free_port, make_key, serving
from tests.test_cli import one_line, run_main

MEASURE = ("--backend", "onnxruntime", "--threads", "1", "--seconds", "0.1")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("server")) as found:
        yield found


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
