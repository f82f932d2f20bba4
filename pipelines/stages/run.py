"""`ctd run`: prepare, train, evaluate, export, and a report."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager

from transformers import PreTrainedModel, PreTrainedTokenizerFast

from ctd_core.config.evaluation import Sample
from ctd_core.generation.prompts import continue_text
from ctd_core.models.loading import load_model
from ctd_core.shards.manifest import Manifest
from ctd_core.text.tokenizers import load_tokenizer
from pipelines.artifacts.locks import stage_lock
from pipelines.artifacts.memory import peak_memory
from pipelines.artifacts.report import RESULTS, Continuation, Report, read_report, write_report
from pipelines.artifacts.report_page import write_page
from pipelines.artifacts.run_plan import RunPlan
from pipelines.cluster.connection import stop_local_ray
from pipelines.stages.asked_models import written_by
from pipelines.stages.evaluate import add_tasks, asks_anything, measure
from pipelines.stages.export import is_exported, write_model
from pipelines.stages.on_policy import train_whole
from pipelines.stages.prepare import prepare
from pipelines.stages.train import tell_other_trainings

logger = logging.getLogger(__name__)


def run(plan: RunPlan) -> Report:
    """Run every stage; returns what report.json then holds."""
    seconds: dict[str, float] = {}
    peaks: dict[str, int] = {}

    @contextmanager
    def timed(stage: str) -> Iterator[None]:
        start = time.monotonic()
        with peak_memory(peaks, stage):
            yield
        seconds[stage] = round(time.monotonic() - start, 1)

    with timed("prepare"):
        manifests = prepare(plan)
    if not plan.config.train.num_workers:
        stop_local_ray()
    with timed("train"):
        tell_other_trainings(plan)
        train_whole(plan)
    with stage_lock(plan.files, RESULTS):
        return _results(plan, manifests, seconds, peaks, timed)


def _results(
    plan: RunPlan,
    manifests: Mapping[str, Manifest],
    seconds: dict[str, float],
    peaks: dict[str, int],
    timed: Callable[[str], AbstractContextManager[None]],
) -> Report:
    """Measure, export, sample, and write the report."""
    measured = read_report(plan)
    with timed("evaluate"):
        if (report := measured) is None:
            report = measure(plan)
            write_report(plan, report)
    if measured is not None:
        logger.info(f"evaluate: this training is measured already, in {plan.report}; ctd evaluate measures it again")
    with timed("export"):
        if measured is None or not is_exported(plan, measured):
            write_model(plan)
    if asks_anything(plan.config.evaluate):
        with timed("tasks"):
            report = add_tasks(plan, report)
    with timed("sample"):
        samples = _samples(plan, [] if measured is None else measured.samples)
    data = {name: manifest.counts for name, manifest in manifests.items()}
    if measured is not None and measured.seconds:
        seconds, peaks = measured.seconds, measured.peak_memory_mb  # this time nothing was done
    of_run = {"data": data, "samples": samples, "seconds": seconds, "peak_memory_mb": peaks}
    report = report.model_copy(update=of_run)
    write_report(plan, report)
    write_page(plan, report)
    return report


def _samples(plan: RunPlan, earlier: list[Continuation]) -> list[Continuation]:
    """What teacher and student write: `earlier` where that is what is asked for now."""
    options, teacher = plan.config.sample, plan.config.teacher
    if not options.prompts:
        return []
    wanted = [(prompt, options.max_new_tokens) for prompt in options.prompts]
    if [(sample.prompt, sample.max_new_tokens) for sample in earlier] == wanted:
        return earlier
    trust = teacher.trust_remote_code, plan.config.student.trust_remote_code or teacher.trust_remote_code
    teacher_texts, teacher_answers = _continuations(
        load_model(teacher.model, teacher.revision, trust_remote_code=trust[0]), written_by(teacher), "teacher", options
    )
    student_texts, student_answers = _continuations(  # the teacher is gone by now
        load_model(str(plan.model), trust_remote_code=trust[1]), load_tokenizer(str(plan.model)), "student", options
    )
    texts = zip(options.prompts, teacher_texts, student_texts, strict=True)
    return [
        Continuation(
            prompt=prompt,
            teacher=teacher,
            student=student,
            answered={"teacher": teacher_answers, "student": student_answers},
            max_new_tokens=options.max_new_tokens,
        )
        for prompt, teacher, student in texts
    ]


def _continuations(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, name: str, options: Sample
) -> tuple[list[str], bool]:
    """What a model writes after each prompt, and whether prompts were messages to it."""
    texts = continue_text(model, tokenizer, f"the {name}", options.prompts, options.max_new_tokens)
    return texts, bool(tokenizer.chat_template)
