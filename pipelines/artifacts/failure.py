"""What a training failed with, beside its checkpoints: an error that would come again is not tried again."""

from ctd_core.errors import Recurring
from ctd_core.storage.locations import below, delete_file, names_in, open_to_read, write_text
from pipelines.artifacts.run_paths import Places

FAILURE = "failure.txt"


def note_failure(places: Places, error: Recurring) -> None:
    """Keep an error that would come again, beside the checkpoints of its training."""
    write_text(below(places.checkpoints, FAILURE), str(error))


def forget_failure(places: Places) -> None:
    """Let a training be tried again."""
    delete_file(below(places.checkpoints, FAILURE))


def raise_failure(places: Places) -> None:
    """Raise what `note_failure` kept of this training, if anything."""
    if FAILURE in names_in(places.checkpoints):
        with open_to_read(below(places.checkpoints, FAILURE)) as stream:
            raise Recurring(stream.read().decode())
