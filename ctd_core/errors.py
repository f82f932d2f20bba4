"""Errors that a user can act on: each message names the thing that is wrong and the way out."""


class CtdError(Exception):
    """The work failed for a reason that the message explains; the command exits with status 1."""


class UsageError(CtdError):
    """What the user asked for cannot be done as asked; the command exits with status 2."""


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
