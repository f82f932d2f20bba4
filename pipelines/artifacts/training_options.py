"""The options of each training of a run, kept beside its checkpoints, so that another tells in what it differs."""

import json
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from ctd_core.errors import CtdError
from ctd_core.storage.atomic import write_atomic
from ctd_core.storage.locations import below, names_in, open_to_read
from pipelines.artifacts.checkpoints import latest_checkpoint, steps_done
from pipelines.artifacts.run_plan import RunPlan

OPTIONS_FILE = "options.json"
SHOWN = 4  # differences
NOT_OF_TRAININGS = {"name", "output", "evaluate", "sample"}


def write_options(plan: RunPlan) -> None:
    """Write those of the run's training into its directory, where they are not there yet."""
    file = plan.training / OPTIONS_FILE
    if not plan.files.has(file):
        write_atomic(file, json.dumps(_options(plan), indent=1))
        plan.files.upload(file)


def steps_asked(options: str) -> int | None:
    """How many steps a training is to have by its file of options; None where that cannot be read."""
    try:
        return int(json.loads(options)["train"]["steps"])
    except (ValueError, TypeError, KeyError):
        return None


def others_of(plan: RunPlan) -> Iterator[str]:
    """Of every other training of the run that has a checkpoint: its name, its step, and in what its options differ."""
    folder, own = plan.files.within(plan.files.directory), dict(_leaves(_options(plan)))
    for name in names_in(folder):
        if not name.startswith("train-") or name == plan.training.name:
            continue
        checkpoint = latest_checkpoint(below(folder, name))
        if checkpoint is None:
            continue
        line = f"{name}, after step {steps_done(checkpoint)}"
        with suppress(CtdError, FileNotFoundError, ValueError):  # of an earlier version, or taken away meanwhile
            with open_to_read(below(folder, name, OPTIONS_FILE)) as stream:
                other = dict(_leaves(json.loads(stream.read())))
            differing = [field for field in sorted({*own, *other}) if own.get(field) != other.get(field)]
            shown = [f"{field} {_word(other.get(field))}, here {_word(own.get(field))}" for field in differing[:SHOWN]]
            more = [f"{len(differing) - SHOWN} more"] if len(differing) > SHOWN else []
            line += f" ({'; '.join(shown + more)})" if shown else ""
        yield line


def _options(plan: RunPlan) -> dict[str, Any]:
    return plan.config.model_dump(mode="json", exclude=NOT_OF_TRAININGS)


def _leaves(options: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every value by its dotted path; a list is one."""
    if not isinstance(options, dict) or not options:
        yield path, options
        return
    for name, value in options.items():
        yield from _leaves(value, f"{path}.{name}" if path else name)


def _word(value: Any) -> str:
    return "none" if value is None else str(value)
