"""What a training failed with, beside its checkpoints: an error that would come again is not tried again."""

from ctd_core.errors import Recurring
from ctd_core.storage.locations import below, delete_file, names_in, open_to_read, write_text

FAILURE = "failure.txt"


def write_failure(checkpoints: str, error: Recurring) -> None:
    """Write an error that would come again beside the checkpoints of its training."""
    write_text(below(checkpoints, FAILURE), str(error))


def delete_failure(checkpoints: str) -> None:
    """Let a training be tried again."""
    delete_file(below(checkpoints, FAILURE))


def raise_failure(checkpoints: str) -> None:
    """Raise what `write_failure` wrote of this training, if anything."""
    if FAILURE in names_in(checkpoints):
        with open_to_read(below(checkpoints, FAILURE)) as stream:
            raise Recurring(stream.read().decode())
