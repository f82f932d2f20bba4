"""report.html: a run on one page."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from ctd_core.errors import first_line
from ctd_core.evaluation.metrics import METRICS, metric_key
from ctd_core.storage.atomic import write_atomic
from pipelines.artifacts.metrics_file import EVALUATION, METRICS_FILE, read_metrics
from pipelines.artifacts.report import MODELS, ROUNDING, TEACHER, Report, counts_table, metrics_table, tasks_table
from pipelines.artifacts.round_figures import read_round
from pipelines.artifacts.run_plan import RunPlan
from pipelines.display import pages
from pipelines.display.plots import COLORS, REFERENCE_COLOR, Curves, Dots, curves, dots, has_matplotlib
from pipelines.display.tables import TextTable

logger = logging.getLogger(__name__)
SHOWN_TEXTS, SHOWN_CHARACTERS = 2, 60  # of each round
SHOWN_STEPS = 100  # points of a curve, each the mean of some steps
COLOR_OF = dict(zip(MODELS, (REFERENCE_COLOR, COLORS[1], COLORS[0]), strict=True))
Steps = list[dict[str, Any]]


def write_page(plan: RunPlan, report: Report) -> None:
    """Write the page atomically, and to the store where there is one."""
    path = plan.report.with_suffix(".html")
    plan.files.fetch(plan.training / METRICS_FILE, overwrite=True)
    try:
        page = _page(plan, report, read_metrics(plan.training / METRICS_FILE))
    except Exception as error:  # a picture that cannot be drawn must not cost a run its results
        logger.warning("%s is not written: %s: %s", path, type(error).__name__, first_line(error))
        return
    write_atomic(path, page)
    plan.files.upload(path)


def _page(plan: RunPlan, report: Report, steps: Steps) -> str:
    config = plan.config
    origin = config.student.model or f"made from {config.teacher.model}"
    closed = report.gap_closed
    gap = "" if closed is None else f" It closed {closed:.1%} of the distance to its teacher."
    if closed is not None and closed < -ROUNDING:
        gap = f" It moved away from its teacher, by {-closed:.1%} of the distance."
    learned = ", ".join(objective.kind for objective in config.train.objectives)
    tokenizer = getattr(config.student.tokenizer, "name", config.student.tokenizer.kind)
    words = (
        f"A student of {report.student_parameters:,} parameters ({origin}), with the tokenizer {tokenizer}, learned "
        f"from {config.teacher.model} ({report.teacher_parameters:,} parameters) by {learned} for {len(steps)} "
        f"steps.{gap}"
    )
    is_drawn = has_matplotlib()
    samples = [[sample.prompt, sample.teacher.strip(), sample.student.strip()] for sample in report.samples]
    spent = [
        [stage, f"{seconds:,.0f}", f"{report.peak_memory_mb[stage]:,}" if stage in report.peak_memory_mb else ""]
        for stage, seconds in report.seconds.items()
    ]
    resolved = yaml.safe_dump(json.loads(config.model_dump_json()), sort_keys=False)
    return pages.page(
        config.name,
        pages.paragraph(words),
        "" if is_drawn else pages.paragraph("Plots need matplotlib: pip install 'ctd-ray[plots]'.", is_note=True),
        pages.section(
            "Measured",
            pages.picture(_measured(report)) if is_drawn and report.sets else "",
            pages.table(metrics_table(report)),
        ),
        pages.section(
            "Tasks",
            pages.picture(_tasks(report)) if is_drawn else "",
            pages.table(tasks_table(report.tasks)),
        ),
        pages.section("Own texts", pages.table(rounds_table(rounds_in(plan.training)))),
        pages.section("Samples", pages.table(TextTable(["prompt", "teacher", "student"], samples), is_prose=True)),
        pages.section("Training", pages.picture(_training(plan, report, steps)) if is_drawn and steps else ""),
        pages.section("Data and alignment", pages.table(counts_table(report.data))),
        pages.section("Cost", pages.table(TextTable(["stage", "seconds", "peak memory, MB"], spent, ""))),
        pages.section("Run", pages.preformatted(resolved)),
    )


def rounds_in(training: Path) -> list[dict[str, Any]]:
    """What was recorded of each round of an on-policy training, with the beginnings of some of its texts."""
    rounds = []
    for folder in sorted(training.glob("round-*")):
        if not (figures := read_round(folder)):
            continue
        texts = sorted(folder.glob("texts-*/*.jsonl"))
        lines = texts[0].read_text(encoding="utf-8").split("\n")[:SHOWN_TEXTS] if texts else []
        rounds.append(figures | {"samples": [json.loads(line) for line in lines if line]})
    return rounds


def rounds_table(rounds: Sequence[dict[str, Any]]) -> TextTable:
    """A row for each round: what the student wrote and how far its teacher is from it, and what it took."""
    columns = ["round", "steps", "written after step", "texts", "learned", "tokens a text", "ended", "bits a token"]
    columns += ["distance to the teacher", "texts a second", "seconds of writing, scoring", "samples"]
    rows = [
        [
            f"{found['round']}",
            f"{found['first_step'] + 1} to {found['last_step']}",
            f"{found['written_at']}",
            f"{found['texts']:,}",
            f"{found['learned']:,}",
            f"{found['mean_tokens']:.1f}",
            f"{found['share_ended']:.0%}",
            f"{found['bits_per_token']:.2f}",
            f"{found['teacher_distance_bits_per_byte']:.3f}" if "teacher_distance_bits_per_byte" in found else "",
            f"{found['texts'] / max(found['seconds_writing'], 1e-9):.1f}",
            f"{found['seconds_writing']:.0f}, {found['seconds_scoring']:.0f}",
            " | ".join(_beginning(record) for record in found["samples"]),
        ]
        for found in rounds
    ]
    return TextTable(columns, rows, "own texts")


def _beginning(record: dict[str, Any]) -> str:
    prompt = record["messages"][-1]["content"] if "messages" in record else record["prompt"]
    text = record["generated"]["text"]
    return f"{prompt[-SHOWN_CHARACTERS:].strip()} → {text[:SHOWN_CHARACTERS].strip()}"


def _measured(report: Report) -> str:
    """The headline metrics of all sets, a dot for each model."""
    panels = []
    for metric in METRICS:
        if metric.is_headline:
            values: dict[str, tuple[float, float | None]] = {}
            for name, measured in report.sets.items():
                models = zip(MODELS, (measured.teacher, measured.student_before, measured.student_after), strict=True)
                values |= {f"{name}, {model}": (figures[metric.name], None) for model, figures in models}
            colors = {f"{name}, {model}": COLOR_OF[model] for name in report.sets for model in MODELS}
            panels.append(Dots(metric.words(), values, colors=colors))
    return dots(panels)


def _tasks(report: Report) -> str:
    """The first figure of each task, a dot for each model with its standard error."""
    panels = []
    for task in dict.fromkeys(found.task for found in report.tasks):
        of_task = [found for found in report.tasks if found.task == task and found.figures]
        if of_task:
            figure = next(iter(of_task[0].figures))
            values = {
                found.model: (found.figures[figure], max(found.errors.get(figure) or 0.0, 0.0))
                for found in of_task
                if figure in found.figures
            }
            panels.append(Dots(f"{task}, {figure}", values, colors=COLOR_OF))
    return dots(panels) if panels else ""


def _training(plan: RunPlan, report: Report, steps: Steps) -> str:
    """The loss of each objective, the learning rate, and the metrics of each evaluation set."""
    objectives = plan.config.train.objectives
    losses = {
        f"{objective.kind} ({n})" if n else str(objective.kind): _line(steps, f"loss_{n}_{objective.kind}")
        for n, objective in enumerate(objectives)
    }
    panels = [
        Curves("loss" if len(losses) > 1 else f"loss, {objectives[0].kind}", losses),
        Curves("learning rate", {"learning rate": _line(steps, "learning_rate")}),
        Curves("tokens a second", {"tokens a second": _line(steps, "tokens_per_second")}),
    ]
    for metric in METRICS:
        if not metric.is_headline:
            continue
        for name, measured in report.sets.items():
            key = metric_key(name, metric)
            own = [line for line in steps if key in line and line.get(EVALUATION) == plan.evaluation]
            found = [(line["step"], line[key]) for line in own]  # earlier ones may be of other sets of this name
            points = [(0, measured.student_before[metric.name]), *found]
            line = [step for step, _ in points], [value for _, value in points]
            references = {TEACHER: measured.teacher[metric.name]}
            if found:
                panels.append(Curves(f"{metric.title} on {name}", {"student": line}, references, has_dots=True))
    return curves(panels)


def _line(steps: Steps, key: str) -> tuple[Sequence[float], Sequence[float]]:
    """A metric over steps, of many the means."""
    found = [(line["step"], line[key]) for line in steps if key in line]
    width = -(-len(found) // SHOWN_STEPS) or 1
    groups = [found[start : start + width] for start in range(0, len(found), width)]
    return [group[-1][0] for group in groups], [sum(value for _, value in group) / len(group) for group in groups]
