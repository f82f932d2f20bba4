"""`ctd generate`: a model writes a corpus, or after prompts."""

import hashlib
import json
import logging
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import ray
import torch
from filelock import FileLock, Timeout
from transformers import PreTrainedTokenizerFast

from ctd_core.config.models import Average
from ctd_core.errors import UsageError
from ctd_core.generation.prompts import Answerer, named_token, read_prompts
from ctd_core.generation.sampler import Sampler, Sampling, TransformersSampler
from ctd_core.generation.writing import Writer
from ctd_core.models.ensemble import load_ensemble
from ctd_core.models.fingerprints import weights_fingerprint
from ctd_core.models.model_config import max_positions
from ctd_core.storage.atomic import write_atomic
from ctd_core.text.chat import names_of_special_tokens
from ctd_core.text.corpora.records import Record
from ctd_core.text.documents import is_unicode
from ctd_core.text.tokenizers import load_tokenizer
from pipelines.cluster.connection import connect, reraised_errors
from pipelines.display.progress import progress

logger = logging.getLogger(__name__)
SEEDS = 1_000_003  # apart, so that no batch of one seed draws as one of another
WRITING_VERSION = 2  # of what is written: since 2, questions and texts end where models and templates say
RETRIES = 3  # of a batch whose machine is lost
Batches = Callable[[int, int], list[Record]]  # from one number on, up to another


@dataclass(frozen=True)
class Actors:
    """Copies of the model that write on Ray at the same time; none writes in this process. gpus: of each."""

    count: int = 0
    gpus: float = 0.0

    @property
    def use_gpus(self) -> bool:
        """Whether the model is on GPUs: in this process where there is one."""
        return self.gpus > 0 if self.count else torch.cuda.is_available()


HERE = Actors()


def generate(
    models: Sequence[str],
    output: Path,
    documents: int,
    batch: int,
    options: Sampling,
    seed: int,
    average: Average,
    actors: Actors = HERE,
) -> None:
    """Write a corpus as a file of JSON lines; what is there from an earlier, stopped call is kept and gone on with.

    Args:
        models: directories or hub ids; several write as their ensemble.
        output: the file.
        documents: how many, about: where nothing was written, there is no line.
        batch: how many are written at once.
        options: how tokens are drawn.
        seed: of the draws.
        average: what an ensemble averages.
        actors: which copies write.

    Raises:
        UsageError: there is no such model, the file is of other settings, or another command writes it.
    """
    longest = _max_positions(models)
    if longest is not None and options.max_new_tokens >= longest:
        raise UsageError(f"--max-new-tokens {options.max_new_tokens}: the model reads {longest} tokens at most.")
    uses_gpu = actors.use_gpus
    settings = _settings(models, batch, options, seed, average, uses_gpu)
    begin = partial(_documents, models, options, seed, average, uses_gpu)
    kept = append_batches(output, settings, documents, batch, begin, actors)
    is_chat = any(load_tokenizer(model).chat_template for model in models)
    field = "messages: messages" if is_chat else "field: text"
    logger.info(
        "generate: %d of %d are in %s; the others were empty, held special tokens, or did not end within %d tokens "
        "or what the model reads. "
        "Use it as corpus: {kind: jsonl, paths: [%s], %s}",
        kept, documents, output, options.max_new_tokens, output, field,
    )  # fmt: skip


def _documents(models: Sequence[str], options: Sampling, seed: int, average: Average, uses_gpu: bool) -> Batches:
    writer = Writer(*_sampler(models, average, uses_gpu), options, _max_positions(models))
    return lambda start, stop: writer.write(stop - start, seed * SEEDS + start)


def answer(
    models: Sequence[str],
    prompts: Path,
    output: Path,
    batch: int,
    options: Sampling,
    seed: int,
    average: Average,
    actors: Actors = HERE,
) -> None:
    """Write after each prompt of a file of JSON lines: its record with the answer.

    Args:
        models: directories or hub ids; several write as their ensemble.
        prompts: the file.
        output: the file that is written; one of an earlier, stopped call is gone on with.
        batch: how many are written at once.
        options: how tokens are drawn.
        seed: of the draws.
        average: what an ensemble averages.
        actors: which copies write.

    Raises:
        UsageError: as `generate`, and where a prompt cannot be read, or is too long.
    """
    records = read_prompts(prompts)
    names = names_of_special_tokens(load_tokenizer(models[0]))
    if named := [token for record in records if (token := named_token(record, names))]:
        logger.warning(
            "generate: %d of %d prompts hold the name of a special token, such as %s: the model reads it as the token, "
            "and `ctd prepare` takes it for text",
            len(named), len(records), named[0],
        )  # fmt: skip
    content = hashlib.sha256(prompts.read_bytes()).hexdigest()
    uses_gpu = actors.use_gpus
    settings = _settings(models, batch, options, seed, average, uses_gpu) | {"prompts": content}
    begin = partial(_answers, models, records, str(prompts), options, seed, average, uses_gpu)
    append_batches(output, settings, len(records), batch, begin, actors)
    logger.info("generate: %d answers are in %s", len(records), output)


def _answers(
    models: Sequence[str],
    records: list[Record],
    source: str,
    options: Sampling,
    seed: int,
    average: Average,
    uses_gpu: bool,
) -> Batches:
    answerer = Answerer(*_sampler(models, average, uses_gpu), options, _max_positions(models))
    encoded = [answerer.encode(record, f"{source}: prompt {number}") for number, record in enumerate(records, 1)]
    return lambda start, stop: answerer.answer(records[start:stop], encoded[start:stop], seed * SEEDS + start)


def _max_positions(models: Sequence[str]) -> int | None:
    """How many tokens all of them read."""
    return min((found for model in models if (found := max_positions(model, None, False))), default=None)


def _settings(
    models: Sequence[str], batch: int, options: Sampling, seed: int, average: Average, uses_gpu: bool
) -> dict[str, object]:
    """All that decides what is written."""
    weights = [weights_fingerprint(model, None) for model in models]
    of_models = {"models": list(models), "weights": weights} | ({"average": average} if len(models) > 1 else {})
    return of_models | {"batch": batch, "seed": seed, **vars(options), "gpu": uses_gpu, "version": WRITING_VERSION}


def _sampler(models: Sequence[str], average: Average, uses_gpu: bool) -> tuple[Sampler, PreTrainedTokenizerFast, str]:
    model, tokenizer = load_ensemble(models, average, "bfloat16" if uses_gpu else "float32")
    return TransformersSampler(model.to("cuda" if uses_gpu else "cpu")), tokenizer, " + ".join(models)


def append_batches(
    output: Path,
    settings: dict[str, object],
    total: int,
    batch: int,
    begin: Callable[[], Batches],
    actors: Actors = HERE,
) -> int:
    """Append the records of all batches that are not there yet to a file of JSON lines.

    Args:
        output: the file.
        settings: all that decides what is written; a file of others is refused.
        total: how many records are asked for.
        batch: how many at once.
        begin: makes the function that writes those from one number up to another.
        actors: which copies write.

    Returns:
        How many lines there are in the end.

    Raises:
        UsageError: the file is of other settings, or another command writes it.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    settings_file = output.with_name(f"{output.name}.settings.json")

    def record(written: int, num_bytes: int) -> None:
        write_atomic(settings_file, json.dumps(settings | {"done": written, "bytes": num_bytes}))

    try:
        with FileLock(f"{output}.lock", timeout=0):
            done = _done(output, settings_file, settings)
            if done >= total:
                logger.info("generate: %s has its %d already", output, total)
            else:
                bounds = [(start, min(start + batch, total)) for start in range(done, total, batch)]
                since, written = time.monotonic(), _in_order(begin, bounds, actors)
                first = next(written)  # whatever is wrong comes out before there is a file
                if not done:
                    record(0, 0)
                with progress("generate", total) as reporter, output.open("a", encoding="utf-8") as stream:
                    for (_, stop), items in zip(bounds, chain([first], written), strict=True):
                        stream.write("".join(map(_line, items)))
                        stream.flush()
                        record(stop, output.stat().st_size)
                        reporter.update(stop, f"written, {time.monotonic() - since:.0f} s")
            with output.open(encoding="utf-8") as stream:
                return sum(1 for _ in stream)
    except Timeout as error:
        raise UsageError(f"{output}: another `ctd generate` writes this file. Wait for it, or name another.") from error


def _in_order(begin: Callable[[], Batches], bounds: list[tuple[int, int]], actors: Actors) -> Iterator[list[Record]]:
    """What is written from each number up to another, one after another."""
    if not actors.count:
        write = begin()
        yield from (write(start, stop) for start, stop in bounds)
        return
    connect(actors.count, actors.count * actors.gpus, "--actors and --gpus")
    with reraised_errors():
        needs = {"num_gpus": actors.gpus} if actors.gpus else {"num_cpus": 1}
        made: Any = ray.remote(max_restarts=-1, max_task_retries=RETRIES, **needs)(_Writing)
        copies = [made.remote(begin) for _ in range(min(actors.count, len(bounds)))]
        waiting = deque(copies[n % len(copies)].write.remote(*bound) for n, bound in enumerate(bounds))
        while waiting:
            yield ray.get(waiting.popleft())


class _Writing:
    """A copy of the model on Ray."""

    def __init__(self, begin: Callable[[], Batches]) -> None:
        self._begin = begin
        self._write: Batches | None = None

    def write(self, start: int, stop: int) -> list[Record]:
        if self._write is None:  # not before: an error of __init__ would not come out as itself
            self._write = self._begin()
        return self._write(start, stop)


def _line(record: Record) -> str:
    text = json.dumps(record, ensure_ascii=False)
    return (text if is_unicode(text) else json.dumps(record)) + "\n"


def _done(output: Path, settings_file: Path, settings: dict[str, object]) -> int:
    """How many documents are written already; half a batch of a stopped call is taken away."""
    if not output.exists():
        return 0
    try:
        found = json.loads(settings_file.read_text())
    except (OSError, ValueError):
        found = {}
    if not isinstance(found, dict) or {name: found.get(name) for name in settings} != settings:
        raise UsageError(
            f"{output}: this file is there already, of other settings. Name another --output, or delete it."
        )
    if output.stat().st_size < found.get("bytes", sys.maxsize):
        raise UsageError(f"{output}: the file is shorter than it was. Delete it, and it is written anew.")
    with output.open("r+") as stream:
        stream.truncate(found["bytes"])
    return int(found["done"])
