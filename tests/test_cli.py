"""The program as users meet it: quick help, one sentence for every mistake, the right exit code."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer

import edgeseg
from edgeseg import cli
from edgeseg.cli.sizes import parse_size
from edgeseg.errors import (
    ArtefactError,
    BudgetExceededError,
    EdgesegError,
    GateFailedError,
    InputError,
    MissingDependencyError,
    SafeStateError,
    UsageError,
)

HEAVY = ("torch", "cv2", "onnxruntime", "openvino", "numpy", "onnx", "PIL")


def run_main(monkeypatch, capfd, *arguments):
    """Exit code, stdout and stderr of the program, run in this process."""
    monkeypatch.setattr(sys, "argv", ["edgeseg", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    out, err = capfd.readouterr()
    return caught.value.code or 0, out, err


@pytest.fixture
def edgeseg_program(monkeypatch, capfd):
    monkeypatch.delenv("EDGESEG_TRACEBACK", raising=False)
    return lambda *arguments: run_main(monkeypatch, capfd, *arguments)


def one_line(err):
    assert "Traceback" not in err
    assert err.startswith("edgeseg: ")
    assert err.count("\n") == 1
    return err


# --- help


@pytest.mark.parametrize("argument", ["--help", "--version"])
def test_help_and_version_import_nothing_heavy(argument):
    probe = (
        "import sys; sys.argv = ['edgeseg', sys.argv[1]]\n"
        "import edgeseg.cli\n"
        "try:\n edgeseg.cli.main()\n"
        "except SystemExit as end:\n code = end.code\n"
        f"print(code or 0, [m for m in {HEAVY} if m in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", probe, argument], capture_output=True, text=True, check=True
    )
    assert result.stdout.splitlines()[-1] == "0 []"


def test_python_m_edgeseg_is_the_same_program():
    result = subprocess.run(
        [sys.executable, "-m", "edgeseg", "--version"], capture_output=True, text=True, check=True
    )
    assert result.stdout == f"edgeseg {edgeseg.__version__}\n"


COMMANDS = [c.name for c in cli.app.registered_commands]


def test_the_commands_that_users_rely_on_are_there():
    assert {"networks", "export", "run", "eval", "doctor"} <= set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(edgeseg_program, command):
    for flag in ("--help", "-h"):
        code, out, err = edgeseg_program(command, flag)
        assert (code, err) == (0, "")
        assert "--json" in out


@pytest.mark.parametrize("arguments", [["nonsense"], ["--nonsense"], ["export"]], ids=str)
def test_what_cannot_be_parsed_is_a_usage_error(edgeseg_program, arguments):
    code, out, err = edgeseg_program(*arguments)
    assert code == 2
    assert out == ""
    assert "Traceback" not in err


# --- mistakes of export


@pytest.fixture
def weights(tmp_path):
    """A small network's weights in a file of this project."""
    pytest.importorskip("torch", reason="exporting needs torch")
    from edgeseg.networks.checkpoints import save_network
    from tests.exported import network

    path = tmp_path / "w.safetensors"
    save_network(network("midenet"), path, {"weights_name": "random", "license": "none"})
    return path


def test_an_unknown_network(edgeseg_program):
    code, _, err = edgeseg_program("export", "unet")
    assert code == 2
    assert re.search(r"'unet'.*enet, erfnet, bisenet, midenet", one_line(err))


def test_a_missing_file_of_weights(edgeseg_program, tmp_path):
    path = tmp_path / "absent.pth"
    code, _, err = edgeseg_program("export", "erfnet", "--weights", path, "-o", tmp_path / "b")
    assert code == 7
    assert str(path) in one_line(err)


@pytest.mark.parametrize("content", [b"", b"garbage", b"\x80\x04K\x01.", b"PK\x03\x04" + bytes(99)])
def test_a_file_that_holds_no_weights(edgeseg_program, tmp_path, content):
    path = tmp_path / "w.pth"
    path.write_bytes(content)
    code, _, err = edgeseg_program("export", "erfnet", "--weights", path, "-o", tmp_path / "b")
    assert code == 4
    assert str(path) in one_line(err)
    assert os.listdir(tmp_path) == ["w.pth"]


def test_weights_of_another_network(edgeseg_program, weights):
    code, _, err = edgeseg_program("export", "enet", "--weights", weights)
    assert code == 4
    assert "midenet" in one_line(err)


@pytest.mark.parametrize(
    "size", ["512", "x", "512x", "x1024", "0x0", "-8x64", "512x1024x3", "4x4", "9999x64", "²x²", ""]
)
def test_a_size_that_is_none(edgeseg_program, weights, size):
    code, _, err = edgeseg_program("export", "midenet", "--weights", weights, f"--size={size}")
    assert code == 2
    assert "--size" in one_line(err)


def test_a_size_that_the_network_cannot_take(edgeseg_program, weights, tmp_path):
    code, _, err = edgeseg_program(
        "export", "midenet", "--weights", weights, "--size", "60x128", "-o", tmp_path / "b"
    )
    assert code == 2
    assert "divisible by 8" in one_line(err)


def test_two_precisions_at_once(edgeseg_program, weights):
    code, _, err = edgeseg_program("export", "midenet", "--weights", weights, "--int8", "--fp16")
    assert code == 2
    assert re.search("--int8.*--fp16", one_line(err))


def test_int8_without_calibration(edgeseg_program, weights, tmp_path):
    destination = tmp_path / "b"
    code, _, err = edgeseg_program(
        "export", "midenet", "--weights", weights, "--int8", "-o", destination
    )
    assert code == 2
    assert "--calibration" in one_line(err)
    assert not destination.exists()


@pytest.mark.parametrize("calibration", ["absent", "absent.json"])
def test_calibration_that_is_not_there(edgeseg_program, weights, tmp_path, calibration):
    code, _, err = edgeseg_program(
        "export", "midenet", "--weights", weights, "--int8", "--size", "64x128",
        "--calibration", tmp_path / calibration, "-o", tmp_path / "b",
    )  # fmt: skip
    assert code == 7
    assert calibration in one_line(err)


@pytest.mark.parametrize("temperature", ["0", "-1", "nan", "inf"])
def test_a_temperature_that_is_none(edgeseg_program, weights, tmp_path, temperature):
    code, _, err = edgeseg_program(
        "export", "midenet", "--weights", weights, "--size", "64x128",
        f"--temperature={temperature}", "-o", tmp_path / "b",
    )  # fmt: skip
    assert code == 2
    assert "temperature" in one_line(err)


def test_an_unknown_standalone_scorer(edgeseg_program, weights, tmp_path):
    code, _, err = edgeseg_program(
        "export", "midenet", "--weights", weights, "--size", "64x128", "--standalone", "magic",
        "-o", tmp_path / "b",
    )  # fmt: skip
    assert code == 2
    assert "magic" in one_line(err)


def test_an_occupied_folder_is_refused_before_any_work(edgeseg_program, tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "thesis.txt").write_text("dear")
    code, _, err = edgeseg_program(
        "export", "erfnet", "--weights", tmp_path / "absent", "-o", tmp_path / "b"
    )
    assert code == 2
    assert "other files" in one_line(err)
    assert (tmp_path / "b" / "thesis.txt").read_text() == "dear"


# --- what export says


def test_export_prints_one_json_document(edgeseg_program, weights, tmp_path):
    code, out, err = edgeseg_program(
        "export", "midenet", "--weights", weights, "--size", "64x128", "--json",
        "-o", tmp_path / "b",
    )  # fmt: skip
    assert (code, err) == (0, "")
    document = json.loads(out)
    assert document["schema"] == "edgeseg.export/1"
    assert document["bundle"] == str(tmp_path / "b")
    assert document["size"] == "64x128"
    assert document["weights_name"] == "random"
    assert document["float_parity"]["equal_labels_percent"] >= 99.99
    assert (tmp_path / "b" / "bundle.json").is_file()
    # Again, over the bundle that is there now, for people.
    code, out, _ = edgeseg_program(
        "export", "midenet", "--weights", weights, "--size", "64x128", "-o", tmp_path / "b"
    )
    assert code == 0
    assert "edgeseg run" in out


# --- exceptions and exit codes


@pytest.fixture
def program_that(monkeypatch):
    """A program whose command raises what it is given."""

    def make(error):
        app = typer.Typer(pretty_exceptions_enable=False)

        @app.command()
        def command() -> None:
            raise error

        monkeypatch.setattr(cli, "app", app)

    return make


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (EdgesegError, 1),
        (UsageError, 2),
        (MissingDependencyError, 3),
        (ArtefactError, 4),
        (GateFailedError, 5),
        (BudgetExceededError, 6),
        (InputError, 7),
        (SafeStateError, 8),
    ],
)
def test_every_expected_error_has_its_code(edgeseg_program, program_that, error, code):
    program_that(error("this is wrong; do that"))
    assert edgeseg_program() == (code, "", "edgeseg: this is wrong; do that\n")


def test_an_unexpected_error_is_one_sentence_too(edgeseg_program, program_that):
    program_that(ZeroDivisionError("over\nthe edge"))
    code, _, err = edgeseg_program()
    assert code == 1
    assert re.search(r"ZeroDivisionError.*EDGESEG_TRACEBACK=1", one_line(err))


@pytest.mark.parametrize("error", [ZeroDivisionError("x"), UsageError("x")], ids=repr)
def test_the_traceback_is_there_for_those_who_ask(monkeypatch, program_that, error):
    program_that(error)
    monkeypatch.setenv("EDGESEG_TRACEBACK", "1")
    monkeypatch.setattr(sys, "argv", ["edgeseg"])
    with pytest.raises(type(error)):
        cli.main()


def test_interrupting_is_130(edgeseg_program, program_that):
    program_that(KeyboardInterrupt())
    assert edgeseg_program() == (130, "", "edgeseg: interrupted\n")


def test_a_command_may_end_with_a_code_of_its_own(edgeseg_program, program_that):
    program_that(typer.Exit(3))
    assert edgeseg_program() == (3, "", "")


def test_another_pipe_that_breaks_is_an_error(edgeseg_program, program_that):
    program_that(BrokenPipeError(32, "Broken pipe"))
    code, _, err = edgeseg_program()
    assert code == 1
    assert "BrokenPipeError" in one_line(err)


def script(*lines):
    """A process of a program whose command does this, with pipes as stdout and stderr."""
    text = "\n".join(
        [
            "import sys, typer",
            "from edgeseg import cli",
            "app = typer.Typer(pretty_exceptions_enable=False)",
            "@app.command()",
            "def command():",
            *(f"    {line}" for line in lines),
            "cli.app = app; sys.argv = ['edgeseg']",
            "cli.main()",
        ]
    )
    return [sys.executable, "-c", text]


@pytest.mark.parametrize(
    "lines",
    [
        ["for _ in range(100000): print('x' * 100)"],
        ["sys.stdin.read(1)", "print('all of it at the end')"],
        ["sys.stdin.read(1)", "print('one', flush=True)"],
        ["sys.stdin.read(1)", "from rich.console import Console", "Console().print('a table')"],
    ],
    ids=["buffers", "flushed at the end", "flushed at once", "rich"],
)
def test_a_reader_that_goes_away_is_no_error(lines):
    """`edgeseg networks --json | head -c 1` says nothing on stderr and exits with 0."""
    process = subprocess.Popen(
        script(*lines), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    if "stdin" not in lines[0]:
        process.stdout.read(1)
    process.stdout.close()
    process.stdin.close()
    err = process.stderr.read()
    process.stderr.close()
    assert process.wait(timeout=60) == 0
    assert err == b""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("text", ["x", "x" * 100_000])
def test_output_that_has_no_room(unbuffered, text):
    with Path("/dev/full").open("wb") as full:
        result = subprocess.run(
            script(f"print({text!r})"),
            env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert result.returncode == 2
    assert "output cannot be written (No space left on device)" in one_line(result.stderr)


def test_a_name_that_is_no_text_is_told_in_escapes():
    result = subprocess.run(
        script("print('wrote out\\udcff')"),
        env=os.environ | {"PYTHONIOENCODING": "utf-8:strict"},
        capture_output=True,
        check=False,
    )
    assert (result.returncode, result.stdout) == (0, b"wrote out\\udcff\n")


def test_usage_is_shown_under_the_name_of_the_program(edgeseg_program):
    code, out, err = edgeseg_program("run", "--nonsense")
    assert (code, out) == (2, "")
    assert err.startswith("Usage: edgeseg run [OPTIONS]")
    assert "No such option: --nonsense" in err
    result = subprocess.run(
        [sys.executable, "-m", "edgeseg", "export"], capture_output=True, text=True, check=False
    )
    assert result.returncode == 2
    assert result.stderr.startswith("Usage: python -m edgeseg export ")


# --- sizes


def test_sizes():
    assert parse_size("512x1024") == (512, 1024)
    assert parse_size("8X8192") == (8, 8192)
    for text in ("", "8", "8x", "x8", "7x8", "8x8193", "8 x 8", "+8x8", "1e2x8", "²x8"):
        with pytest.raises(UsageError, match="--size"):
            parse_size(text)
