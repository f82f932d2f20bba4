"""The `ctd` command. Exit status: 0 done, 1 failed, 2 wrong usage or config, 130 stopped by Ctrl-C or SIGTERM."""

import errno
import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer

from ctd_core.config.secrets import redact
from ctd_core.errors import CtdError
from pipelines.__main__ import STOPPED
from pipelines.cli_lookups import lookups
from pipelines.cli_models import models
from pipelines.cli_runs import Overrides, runs
from pipelines.display.progress import show_log
from pipelines.display.tables import print_table

app = typer.Typer(name="ctd", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
searches = typer.Typer()


def _print_versions(is_asked: bool) -> None:
    if is_asked:
        print(", ".join(f"{name} {version(name)}" for name in ("ctd-ray", "ray", "torch", "transformers")))
        print(f"Python {platform.python_version()}, {platform.platform()}")
        raise typer.Exit


@app.callback()
def root(
    versions: Annotated[
        bool, typer.Option("--version", callback=_print_versions, is_eager=True, help="Print versions, for a report.")
    ] = False,
) -> None:
    """Distil language models across tokenizers.

    A run is one YAML file: student, teacher, corpus, and how to prepare, train
    and evaluate. The stages write into runs/NAME and do only what is not there
    yet, so any of them can be killed and started again.

    Begin with `ctd config --new > mine.yaml`; in a checkout, after `make demo`,
    `ctd run --recipe demo --dry-run` prints a run with every option.
    """
    show_log()


@searches.command()
def compare(
    config: Annotated[Path, typer.Option("--config", help="A comparison, such as tune_configs/objectives.yaml.")],
    overrides: Overrides = None,
) -> None:
    """Train variants of one run, on the same shards with several seeds, and show them in one table.

    Trials that are done are not run again.
    """
    from pipelines.comparison.compare import compare as stage
    from pipelines.comparison.summary import as_table

    rows, directory = stage(config, overrides or [])
    print_table(as_table(rows))
    print(directory)


@searches.command()
def tune(
    config: Annotated[Path, typer.Option("--config", help="A search, such as tune_configs/chunking.yaml.")],
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a search that was interrupted.")] = False,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="With --resume: failed trials too.")] = False,
) -> None:
    """Search the settings of a run's training, on Ray Tune: all trials learn from the same shards.

    No trial runs a tokenizer, or the teacher, unless an objective compares with it online. The best trial's run is
    written as a file for `ctd train --config`.
    """
    from pipelines.search.results import BEST, as_table
    from pipelines.search.tune import search

    found = search(config, overrides or [], resume, retry_failed)
    print_table(as_table(found.trials, found.metric))
    print(found.directory / BEST)


@searches.command()
def submit(
    command: Annotated[
        list[str] | None, typer.Argument(help="What to run there, after --: train --config FILE")
    ] = None,
    address: Annotated[
        str, typer.Option(envvar="RAY_API_SERVER_ADDRESS", help="The cluster's dashboard.")
    ] = "http://127.0.0.1:8265",
    job: Annotated[str | None, typer.Option(help="The job's name; one that is there already is followed.")] = None,
    working_dir: Annotated[Path, typer.Option(help="The directory that is sent along.")] = Path("."),
    cpus: Annotated[float, typer.Option(help="CPUs for the command itself, so that a worker machine runs it.")] = 0,
    gpus: Annotated[float, typer.Option(help="GPUs for the command itself, beside those that its stages ask for.")] = 0,
    stop_on_interrupt: Annotated[bool, typer.Option(help="Ctrl-C stops the job, not only the following.")] = False,
) -> None:
    """Run a command as a job on a Ray cluster, show its log, and exit with its exit status.

    Ctrl-C leaves the job running; the same --job takes up its log again. `output` has to be a path that all machines
    share, or a URI such as s3://bucket/folder.

    Example: ctd submit --address http://HEAD:8265 --job mine -- run --config mine.yaml
    """
    from pipelines.cluster.jobs import submit as stage

    raise typer.Exit(stage(address, command or [], job, working_dir, cpus, gpus, stop_on_interrupt))


for group in (runs, searches, models, lookups):  # as --help shows them
    app.add_typer(group)


def run_command_line() -> None:
    """Run the command line; errors that a user can act on are printed without a traceback."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # read when transformers is imported
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that spin cost a busy machine several times the work
    try:
        app()
    except SystemExit as end:
        if end.code == STOPPED:
            print("ctd: stopped", file=sys.stderr)
        raise
    except CtdError as error:
        print(f"ctd: {redact(str(error))}", file=sys.stderr)
        sys.exit(error.exit_status)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        print(f"ctd: a disk is full ({error}). Free some space and run it again: it goes on.", file=sys.stderr)
        sys.exit(1)
