"""`ctd compare`: variants of one run on the same shards, from the same student, with several seeds."""

import json
import logging
import resource
import shutil
import statistics
from pathlib import Path
from typing import Any

import ray
import torch
from pydantic import Field
from ray.exceptions import RayError

from ctd_core.config.base import Options, fingerprint
from ctd_core.config.run import RunConfig, drawn_left_out
from ctd_core.config.yaml_files import read_options
from ctd_core.errors import UsageError
from ctd_core.models.tokenizers import build_teacher_tokenizer
from ctd_core.storage.atomic import write_atomic
from ctd_core.storage.locations import delete_folder, names_in
from pipelines.artifacts.checkpoints import trained_checkpoint
from pipelines.artifacts.locks import stage_lock
from pipelines.artifacts.metrics_file import METRICS_FILE, read_metrics
from pipelines.artifacts.run_plan import RunPlan, plan_run, prompts_fingerprint, variant
from pipelines.cluster.connection import connect, reraised_errors
from pipelines.comparison.summary import Cost, Row, SeedResult, as_table, plot, row_of
from pipelines.display.plots import require_matplotlib
from pipelines.display.progress import progress
from pipelines.display.tables import as_markdown
from pipelines.recipes import check_made, read_run
from pipelines.stages.asked_models import student_after, student_before, teacher_of
from pipelines.stages.asked_tasks import tasks_in
from pipelines.stages.evaluate import measure
from pipelines.stages.on_policy import train_whole
from pipelines.stages.own_texts import measure_own_texts
from pipelines.stages.preflight import check_inputs
from pipelines.stages.preflight_training import check_training, known_tokenizer
from pipelines.stages.prepare import prepare
from pipelines.stages.rounds import OWN_TEXTS_VERSION
from pipelines.stages.student import ensure_student
from pipelines.stages.tasks import ask_here, ask_models

logger = logging.getLogger(__name__)

COST = "cost.json"
COMPARED = "compared"  # in a training that a comparison began


class Comparison(Options):
    """A file for `ctd compare`: a run, and what each variant puts into it."""

    recipe: str = Field(description="a packaged run's name, or a run's YAML file")
    seeds: list[int] = Field(default=[0, 1, 2], min_length=1)
    cpus_per_trial: int = Field(default=1, ge=1)
    variants: dict[str, dict[str, Any]] = Field(min_length=1, description="values by dotted path, by name of variant")


def compare(file: Path, overrides: list[str]) -> tuple[list[Row], Path]:
    """Run every variant under every seed that is not done yet; the rows, and the directory they were written to."""
    require_matplotlib()
    comparison = read_options(file, Comparison)
    run = read_run(comparison.recipe, str(file), overrides)
    check_made(comparison.recipe, run)
    base = plan_run(run)
    if wrong := [name for name, changes in comparison.variants.items() if "train.seed" in changes]:
        raise UsageError(f"{file}: {wrong[0]}: the seeds stand in `seeds`, not in a variant.")
    trials = {
        (name, seed): variant(base, changes | {"train.seed": seed}, f"{file}: {name}")
        for name, changes in comparison.variants.items()
        for seed in comparison.seeds
    }
    evaluated = base.config.evaluate
    if not evaluated.sets:
        raise UsageError(f"{file}: the run has no evaluate.sets, so there is nothing to compare by.")
    if len({plan.training for plan in trials.values()}) < len(comparison.variants) * len(comparison.seeds):
        raise UsageError(f"{file}: two variants, or two seeds, are the same training. Take one of them out.")
    for (name, _), plan in trials.items():
        if plan.config.train.num_workers:
            raise UsageError(f"{file}: {name}: trials train in one process each. Leave train.num_workers at 0.")
    if len({plan.config.prompts_of_own_texts.get("evaluate.own_texts") for plan in trials.values()}) > 1:
        raise UsageError(f"{file}: variants would write after different prompts. Name evaluate.own_texts.prompts.")
    check_inputs(base.config)
    _check_variants(base.config, {name: trials[name, comparison.seeds[0]] for name in comparison.variants}, file)
    lines = (f"{name}: {line}" for (name, _), plan in trials.items() for line in drawn_left_out(plan.config))
    for line in dict.fromkeys(lines):
        logger.warning(line)
    gpus = any(plan.config.train.use_gpu for plan in trials.values())
    connect(comparison.cpus_per_trial, float(gpus), "cpus_per_trial and train.use_gpu")
    directory = base.files.directory / f"comparison-{file.stem}"
    prepare(base)
    ensure_student(base)
    references = ask_models([teacher_of(base), student_before(base)], evaluated, base.files)
    results = _run(trials, comparison.cpus_per_trial, float(gpus))
    rows = [
        row_of(name, [results[name, seed] for seed in comparison.seeds], references) for name in comparison.variants
    ]
    directory.mkdir(parents=True, exist_ok=True)
    write_atomic(directory / "table.json", json.dumps([row.model_dump() for row in rows], indent=1, ensure_ascii=False))
    write_atomic(directory / "table.md", as_markdown(as_table(rows)))
    write_atomic(directory / "table.svg", plot(rows))
    base.files.upload(directory)
    return rows, directory


def _check_variants(base: RunConfig, variants: dict[str, RunPlan], file: Path) -> None:
    """Raises UsageError, naming the variant, where one does not fit the run's models and corpus."""
    prepared, student = known_tokenizer(base)
    teacher = build_teacher_tokenizer(base.teacher)
    for name, plan in variants.items():
        try:
            check_training(plan.config, prepared, teacher, bool(student.chat_template))
        except UsageError as error:
            raise UsageError(f"{file}: {name}: {error}") from error


def _run(trials: dict[tuple[str, int], RunPlan], cpus: int, gpus: float) -> dict[tuple[str, int], SeedResult]:
    """The results by variant and seed; as many trials at once as there are resources for."""
    files = {key: trial_file(plan) for key, plan in trials.items()}
    for key, file in files.items():
        trials[key].files.fetch(file)
    done = {
        key: SeedResult.model_validate_json(file.read_text())
        for key, file in files.items()
        if trials[key].files.has(file)
    }
    if done:
        logger.info(f"compare: {len(done)} of {len(trials)} trials are done already")
    if len(done) == len(trials):
        return done
    for key, plan in trials.items():
        if key not in done and not _is_ours(plan):
            raise UsageError(
                f"{plan.checkpoints}: this training was begun by another command, so what it cost is not known, and "
                "it would be taken away. Move it, delete it, or compare under another name: --set name=…"
            )
    task = ray.remote(num_cpus=cpus, num_gpus=gpus, max_calls=1)(_trial)  # a fresh process: its peak is its own
    running = {task.remote(plan): key for key, plan in trials.items() if key not in done}
    failed: list[Exception] = []
    with reraised_errors(), progress("compare", len(trials)) as reporter:
        while running:
            (ready,), _ = ray.wait(list(running), num_returns=1)
            name, seed = running.pop(ready)
            try:
                done[name, seed] = SeedResult.model_validate_json(ray.get(ready))
            except RayError as error:  # what the others have done is not lost
                failed.append(error)
                logger.error(f"compare: {name}, seed {seed}: {getattr(error, 'cause', error)} The other trials go on.")
                continue
            reporter.update(len(done), f"{name}, seed {seed}")
        if failed:
            raise failed[0]
    return done


def _trial(plan: RunPlan) -> str:
    """Train and measure one variant under one seed; another comparison that wants the same trial waits."""
    with stage_lock(plan.files, f"compare-{plan.training.name}"):
        return _trial_alone(plan)


def _trial_alone(plan: RunPlan) -> str:
    cost = plan.training / COST
    plan.files.fetch(cost)
    if not plan.files.has(cost):  # a killed trial starts again: its cost is that of all steps
        with stage_lock(plan.files, plan.training.name):  # `ctd train` may be at it
            shutil.rmtree(plan.training, ignore_errors=True)
            if names_in(plan.checkpoints):
                delete_folder(plan.checkpoints)
            plan.training.mkdir(parents=True)
            write_atomic(plan.training / COMPARED, "")
            plan.files.upload(plan.training / COMPARED)
        train_whole(plan)
        if torch.cuda.is_available():
            peak = torch.cuda.max_memory_allocated() / 2**20
        else:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        steps = [line["seconds"] for line in read_metrics(plan.training / METRICS_FILE)]
        write_atomic(cost, Cost(seconds_a_step=statistics.median(steps), peak_memory_mb=peak).model_dump_json())
        plan.files.upload(cost)
    evaluated = plan.config.evaluate
    checkpoint = trained_checkpoint(plan.checkpoints)
    tasks = ask_here(student_after(plan, checkpoint), evaluated, plan.files)
    if evaluated.own_texts is not None:
        tasks.append(measure_own_texts(plan, evaluated.own_texts, checkpoint))
    report = measure(plan).model_copy(update={"tasks": tasks})
    trial = SeedResult(report=report, cost=Cost.model_validate_json(cost.read_text()))
    write_atomic(trial_file(plan), trial.model_dump_json())
    plan.files.upload(trial_file(plan))
    return trial.model_dump_json()


def _is_ours(plan: RunPlan) -> bool:
    """Whether a comparison began this training, or nobody did."""
    there = names_in(plan.checkpoints)
    return not there or COMPARED in there or COST in there


def trial_file(plan: RunPlan) -> Path:
    """What a trial came to, by all that it was asked."""
    evaluated = plan.config.evaluate
    asked: list[object] = [task.stamp() for task in tasks_in(evaluated)]
    if evaluated.own_texts is not None:
        asked += [
            OWN_TEXTS_VERSION,
            evaluated.own_texts.model_dump(),
            prompts_fingerprint(plan.config, "evaluate.own_texts"),
        ]
    return plan.training / f"trial-{fingerprint(plan.evaluation, asked) if asked else plan.evaluation}.json"
