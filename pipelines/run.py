"""`ctd run`: prepare, train, evaluate, export, and a report."""

import json
import time
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ctd_core.models.export import continue_text
from ctd_core.models.loading import load_model, parameters
from ctd_core.shards.manifest import Manifest
from pipelines.evaluate import as_report, evaluate
from pipelines.export import export
from pipelines.places import Places, read_report, run_stamp, write_whole
from pipelines.prepare import prepare
from pipelines.train import train_student


def run(places: Places) -> dict[str, Any]:
    """The whole run; what report.json then holds."""
    seconds: dict[str, float] = {}

    def timed(stage: str, work: Callable[[], Any]) -> Any:
        start = time.monotonic()
        result = work()
        seconds[stage] = round(time.monotonic() - start, 1)
        return result

    manifests = timed("prepare", lambda: prepare(places))
    timed("train", lambda: train_student(places))
    report = as_report(timed("evaluate", lambda: evaluate(places)))
    config = places.config
    report["teacher_parameters"] = parameters(load_model(config.teacher.model, config.teacher.revision))
    report["data"] = {name: manifest.counts.model_dump() for name, manifest in manifests.items()}
    write_report(places, report)  # the model card reads it
    timed("export", lambda: export(places))
    report["samples"] = timed("sample", lambda: _samples(places))
    report["seconds"] = seconds
    write_report(places, report)
    return report


def _samples(places: Places) -> list[dict[str, str]]:
    options = places.config.sample
    if not options.prompts:
        return []
    teacher = places.config.teacher
    names = {"teacher": (teacher.model, teacher.revision), "student": (str(places.model), None)}
    texts = {who: continue_text(*name, options.prompts, options.max_new_tokens) for who, name in names.items()}
    return [
        {"prompt": prompt, "teacher": texts["teacher"][n], "student": texts["student"][n]}
        for n, prompt in enumerate(options.prompts)
    ]


def write_report(places: Places, report: dict[str, Any]) -> None:
    """Put these figures into report.json, beside those of other stages that it holds."""
    report = read_report(places) | {"run": run_stamp(places)} | report
    write_whole(places.report, json.dumps(report, indent=1, ensure_ascii=False))


def agreement_table(report: dict[str, Any]) -> Table:
    """The figures of every set: bits per byte, and distance to the teacher."""
    table = Table(title="bits per byte (distance to the teacher)")
    for column in ("text", "teacher", "student before", "student after", "correlation"):
        table.add_column(column, justify="left" if column == "text" else "right")
    for name, one in report["sets"].items():
        students = [
            f"{one[which]['bits_per_byte']:.3f} ({one[which]['teacher_distance_bits_per_byte']:.3f})"
            for which in ("student_before", "student_after")
        ]
        table.add_row(
            name, f"{one['teacher']['bits_per_byte']:.3f}", *students, f"{one['student_after']['correlation']:.3f}"
        )
    if report["gap_closed"] is not None:
        table.caption = f"gap closed: {report['gap_closed']:.3f}"
    return table


def data_table(manifests: dict[str, Manifest]) -> Table:
    """What the shards hold, a row for each set."""
    table = Table(title="prepared")
    columns = ("set", "texts", "dropped", "rows", "kB", "student tokens", "teacher tokens", "bytes a chunk")
    for column in columns:
        table.add_column(column, justify="left" if column == "set" else "right")
    for name, manifest in manifests.items():
        counts = manifest.counts
        table.add_row(
            name,
            f"{counts.documents:,}",
            f"{counts.dropped_documents:,}",
            f"{counts.rows:,}",
            f"{counts.text_bytes / 1e3:,.0f}",
            f"{counts.student_tokens:,}",
            f"{counts.teacher_tokens:,}",
            f"{counts.text_bytes / max(counts.chunks, 1):.2f}",
        )
    return table


def print_report(places: Places, report: dict[str, Any]) -> None:
    """The end of a run: what was measured, two continuations, where things lie."""
    console = Console()
    console.print(agreement_table(report))
    for sample in report["samples"]:
        for who in ("teacher", "student"):
            console.print(f"{who}: {sample['prompt']}[bold]{escape(sample[who])}[/bold]", highlight=False)
    seconds = ", ".join(f"{stage} {spent:.0f}" for stage, spent in report["seconds"].items())
    console.print(f"parameters: teacher {report['teacher_parameters']:,}, student {report['student_parameters']:,}")
    console.print(f"seconds: {seconds}")
    console.print(f"model: {places.model}\nreport: {places.report}")
