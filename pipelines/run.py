"""`ctd run`: prepare, train, evaluate, export, and a report."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from ctd_core.models.export import continue_text
from pipelines.cluster import let_go
from pipelines.evaluate import evaluate
from pipelines.export import export
from pipelines.places import Places
from pipelines.prepare import prepare
from pipelines.report import Continuation, Report, write_report
from pipelines.train import train_student


def run(places: Places) -> Report:
    """The whole run; what report.json then holds."""
    seconds: dict[str, float] = {}

    @contextmanager
    def timed(stage: str) -> Iterator[None]:
        start = time.monotonic()
        yield
        seconds[stage] = round(time.monotonic() - start, 1)

    with timed("prepare"):
        manifests = prepare(places)
    if not places.config.train.num_workers:
        let_go()
    with timed("train"):
        train_student(places)
    with timed("evaluate"):
        report = evaluate(places)
    with timed("export"):
        export(places)
    with timed("sample"):
        samples = _samples(places)
    data = {name: manifest.counts for name, manifest in manifests.items()}
    report = report.model_copy(update={"data": data, "samples": samples, "seconds": seconds})
    write_report(places, report)
    return report


def _samples(places: Places) -> list[Continuation]:
    options, teacher = places.config.sample, places.config.teacher
    if not options.prompts:
        return []
    theirs = continue_text(teacher.model, teacher.revision, options.prompts, options.max_new_tokens)
    mine = continue_text(str(places.model), None, options.prompts, options.max_new_tokens)
    texts = zip(options.prompts, theirs, mine, strict=True)
    return [Continuation(prompt=prompt, teacher=their, student=my) for prompt, their, my in texts]
