"""The commands of `ctd` that work on one run, and the options that they share."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
import yaml

from ctd_core.config.yaml_files import read_config, read_group, read_text
from ctd_core.errors import UsageError
from pipelines.cli_models import read_average
from pipelines.display.tables import print_table
from pipelines.recipes import check_made, read_recipe, recipe_names

if TYPE_CHECKING:
    from pipelines.artifacts.run_plan import RunPlan

runs = typer.Typer()

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


@runs.command()
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

    work_on_run(config, recipe, overrides, dry_run, work, ("prepare",) if estimate else ())


@runs.command()
def train(
    config: ConfigFile = None,
    recipe: Recipe = None,
    overrides: Overrides = None,
    dry_run: DryRun = False,
    estimate: Estimated = False,
) -> None:
    """Train the student on prepared shards, on Ray Train, or in this process with train.num_workers=0."""

    def work(plan: "RunPlan") -> None:
        from pipelines.stages.on_policy import train_whole
        from pipelines.stages.train import tell_other_trainings

        tell_other_trainings(plan)
        train_whole(plan)

    work_on_run(config, recipe, overrides, dry_run, work, ("train",) if estimate else ())


@runs.command()
def evaluate(
    config: ConfigFile = None,
    recipe: Recipe = None,
    overrides: Overrides = None,
    dry_run: DryRun = False,
    model: Annotated[list[str] | None, typer.Option(help="In place of a run: a model to ask. May be repeated.")] = None,
    ensemble: Annotated[
        str | None, typer.Option(help="Ask all --model together too: the average of their probabilities or logprobs.")
    ] = None,
    tasks: Annotated[
        str | None, typer.Option(help="Ask these tasks of lm-evaluation-harness alone, such as arc_easy,gsm8k.")
    ] = None,
    problems: Annotated[
        str | None, typer.Option(help="Ask these problems alone: JSON lines, each with a question and an answer.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="So many questions of each task, or problems.")] = None,
    include_path: Annotated[str | None, typer.Option(help="A directory with tasks of your own.")] = None,
) -> None:
    """Measure the student before and after training against its teacher, on every evaluation set and task.

    With --tasks or --problems, these are asked and what is measured already stays; other ways to ask are fields of
    evaluate.tasks and evaluate.problems, which --set changes. Figures that are there already are not asked for again.

    Example: ctd evaluate --config mine.yaml --tasks arc_easy,hellaswag --limit 200
    """
    is_asked = tasks is not None or problems is not None
    asked = _asked(tasks, problems, limit, include_path)
    if ensemble is not None and len(model or []) < 2:
        raise UsageError("--ensemble belongs to several --model")
    if model:
        if config is not None or recipe is not None or not is_asked:
            raise UsageError("give --model with --tasks or --problems, and without --config or --recipe")
        if dry_run:
            raise UsageError("--dry-run belongs to --config or --recipe")
        from ctd_core.config.evaluation import Evaluate
        from pipelines.artifacts.report import tasks_table
        from pipelines.stages.tasks import ask_named_models

        options = read_group(Evaluate, "evaluate", [*asked, *(overrides or [])])
        if options.sets or options.own_texts is not None:
            raise UsageError("--model is asked tasks and problems: evaluate.sets and evaluate.own_texts are of a run")
        print_table(tasks_table(ask_named_models(model, options, None if ensemble is None else read_average(ensemble))))
        return

    def work(plan: "RunPlan") -> None:
        from pipelines.artifacts.report import metrics_table, tasks_table
        from pipelines.stages.evaluate import evaluate as stage
        from pipelines.stages.evaluate import evaluate_tasks

        report = evaluate_tasks(plan) if is_asked else stage(plan)
        print_table(metrics_table(report))
        if report.tasks:
            print_table(tasks_table(report.tasks))

    work_on_run(config, recipe, [*asked, *(overrides or [])], dry_run, work)


def _asked(tasks: str | None, problems: str | None, limit: int | None, include_path: str | None) -> list[str]:
    """What --tasks, --problems and what belongs to them put into a run."""
    if tasks is None and (include_path is not None or (limit is not None and problems is None)):
        raise UsageError("--limit and --include-path belong to --tasks, and --limit to --problems too")
    values: dict[str, object] = {}
    if tasks is not None or problems is not None:
        values = {"tasks.names": [] if tasks is None else [name.strip() for name in tasks.split(",")], "problems": {}}
    if tasks is not None:
        values |= {"tasks.limit": limit, "tasks.include_path": include_path}
    if problems is not None:
        corpus = {"kind": "jsonl", "paths": [problems], "prompt": "question", "response": "answer"}
        name = re.sub(r"[^\w.-]+", "-", Path(problems).stem)
        values["problems"] = {name: {"corpus": corpus, "limit": limit}}
    return [f"evaluate.{path}={json.dumps(value)}" for path, value in values.items() if value is not None]


@runs.command()
def export(
    config: ConfigFile = None,
    recipe: Recipe = None,
    overrides: Overrides = None,
    dry_run: DryRun = False,
    check: Annotated[
        bool, typer.Option("--check", help="Compare with plain transformers in a Python of its own.")
    ] = False,
    push: Annotated[
        str | None, typer.Option(help="Send the checked student to the Hugging Face hub as ORG/NAME, private.")
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="With --push: everybody may see it.")] = False,
) -> None:
    """Write the trained student as a directory that Hugging Face transformers loads."""
    if public and push is None:
        raise UsageError("--public belongs to --push ORG/NAME")

    def work(plan: "RunPlan") -> None:
        from pipelines.stages import export_check
        from pipelines.stages.export import export as stage

        directory = export_check.check_export(plan) if check or push else stage(plan)
        print(directory)
        if push is not None:
            print(export_check.push(directory, push, public))

    work_on_run(config, recipe, overrides, dry_run, work)


@runs.command()
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

    work_on_run(config, recipe, overrides, dry_run, work, ("prepare", "train") if estimate else ())


def work_on_run(
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
