"""`ctd export`: the trained student as a directory for Hugging Face transformers, with a model card."""

import json
from pathlib import Path

import yaml

from ctd_core.models.export import export_model
from pipelines.checkpoints import steps_done, trained_checkpoint
from pipelines.places import Places
from pipelines.prepare import student_side
from pipelines.report import Report, read_report
from pipelines.run_files import whole_directory
from pipelines.train import load_student


def export(places: Places) -> Path:
    """Write the student of the latest checkpoint; raises CtdError where there is none."""
    checkpoint, side = trained_checkpoint(places), student_side(places)
    model, card = load_student(places, side, checkpoint).model, _card(places, checkpoint, read_report(places))
    with whole_directory(places.model) as temporary:
        export_model(model, side.encoder.tokenizer, card, temporary)
    places.files.share(places.model)
    return places.model


def _card(places: Places, checkpoint: str, report: Report | None) -> str:
    config = places.config
    rows = [
        f"| {name} | {one.teacher.bits_per_byte:.3f} | {one.student_before.bits_per_byte:.3f} | "
        f"{one.student_after.bits_per_byte:.3f} | {one.student_before.teacher_distance_bits_per_byte:.3f} | "
        f"{one.student_after.teacher_distance_bits_per_byte:.3f} |"
        for name, one in (report.sets if report else {}).items()
    ]
    measured = (
        "| text | teacher, bits per byte | before | after | distance to the teacher, before | after |\n"
        "|---|---|---|---|---|---|\n" + "\n".join(rows)
        if rows
        else "Nothing was measured."
    )
    recipe = yaml.safe_dump(json.loads(config.model_dump_json()), sort_keys=False)
    return f"""---
library_name: transformers
base_model: {config.student.model or config.teacher.model}
tags: [distillation, cross-tokenizer]
---
# {config.name}

A student of `{config.teacher.model}` under another tokenizer ({config.student.tokenizer.kind}), trained with
cross-tokenizer distillation (approximate likelihood matching, arXiv 2503.20083) for
{steps_done(checkpoint)} steps on {config.corpus.kind}.

## Measured

{measured}

The distance is the mean absolute difference of the log-likelihoods of text chunks on which both tokenizers agree, in
bits per byte.

## Recipe

```yaml
{recipe}```
"""
