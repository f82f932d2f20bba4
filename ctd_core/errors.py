"""Errors that a user can act on: each message names the thing that is wrong and the way out."""


class CtdError(Exception):
    """The work failed for a reason that the message explains.

    exit_status: of the command that fails with it.
    """

    exit_status = 1


class UsageError(CtdError):
    """What the user asked for cannot be done as asked."""

    exit_status = 2


class Interrupted(CtdError):
    """The user asked for an end before the work was done; the message says how to go on."""

    exit_status = 130  # as of what Ctrl-C ends


class Recurring(CtdError):
    """A failure that would come again however often the same work is tried."""


class TokenizerError(UsageError):
    """A tokenizer that cannot be loaded, or that cannot spell the text it is given."""


class DocumentError(CtdError):
    """A document that a tokenizer pair cannot spell alike. `reason` is the name under which it is counted."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def first_line(error: Exception) -> str:
    """An error of a library in one line: its kind, and the first line of what it says."""
    return f"{type(error).__name__}: {(str(error).splitlines() or ['no message'])[0]}"
