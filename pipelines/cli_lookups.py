"""The commands of `ctd` that look at things and change nothing."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from ctd_core.config.yaml_files import read_rule, read_text
from ctd_core.errors import UsageError
from pipelines.display.tables import print_table, wide_console

lookups = typer.Typer()
TOKENIZER_HELP = "A tokenizer: directory, hub id, tokenizer.json file, or `bytes`."


@lookups.command()
def inspect(
    student: Annotated[str | None, typer.Option(help=TOKENIZER_HELP)] = None,
    teacher: Annotated[str | None, typer.Option(help=TOKENIZER_HELP)] = None,
    text: Annotated[str | None, typer.Option(help="The text to align.")] = None,
    text_file: Annotated[Path | None, typer.Option(help="A UTF-8 file that holds it.")] = None,
    shards: Annotated[str | None, typer.Option(help="In place of a text: prepared shards.")] = None,
    row: Annotated[int, typer.Option(help="The row of the shards to show.")] = 0,
    rule: Annotated[
        str | None,
        typer.Option(help="Merge the chunks, such as '{kind: debiased, gamma: 0.2}'; --teacher is then a model."),
    ] = None,
    config: Annotated[
        Path | None, typer.Option("--config", help="In place of all others: a run, whose first documents are shown.")
    ] = None,
    documents: Annotated[int, typer.Option(help="How many of a run's documents to show.")] = 3,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="With --config: put another value into the run.")
    ] = None,
    as_json_lines: Annotated[bool, typer.Option("--json", help="One JSON object, and nothing else.")] = False,
) -> None:
    """Show the chunks of a text on which two tokenizers agree; with a rule, merged, with the teacher's numbers.

    Examples:

    ctd inspect --student bytes --teacher ./SmolLM2-135M-Instruct --text "Hello world" --rule debiased

    ctd inspect --student runs/demo/model --shards runs/demo/prepared/general-… --row 3

    ctd inspect --config mine.yaml --documents 3
    """
    if config is not None:
        if any(option is not None for option in (student, teacher, text, text_file, shards, rule)):
            raise UsageError("--config names the models and the corpus: give it alone, with --documents")
        _inspect_run(config, overrides or [], documents, as_json_lines)
        return
    if student is None:
        raise UsageError("give --student, or --config")
    if sum(option is not None for option in (text, text_file, shards)) != 1:
        raise UsageError("give either --text or --text-file, or --shards")
    if (teacher is None) == (shards is None):
        raise UsageError("give --teacher with a text, and no --teacher with --shards, which hold its numbers")
    from pipelines.display import inspection as shown

    document = read_text(text_file) if text_file is not None else text or ""
    if shards is not None or rule is not None:
        chosen = read_rule(rule or "finest")
        if shards is not None:
            merged = shown.inspect_shards(student, shards, row, chosen)
        else:
            merged = shown.inspect_scored(student, teacher or "", document, chosen)
        if as_json_lines:
            print(json.dumps(shown.merged_as_json(merged), ensure_ascii=False))
        else:
            wide_console(sys.stdout).print(shown.merged_as_table(merged))
        return
    inspection = shown.inspect_text(student, teacher or "", document)
    if as_json_lines:
        print(json.dumps(shown.as_json(inspection), ensure_ascii=False))
    else:
        console = wide_console(sys.stdout)
        console.print(shown.as_rich(inspection, console.is_terminal), soft_wrap=True)


def _inspect_run(file: Path, overrides: list[str], count: int, as_json_lines: bool) -> None:
    from ctd_core.config.text import TrainedTokenizer
    from ctd_core.config.yaml_files import read_config
    from ctd_core.models.tokenizers import build_student_tokenizer, build_teacher_tokenizer
    from pipelines.artifacts.run_plan import plan_run
    from pipelines.display.document_view import as_rich, show_documents

    run = read_config(read_text(file), str(file), overrides)
    plan = plan_run(run) if isinstance(run.student.tokenizer, TrainedTokenizer) else None
    trained = plan.tokenizer if plan is not None else None
    if trained is not None and not trained.exists():
        raise UsageError(f"{file}: the student's tokenizer is not trained yet. Run `ctd prepare` first.")
    student, teacher = build_student_tokenizer(run.student, run.teacher, trained), build_teacher_tokenizer(run.teacher)
    console = wide_console(sys.stdout)
    for document in show_documents(run, student, teacher, count):
        if as_json_lines:
            print(json.dumps(asdict(document), ensure_ascii=False))
        else:
            console.print(as_rich(document, console.is_terminal), soft_wrap=True)


@lookups.command()
def config(
    new: Annotated[bool, typer.Option("--new", help="A commented run file to begin with.")] = False,
    reference: Annotated[bool, typer.Option("--reference", help="Every field, as Markdown.")] = False,
) -> None:
    """Print a run file to begin with, or every field with its default and meaning.

    Example: ctd config --new > mine.yaml
    """
    from ctd_core.config import reference as described

    if new == reference:
        raise UsageError("give either --new or --reference")
    print(described.NEW_RUN if new else described.reference(), end="")


@lookups.command()
def runs(
    storage: Annotated[str, typer.Argument(help="The `output` of runs, a directory or a URI.")] = "runs",
    as_json_lines: Annotated[
        bool, typer.Option("--json", help="A JSON object for each run, and nothing else.")
    ] = False,
) -> None:
    """List the runs under a storage path: how far each has come, its last figures, when it last changed."""
    from pipelines.artifacts.run_list import as_table, list_runs

    found = list_runs(storage)
    if as_json_lines:
        for run in found:
            print(json.dumps(asdict(run)))
    else:
        print_table(as_table(found))


@lookups.command()
def chunks(
    shards: Annotated[str, typer.Option(help="A directory or URI of prepared shards, such as runs/demo/prepared/…")],
    rule: Annotated[
        list[str] | None,
        typer.Option(help="A rule, such as '{kind: debiased, gamma: 0.2}', in place of the usual ones. Repeatable."),
    ] = None,
    as_json_lines: Annotated[
        bool, typer.Option("--json", help="A JSON object for each rule, and nothing else.")
    ] = False,
) -> None:
    """Show what each chunking rule makes of prepared shards: look here before you choose one.

    Example: ctd chunks --shards runs/demo/prepared/general-1a2b3c4d5e6f7a8b
    """
    from pipelines.display.chunk_rules import as_json, as_table, measure_rules

    measured = measure_rules(shards, [read_rule(text) for text in rule] if rule else None)
    if as_json_lines:
        for row in as_json(measured):
            print(json.dumps(row))
    else:
        print_table(as_table(measured))
