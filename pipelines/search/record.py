"""What a search remembers of its trials: trials.json, plain data that decides what a resumed search runs again."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from ctd_core.config.base import Record
from ctd_core.errors import CtdError
from ctd_core.storage.atomic import write_atomic

RECORD = "trials.json"


class TrialRecord(Record):
    """One trial. values: by dotted path. choices: what a searcher chose, by its own names. lines: by evaluation."""

    values: dict[str, Any]
    choices: dict[str, float] = Field(default={})
    state: Literal["running", "ended", "failed"] = "running"
    error: str | None = None
    lines: list[dict[str, float]] = Field(default=[], description="what it reported, each step once")


class SearchRecord(Record):
    """The trials in the order in which they began."""

    trials: list[TrialRecord] = Field(default=[])


def read_record(directory: Path) -> SearchRecord:
    """The record in `directory`, an empty one where there is none.

    Args:
        directory: the search's.

    Returns:
        The record.

    Raises:
        CtdError: it is not one.
    """
    file = directory / RECORD
    if not file.exists():
        return SearchRecord()
    try:
        return SearchRecord.model_validate_json(file.read_text(encoding="utf-8"))
    except ValidationError as error:
        raise CtdError(
            f"{file}: not a record of trials ({error.error_count()} errors). Move it aside: trials that ended are then "
            "read from their own trainings again."
        ) from error


def write_record(directory: Path, trials: Sequence[TrialRecord]) -> None:
    """Write the record atomically."""
    directory.mkdir(parents=True, exist_ok=True)
    write_atomic(directory / RECORD, SearchRecord(trials=list(trials)).model_dump_json(indent=1))


def same_values(first: dict[str, Any], second: dict[str, Any]) -> bool:
    """Whether two trials have the same settings."""
    return json.dumps(first, sort_keys=True) == json.dumps(second, sort_keys=True)


def numbers_of(result: dict[str, Any]) -> dict[str, float]:
    """What of a reported result is a number, without Ray's own entries of other kinds."""
    return {
        name: value
        for name, value in result.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and not name.startswith("config")
    }
