"""`ctd export`: the trained student as a directory for Hugging Face transformers, with a model card."""

import json
import logging
import re
from pathlib import Path
from typing import Any

import yaml
from transformers.utils.hub import cached_file

from ctd_core.models.export import export_model
from ctd_core.models.model_config import is_byte_expanded
from ctd_core.storage.atomic import atomic_directory, write_atomic
from ctd_core.storage.locations import open_to_read
from pipelines.artifacts.checkpoints import name_of, steps_done, trained_checkpoint
from pipelines.artifacts.locks import stage_lock
from pipelines.artifacts.report import RESULTS, Report, measured_checkpoint, metrics_table, read_report, tasks_table
from pipelines.artifacts.run_plan import RunPlan
from pipelines.display.tables import as_markdown
from pipelines.stages.student import load_student
from pipelines.stages.tokenizer import student_tokenizer

logger = logging.getLogger(__name__)

EXPANDED_LOOP = """
It reads the bytes before each byte: a loop of your own that keeps a cache gives
`inputs_embeds=model.get_input_embeddings()(all_ids)[:, -new:]` in place of `input_ids`.
"""
DISTANCE = """
The distance is the sum of the absolute differences of the log-likelihoods of text chunks on which both tokenizers
agree, in bits per byte of text.
"""


def export(plan: RunPlan) -> Path:
    """Write the student of the latest checkpoint; raises CtdError where there is none."""
    with stage_lock(plan.files, RESULTS):
        if read_report(plan) is None:
            logger.info("export: this student is not measured, and its card says so: `ctd evaluate` does it")
        return write_model(plan)


def write_model(plan: RunPlan) -> Path:
    """As `export`, for who has the lock."""
    checkpoint, tokenizer = trained_checkpoint(plan.checkpoints), student_tokenizer(plan)
    model, card = load_student(plan, tokenizer, checkpoint).language_model, _card(plan, checkpoint, read_report(plan))
    with atomic_directory(plan.model) as temporary:
        export_model(model, tokenizer.exported, card, temporary)
    plan.files.upload(plan.model)
    return plan.model


def refresh_card(plan: RunPlan, report: Report) -> None:
    """Write the exported model's card again, where `report` measured that model; for who has the lock."""
    if is_exported(plan, report):
        card = plan.model / "README.md"
        write_atomic(card, _card(plan, measured_checkpoint(plan, report), report))
        plan.files.upload(card)


def is_exported(plan: RunPlan, report: Report) -> bool:
    """Whether the exported model, here and in the store, is the one that `report` measured, with its figures on the
    card.
    """
    card = plan.model / "README.md"
    if not card.is_file() or not plan.files.has(plan.model):
        return False
    cards = []
    for place in dict.fromkeys((str(card), plan.files.within(card))):  # another machine may have exported another one
        with open_to_read(place) as stream:
            cards.append(stream.read().decode())
    return all(_source(report.run) in text for text in cards)


def _source(run: str) -> str:
    return f"Exported from `{run}`."


def _card(plan: RunPlan, checkpoint: str, report: Report | None) -> str:
    config = plan.config
    tables = [metrics_table(report), tasks_table(report.tasks)] if report else []
    measured = "\n".join(as_markdown(table) for table in tables if table.rows)
    measured = f"{measured}{DISTANCE}" if measured else "Nothing was measured: `ctd evaluate` does it.\n"
    origin = config.origin
    is_expanded = config.student.byte_expansion is not None or is_byte_expanded(
        origin.model, origin.revision, origin.trust_remote_code
    )
    trust, loop = (", trust_remote_code=True", EXPANDED_LOOP) if is_expanded else ("", "")  # see models.byte_expansion
    recipe = yaml.safe_dump(without_paths(json.loads(config.model_dump_json(exclude={"output"}))), sort_keys=False)
    base, teacher = config.student.model or config.teacher.model, model_name(config.teacher.model)
    objectives = ", ".join(objective.kind for objective in config.train.objectives)
    method = f"cross-tokenizer distillation ({objectives})"
    if any(objective.kind == "alm" for objective in config.train.objectives):
        method += ", with approximate likelihood matching (arXiv 2503.20083),"
    head: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "text-generation"}
    head |= {} if Path(base).exists() else {"base_model": base}
    head |= {"license": licence} if (licence := _licence(base)) else {}
    head["tags"] = ["distillation", "cross-tokenizer"]
    return f"""---
{yaml.safe_dump(head, sort_keys=False)}---
# {config.name}

{model_name(base)} as a student of {teacher} under another tokenizer ({config.student.tokenizer.kind}), trained by
{method} for {steps_done(checkpoint)} steps on {config.corpus.kind}. {_licence_words(licence, base)}

## Use

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("PATH OR ID OF THIS MODEL")
model = AutoModelForCausalLM.from_pretrained("PATH OR ID OF THIS MODEL"{trust})
inputs = tokenizer("The capital of France is", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=40)[0]))
```
{loop}
## Measured

{measured}
## Recipe

```yaml
{recipe}```

{_source(report.run if report else f"{plan.training.name}/{name_of(checkpoint)}")}
"""


def model_name(name: str) -> str:
    """What to call a model where others read it: its hub id, or the name of its directory."""
    return Path(name).name if Path(name).exists() or Path(name).is_absolute() else name


def without_paths(values: Any) -> Any:
    """`values` with only the last part of every absolute path, and of every path in a home directory."""
    if isinstance(values, str):
        is_path = values.startswith(("/", "~", "file:", "../"))
        return "…/" + values.rstrip("/").rpartition("/")[2] if is_path else values
    if isinstance(values, dict):
        return {key: without_paths(value) for key, value in values.items()}
    return [without_paths(value) for value in values] if isinstance(values, list) else values


def _licence(base: str) -> str | None:
    """The licence that the card of a model, in a directory or on the hub, names; None where none is known."""
    try:
        card = cached_file(base, "README.md", _raise_exceptions_for_missing_entries=False)
    except (OSError, ValueError):  # the hub does not answer, or this is no model's name
        return None
    if card is None:
        return None
    text = Path(card).read_text(encoding="utf-8", errors="replace")
    match = re.match(r"---\n.*?^license: *([\w.+-]+) *$.*?^---$", text, re.DOTALL | re.MULTILINE)
    return match[1] if match else None


def _licence_words(licence: str | None, base: str) -> str:
    if licence is not None:
        return f"The licence, {licence}, is that of {model_name(base)}."
    return f"The licence of {model_name(base)} holds for it too."
