"""Which options stand on the command line: a default is indistinguishable by its value alone."""

import typer

__all__ = ["given"]


def given(context: typer.Context, *names: str) -> list[str]:
    """Of these parameters, those that the user gave, as options: ``max_noise``: ``--max-noise``.

    Args:
        context: of the command.
        names: of its function's parameters, whose options must be called alike.
    """
    # Compared by name, since some versions of typer bring a click of their own.
    sources = {name: context.get_parameter_source(name) for name in names}
    return [
        f"--{name.replace('_', '-')}"
        for name, source in sources.items()
        if source is not None and source.name == "COMMANDLINE"
    ]
