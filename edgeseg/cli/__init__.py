"""The command line: one module per command, each parses, calls one typed function and prints.

Nothing heavy is imported until a command runs, so that ``edgeseg --help`` stays quick.
"""

import contextlib
import errno
import io
import os
import select
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from edgeseg import __version__
from edgeseg.cli.bundle import bundle_app
from edgeseg.cli.calibrate_temperature import calibrate_temperature_command
from edgeseg.cli.distill import distill_command
from edgeseg.cli.doctor import doctor_command
from edgeseg.cli.eval import eval_command
from edgeseg.cli.export import export_command
from edgeseg.cli.finetune_void import finetune_void_command
from edgeseg.cli.networks import networks_command
from edgeseg.cli.profile import profile_command
from edgeseg.cli.prune import prune_command
from edgeseg.cli.quantize import quantize_command
from edgeseg.cli.report import report_command
from edgeseg.cli.run import run_command
from edgeseg.cli.train import train_command
from edgeseg.cli.weights import weights_app
from edgeseg.errors import EdgesegError, UsageError

__all__ = ["app", "main"]

# Of Click, which newer versions of Typer carry under a private name and older ones import.
_ParsingError: type = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")

app = typer.Typer(
    name="edgeseg",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    # Plain help: importing what draws boxes takes longer than all the rest of --help.
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("networks")(networks_command)
app.command("train")(train_command)
app.command("finetune-void")(finetune_void_command)
app.command("distill")(distill_command)
app.command("prune")(prune_command)
app.command("quantize")(quantize_command)
app.command("calibrate-temperature")(calibrate_temperature_command)
app.command("export")(export_command)
app.command("run")(run_command)
app.command("eval")(eval_command)
app.command("profile")(profile_command)
app.command("report")(report_command)
app.command("doctor")(doctor_command)
app.add_typer(weights_app, name="weights")
app.add_typer(bundle_app, name="bundle")


def _print_version(value: bool) -> None:
    if value:
        print(f"edgeseg {__version__}")
        raise typer.Exit


@app.callback()
def _edgeseg(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Road-scene segmentation with pixel-wise anomaly scores, for embedded hardware.

    A network goes in, a bundle comes out, and the bundle gives a class map and an anomaly score
    for every camera frame at a measured latency.
    """


def _one_line(error: Exception) -> str:
    # Engines and file names put line breaks into messages.
    return " ".join(str(error).split())


def main() -> None:
    """Run the program and exit with the code that the error class carries.

    An unexpected exception becomes one sentence too; ``EDGESEG_TRACEBACK=1`` shows its traceback.
    """
    _escape_what_cannot_be_encoded()
    code = _run()
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _silence_stdout()
    except OSError as error:
        code = code or _output_is_lost(error)
    sys.exit(code)


def _run() -> int:
    """The exit code of the command that the arguments name; errors are printed."""
    try:
        # Not through the app's own call: that answers a closed pipe with 1, and an interruption
        # with the exception that commands end with on purpose.
        command = typer.main.get_command(app)
        with command.make_context(_program_name(), sys.argv[1:]) as context:
            command.invoke(context)
    except typer.Exit as end:
        return end.exit_code
    except EdgesegError as error:
        if os.environ.get("EDGESEG_TRACEBACK"):
            raise
        print(f"edgeseg: {_one_line(error)}", file=sys.stderr)
        return error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        print("edgeseg: interrupted", file=sys.stderr)
        return 130
    except SystemExit as end:
        # What rich makes of a closed pipe, after it silenced stdout.
        if isinstance(end.__context__, BrokenPipeError):
            return 0
        raise
    except Exception as error:
        if isinstance(error, _ParsingError):
            shown: Any = error
            shown.show()
            return int(shown.exit_code)
        if isinstance(error, BrokenPipeError) and _nobody_reads(sys.stdout):
            # The reader of our output went away (`edgeseg … | head`); nothing is left to say.
            _silence_stdout()
            return 0
        if _is_full(error):
            return _output_is_lost(error)
        if os.environ.get("EDGESEG_TRACEBACK"):
            raise
        print(
            f"edgeseg: unexpected {type(error).__name__}: {_one_line(error)}; run again with "
            "EDGESEG_TRACEBACK=1 to see where, and report it",
            file=sys.stderr,
        )
        return 1
    return 0


def _program_name() -> str:
    name = Path(sys.argv[0]).name
    return "python -m edgeseg" if name == "__main__.py" else name


def _escape_what_cannot_be_encoded() -> None:
    """File names need not be text; a finished run must not fail at telling one."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")


def _nobody_reads(stream: Any) -> bool:
    """Whether the other end of a pipe is closed; other pipes than stdout may break too."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        poll = select.poll()
        poll.register(stream.fileno(), 0)
        return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
    return False


def _is_full(error: Exception) -> bool:
    """Whether it says that a stream, which carries no name, has no room; files are named."""
    full = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return isinstance(error, OSError) and error.filename is None and error.errno in full


def _output_is_lost(error: Exception) -> int:
    """Say why no more can be printed; the exit code."""
    _silence_stdout()
    print(
        f"edgeseg: output cannot be written ({getattr(error, 'strerror', None) or error}); "
        "free some space or send it elsewhere",
        file=sys.stderr,
    )
    return UsageError.exit_code


def _silence_stdout() -> None:
    # What is still in its buffer would be tried again, and complained about, on the way out.
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
