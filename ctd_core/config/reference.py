"""The reference of every field of a run's file, from the options themselves, and a commented file to begin with."""

import json
import re
from collections.abc import Iterator
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from ctd_core.config.base import Options
from ctd_core.config.run import RunConfig

NEW_RUN = """\
# A run: `ctd run --config THIS_FILE --dry-run` checks it. Every field: `ctd config --reference`.
name: mine                     # everything lands in runs/mine
teacher:
  model: ./my-teacher          # a directory or a hub id
student:
  tokenizer: {kind: pretrained, name: Qwen/Qwen2.5-0.5B}   # or {kind: train, vocab_size: 32000}, {kind: bytes}
  # model: ./my-student        # left out, the student is the teacher under the new tokenizer
corpus:
  kind: jsonl                  # or parquet, csv, arrow, text, dataset, stdlib-docs
  paths: [data/*.jsonl]        # or s3://bucket/*.jsonl
  field: text                  # for conversations instead: messages: messages; or prompt: … and response: …
  held_out_fraction: 0.01      # for evaluation
prepare:
  student_window_tokens: 1024
  teacher_window_tokens: 1024
  scoring_gpus: 0              # 1 scores with a GPU
train:
  steps: 5000
  batch_tokens: 4096           # of a micro-batch
  gradient_accumulation: 2     # of a step, over all workers
  learning_rate: 2.0e-4
  num_workers: 0               # Ray Train workers; 0 trains in the command's own process
  use_gpu: false
  objectives:
    - {kind: prefix_kl}        # the teacher's next-token distribution in the student's tokens
  evaluate_every: 500
evaluate:
  gap_set: general             # by which a transfer is judged: text of other domains than the training's
  sets:
    general: {kind: general}   # packaged English text; better: your own, {kind: jsonl, paths: [other.jsonl]}
    held-out: {kind: held_out}
sample:
  prompts: ["What is the capital of France?"]
"""


def reference() -> str:
    """Markdown: a section for each group of options, with a table of its fields."""
    lines = [
        "# Every field of a run's file",
        "",
        "Written by `ctd config --reference`; `ctd config --new` writes a file to begin with. Fields marked ↻ change",
        "how the work is done and not what comes out: unless they say otherwise, they can be changed without preparing",
        "or training anew.",
        "",
    ]
    for group in _groups(RunConfig, []):
        lines += [f"## {group.__name__}", "", " ".join(str(group.__doc__).split()), ""]
        lines += ["| field | type | default | meaning |", "|---|---|---|---|"]
        resources = group.resources()
        for name, field in group.model_fields.items():
            kind, default = _escaped(_type(field.annotation, field)), _escaped(_default(field))
            mark = " ↻" if name in resources else ""
            lines.append(f"| `{name}`{mark} | {kind} | {default} | {_escaped(field.description or '')} |")
        lines.append("")
    return "\n".join(lines)


def _groups(group: type[Options], seen: list[type[Options]]) -> list[type[Options]]:
    """`group` and every group that a field of it may hold, in the order in which they are met."""
    if group not in seen:
        seen.append(group)
        for field in group.model_fields.values():
            for inner in _options_in(field.annotation):
                _groups(inner, seen)
    return seen


def _options_in(annotation: Any) -> Iterator[type[Options]]:
    if isinstance(annotation, type) and issubclass(annotation, Options):
        yield annotation
    for inner in get_args(annotation):
        yield from _options_in(inner)


def _type(annotation: Any, field: FieldInfo | None = None) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(arguments[0])
    if origin is Literal:
        return ", ".join(str(value) for value in arguments)
    if origin in (Union, UnionType):
        return " or ".join(_type(argument) for argument in arguments) + _bounds(field)
    if origin is list:
        return f"list of {_type(arguments[0])}"
    if origin is dict:
        return f"{_type(arguments[1])} by name"
    if origin is tuple:
        return ", ".join(_type(argument) for argument in arguments)
    if annotation is type(None):
        return "none"
    if isinstance(annotation, type) and issubclass(annotation, Options):
        return f"[{annotation.__name__}](#{annotation.__name__.lower()})"
    names = {str: "text", int: "integer", float: "number", bool: "true or false"}
    return names.get(annotation, str(annotation)) + _bounds(field)


def _bounds(field: FieldInfo | None) -> str:
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    limits = field.metadata if field else []
    bounds = [
        f"{sign} {getattr(limit, name)}" for limit in limits for name, sign in signs.items() if hasattr(limit, name)
    ]
    return f" {', '.join(bounds)}" if bounds else ""


def _default(field: FieldInfo) -> str:
    if field.default is PydanticUndefined:
        return "required"
    if isinstance(field.default, Options):
        return "as below"
    value = field.default
    if isinstance(value, list) and value and isinstance(value[0], Options):
        return ", ".join(f"`kind: {option.kind}`" for option in value)
    if value is None:
        return "none"
    return f"`{json.dumps(value)}`".replace("Infinity", ".inf")


def _escaped(text: str) -> str:
    return re.sub(r"\|", r"\\|", text)
