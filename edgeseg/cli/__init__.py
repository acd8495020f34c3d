"""The command line: one module per command, each parses, calls one typed function and prints.

Nothing heavy is imported until a command runs, so that ``edgeseg --help`` stays quick.
"""

import os
import sys
from typing import Annotated

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
from edgeseg.errors import EdgesegError

__all__ = ["app", "main"]

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
    try:
        app(standalone_mode=True)
    except EdgesegError as error:
        if os.environ.get("EDGESEG_TRACEBACK"):
            raise
        print(f"edgeseg: {_one_line(error)}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("edgeseg: interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        # The reader of our output went away (`edgeseg … | head`); nothing is left to say.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except Exception as error:
        if os.environ.get("EDGESEG_TRACEBACK"):
            raise
        print(
            f"edgeseg: unexpected {type(error).__name__}: {_one_line(error)}; run again with "
            "EDGESEG_TRACEBACK=1 to see where, and report it",
            file=sys.stderr,
        )
        sys.exit(1)
