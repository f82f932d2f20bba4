"""The `ctd` command. Exit status: 0 done, 1 failed, 2 wrong usage or config, 130 stopped by Ctrl-C or SIGTERM."""

import errno
import json
import os
import platform
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
import yaml

from ctd_core.config.secrets import redact
from ctd_core.config.yaml_files import read_config, read_text
from ctd_core.errors import CtdError, UsageError
from pipelines.__main__ import STOPPED
from pipelines.cli_lookups import lookups
from pipelines.cli_models import models
from pipelines.display.progress import show_log
from pipelines.display.tables import print_table
from pipelines.recipes import check_made, read_recipe, recipe_names

if TYPE_CHECKING:
    from pipelines.artifacts.run_plan import RunPlan

app = typer.Typer(
    name="ctd", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
    help="Distil language models across tokenizers.",
)  # fmt: skip

ConfigFile = Annotated[Path | None, typer.Option("--config", help="A run's YAML file.")]
Recipe = Annotated[str | None, typer.Option(help=f"A packaged run: {', '.join(recipe_names())}.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", help="Put another value into the run, such as train.steps=200. May be repeated."),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check the run, print it with every default, do nothing else.")]
Estimated = Annotated[
    bool,
    typer.Option("--estimate", help="With --dry-run: measure on a sample what the run will take, in a minute or so."),
]


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

    A run is one YAML file: student, teacher, corpus, and how to prepare, train and evaluate. The stages write into
    runs/NAME and do only what is not there yet, so any of them can be killed and started again.

    Begin with `ctd run --recipe demo --dry-run`, which prints a run with every option.
    """
    show_log()


@app.command()
def prepare(
    config: ConfigFile = None,
    recipe: Recipe = None,
    overrides: Overrides = None,
    dry_run: DryRun = False,
    estimate: Estimated = False,
) -> None:
    """Encode, align and score the corpus: documents become Arrow shards, on Ray Data."""

    def work(plan: "RunPlan") -> None:
        from pipelines.artifacts.report import data_table
        from pipelines.stages.preflight import check_inputs
        from pipelines.stages.prepare import prepare as stage

        check_inputs(plan.config)
        locations = {name: dataset.location for name, dataset in plan.datasets.items()}
        print_table(data_table(stage(plan), locations))

    _stage(config, recipe, overrides, dry_run, work, ("prepare",) if estimate else ())


@app.command()
def train(
    config: ConfigFile = None,
    recipe: Recipe = None,
    overrides: Overrides = None,
    dry_run: DryRun = False,
    estimate: Estimated = False,
) -> None:
    """Train the student on prepared shards, on Ray Train, or in this process with train.num_workers=0."""

    def work(plan: "RunPlan") -> None:
        from pipelines.stages.train import train_student

        train_student(plan)

    _stage(config, recipe, overrides, dry_run, work, ("train",) if estimate else ())


@app.command()
def evaluate(
    config: ConfigFile = None, recipe: Recipe = None, overrides: Overrides = None, dry_run: DryRun = False
) -> None:
    """Measure the student before and after training against its teacher, on every evaluation set."""

    def work(plan: "RunPlan") -> None:
        from pipelines.artifacts.report import metrics_table
        from pipelines.stages.evaluate import evaluate as stage

        print_table(metrics_table(stage(plan)))

    _stage(config, recipe, overrides, dry_run, work)


@app.command()
def export(
    config: ConfigFile = None, recipe: Recipe = None, overrides: Overrides = None, dry_run: DryRun = False
) -> None:
    """Write the trained student as a directory that Hugging Face transformers loads."""

    def work(plan: "RunPlan") -> None:
        from pipelines.stages.export import export as stage

        print(stage(plan))

    _stage(config, recipe, overrides, dry_run, work)


@app.command()
def run(
    config: ConfigFile = None,
    recipe: Recipe = None,
    overrides: Overrides = None,
    dry_run: DryRun = False,
    estimate: Estimated = False,
) -> None:
    """Prepare, train, evaluate and export.

    Example: ctd run --recipe demo --set name=mine --set teacher.model=./my-model --set train.steps=500
    """

    def work(plan: "RunPlan") -> None:
        from pipelines.artifacts.report import print_report
        from pipelines.stages.preflight import check_inputs
        from pipelines.stages.run import run as stage

        check_inputs(plan.config)
        print_report(plan, stage(plan))

    _stage(config, recipe, overrides, dry_run, work, ("prepare", "train") if estimate else ())


def _stage(
    file: Path | None,
    recipe: str | None,
    overrides: list[str] | None,
    dry_run: bool,
    work: Callable[["RunPlan"], None],
    estimated: tuple[str, ...] = (),
) -> None:
    if (file is None) == (recipe is None):
        raise UsageError("give either --config FILE or --recipe NAME")
    if estimated and not dry_run:
        raise UsageError("--estimate belongs to --dry-run: give both")
    text, source = (read_text(file), str(file)) if file is not None else (read_recipe(recipe or ""), f"recipe {recipe}")
    chosen = read_config(text, source, overrides or [])
    if recipe is not None:
        check_made(recipe, chosen)
    from pipelines.artifacts.run_plan import plan_run, resolve_locations, run_files

    chosen = resolve_locations(chosen)
    if dry_run:
        from pipelines.stages.preflight import FIRST_DOCUMENTS, check_inputs

        warnings = check_inputs(chosen)
        print(yaml.safe_dump(json.loads(chosen.model_dump_json()), sort_keys=False), end="", flush=True)
        count = f"{len(warnings)} warning{'s' * (len(warnings) > 1)}"
        found = f"{count}, see above" if warnings else "nothing is wrong with this run"
        print(
            f"checked options, files, tokenizers and the first {FIRST_DOCUMENTS} documents of each corpus: {found}. "
            f"It writes into {run_files(chosen).directory}.",
            file=sys.stderr,
        )
        if estimated:
            from pipelines.stages.estimate import estimate

            print_table(estimate(chosen, plan_run(chosen).tokenizer, estimated).as_table(), sys.stderr)
    else:
        work(plan_run(chosen))


@app.command()
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


@app.command()
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


@app.command()
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


app.add_typer(models)
app.add_typer(lookups)


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
