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
from ctd_core.models.fingerprints import loaded_fingerprint
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


@dataclass(frozen=True)
class Job:
    """What writes, and how: all that decides what is written, but for prompts.

    models: directories or hub ids; several write as their ensemble. options: how tokens are drawn. batch: how many are
    written at once. seed: of the draws. average: what an ensemble averages. actors: which copies write.
    """

    models: Sequence[str]
    options: Sampling
    batch: int
    seed: int
    average: Average
    actors: Actors

    @property
    def max_positions(self) -> int | None:
        """How many tokens all models read; None where that is not known."""
        return min((found for model in self.models if (found := max_positions(model, None, False))), default=None)

    def settings(self) -> dict[str, object]:
        """As they stand beside the file, so that no other job goes on with it."""
        weights = [loaded_fingerprint(model) for model in self.models]
        of_ensemble = {"average": self.average} if len(self.models) > 1 else {}
        return {
            "models": list(self.models), "weights": weights, **of_ensemble, "batch": self.batch, "seed": self.seed,
            **vars(self.options), "gpu": self.actors.use_gpus, "version": WRITING_VERSION,
        }  # fmt: skip

    def load(self) -> tuple[Sampler, PreTrainedTokenizerFast, str, Sampling, int | None]:
        """The models, their tokenizer and their name, with the options and how much they read: what a writer takes."""
        use_gpus = self.actors.use_gpus
        model, tokenizer = load_ensemble(self.models, self.average, "bfloat16" if use_gpus else "float32")
        sampler = TransformersSampler(model.to("cuda" if use_gpus else "cpu"))
        return sampler, tokenizer, " + ".join(self.models), self.options, self.max_positions

    def seed_of(self, number: int) -> int:
        """The seed of the batch that begins with that number."""
        return self.seed * SEEDS + number


def generate(job: Job, output: Path, documents: int) -> None:
    """Write a corpus as a file of JSON lines; what is there from an earlier, stopped call is kept and gone on with.

    Args:
        job: what writes.
        output: the file.
        documents: how many, about: where nothing was written, there is no line.

    Raises:
        UsageError: there is no such model, the file is of other settings, or another command writes it.
    """
    longest, new_tokens = job.max_positions, job.options.max_new_tokens
    if longest is not None and new_tokens >= longest:
        raise UsageError(f"--max-new-tokens {new_tokens}: the model reads {longest} tokens at most.")
    kept = _append_batches(output, job.settings(), documents, job, partial(_documents, job))
    is_chat = any(load_tokenizer(model).chat_template for model in job.models)
    field = "messages: messages" if is_chat else "field: text"
    logger.info(
        "generate: %d of %d are in %s; the others were empty, held special tokens, or did not end within %d tokens "
        "or what the model reads. "
        "Use it as corpus: {kind: jsonl, paths: [%s], %s}",
        kept, documents, output, new_tokens, output, field,
    )  # fmt: skip


def _documents(job: Job) -> Batches:
    writer = Writer(*job.load())
    return lambda start, stop: writer.write(stop - start, job.seed_of(start))


def answer(job: Job, prompts: Path, output: Path) -> None:
    """Write after each prompt of a file of JSON lines: its record with the answer.

    Args:
        job: what writes.
        prompts: the file.
        output: the file that is written; one of an earlier, stopped call is gone on with.

    Raises:
        UsageError: as `generate`, and where a prompt cannot be read, or is too long.
    """
    records = read_prompts(prompts)
    names = names_of_special_tokens(load_tokenizer(job.models[0]))
    if named := [token for record in records if (token := named_token(record, names))]:
        logger.warning(
            "generate: %d of %d prompts hold the name of a special token, such as %s: the model reads it as the token, "
            "and `ctd prepare` takes it for text",
            len(named), len(records), named[0],
        )  # fmt: skip
    settings = job.settings() | {"prompts": hashlib.sha256(prompts.read_bytes()).hexdigest()}
    _append_batches(output, settings, len(records), job, partial(_answers, job, records, str(prompts)))
    logger.info("generate: %d answers are in %s", len(records), output)


def _answers(job: Job, records: list[Record], source: str) -> Batches:
    answerer = Answerer(*job.load())
    encoded = [answerer.encode(record, f"{source}: prompt {number}") for number, record in enumerate(records, 1)]
    return lambda start, stop: answerer.answer(records[start:stop], encoded[start:stop], job.seed_of(start))


def _append_batches(
    output: Path, settings: dict[str, object], total: int, job: Job, begin: Callable[[], Batches]
) -> int:
    """Append the records of all batches that are not there yet to a file of JSON lines.

    Args:
        output: the file.
        settings: all that decides what is written; a file of others is refused.
        total: how many records are asked for.
        job: what writes.
        begin: makes the function that writes those from one number up to another.

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
                bounds = [(start, min(start + job.batch, total)) for start in range(done, total, job.batch)]
                since, written = time.monotonic(), _in_order(begin, bounds, job.actors)
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
