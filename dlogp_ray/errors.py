"""What a caller can catch, and the exit codes of every command.

A job ends with the highest code that applies.
"""

from enum import IntEnum

from dlogp_ray.addresses import without_credentials
from dlogp_ray.status import Status


class ExitCode(IntEnum):
    """How a command ended."""

    OK = 0
    REFUSED = 2
    """Refused before work began: a bad config, corpus, checkpoint or pair."""
    REJECTED_ROWS = 3
    """More rows were rejected than ``max_rejected`` allows, or sample ids occur twice."""
    FAILED_UNITS = 4
    """Some units could not be done, and the others are; or Ray ended the job before its end."""
    MISMATCH = 5
    """The run exists and was made from something else, or the store is not fit."""
    DAMAGED = 6
    """An object of the run is missing or can't be read."""
    INTERRUPTED = 130
    """Stopped by SIGINT; the same command resumes."""
    CLOSED = 141
    """Whoever read standard output closed it, as ``head`` does; as of a process that SIGPIPE "
    "ends."""
    TERMINATED = 143
    """Stopped by SIGTERM; the same command resumes."""


class DlogpError(Exception):
    """An error that the user can act on; its text says what was expected, what came, what to do."""

    exit_code = ExitCode.REFUSED

    def __init__(self, text: object = "") -> None:
        """Without credentials: a server's address stands in what libraries say of it."""
        super().__init__(without_credentials(str(text)))


class Refused(DlogpError):
    """The job is refused before any work: nothing has been written."""


class FingerprintMismatch(DlogpError):
    """The run exists, and its inputs, policies or settings are not these."""

    exit_code = ExitCode.MISMATCH


class InputChanged(DlogpError):
    """What a job is made from is not what it was when that was planned; it is named."""

    exit_code = ExitCode.MISMATCH


class UnfitStore(DlogpError):
    """The store does not do what a run needs: objects that are created once."""

    exit_code = ExitCode.MISMATCH


class StoreFailed(DlogpError):
    """Something could not be read or written; what is committed stays, the same command resumes."""

    exit_code = ExitCode.FAILED_UNITS


class Unanswered(DlogpError):
    """A store does not answer, or not now, as often as it was asked; the same command asks again.

    No ``OSError``: nobody takes it for something that is missing, damaged or refused for good.
    """

    exit_code = ExitCode.FAILED_UNITS


class Damaged(DlogpError):
    """An object of a run is missing or can't be read; it is named, with what to do."""

    exit_code = ExitCode.DAMAGED


class Stopped(DlogpError):
    """The job was asked to stop; what is committed stays, and the same command resumes."""

    exit_code = ExitCode.TERMINATED


class Interrupted(Stopped):
    """The same, by SIGINT at the command line."""

    exit_code = ExitCode.INTERRUPTED


class RowRejected(Exception):
    """One corpus row cannot be scored; it is written with this status and error.

    Args:
        status: The cause, the table's ``status``.
        error: What was expected and what came, the table's ``error``.
    """

    def __init__(self, status: Status, error: str) -> None:
        """Keep both for the table."""
        super().__init__(error)
        self.status = status
        self.error = error
