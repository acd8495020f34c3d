"""Errors that a user can act on; each class carries the exit code of the command line.

The message is one sentence that names the file or option, says what is wrong and what to do.
The command line prints it without a traceback; library callers catch the class.
"""

__all__ = [
    "ArtefactError",
    "BudgetExceededError",
    "EdgesegError",
    "GateFailedError",
    "InputError",
    "MissingDependencyError",
    "SafeStateError",
    "UsageError",
]


class EdgesegError(Exception):
    """Base of all expected errors."""

    exit_code = 1


class UsageError(EdgesegError):
    """An option or argument is wrong, or asks for something that the bundle does not have."""

    exit_code = 2


class MissingDependencyError(EdgesegError):
    """A package, engine or device that the request needs is not there."""

    exit_code = 3


class ArtefactError(EdgesegError):
    """A checkpoint, bundle, engine or data file is damaged, unknown or made for something else."""

    exit_code = 4


class GateFailedError(EdgesegError):
    """The accuracy gate did not hold; nothing was written."""

    exit_code = 5


class BudgetExceededError(EdgesegError):
    """A latency, size or count budget was exceeded."""

    exit_code = 6


class InputError(EdgesegError):
    """A data folder, frame or camera is missing, unreadable or was lost."""

    exit_code = 7


class SafeStateError(EdgesegError):
    """The run stopped in the safe state."""

    exit_code = 8
