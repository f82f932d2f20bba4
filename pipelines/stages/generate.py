"""`ctd generate`: a model writes a corpus."""

import json
import logging
import time
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from ctd_core.errors import UsageError
from ctd_core.generation.sampler import Sampling, TransformersSampler
from ctd_core.generation.writing import Writer
from ctd_core.models.loading import load_model
from ctd_core.storage.atomic import write_atomic
from ctd_core.text.tokenizers import load_tokenizer
from pipelines.display.progress import progress

logger = logging.getLogger(__name__)


def generate(model: str, output: Path, documents: int, batch: int, options: Sampling, seed: int) -> None:
    """Write a file of JSON lines; what is there from an earlier, stopped call is kept and gone on with.

    Args:
        model: a directory or a hub id.
        output: the file.
        documents: how many, about: where nothing was written, there is no line.
        batch: how many are written at once.
        options: how tokens are drawn.
        seed: of the draws.

    Raises:
        UsageError: there is no such model, the file is of other settings, or another command writes it.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(f"{output}.lock", timeout=0):
            _generate(model, output, documents, batch, options, seed)
    except Timeout as error:
        raise UsageError(f"{output}: another `ctd generate` writes this file. Wait for it, or name another.") from error


def _generate(model: str, output: Path, documents: int, batch: int, options: Sampling, seed: int) -> None:
    settings = {"model": model, "batch": batch, "seed": seed, **vars(options)}
    settings_file = output.with_name(f"{output.name}.settings.json")
    done = _done(output, settings_file, settings)

    def record(written: int, num_bytes: int) -> None:
        write_atomic(settings_file, json.dumps(settings | {"done": written, "bytes": num_bytes}))

    if done >= documents:
        logger.info("generate: %s has its %d documents already", output, documents)
        return
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    sampler = TransformersSampler(
        load_model(model, dtype="bfloat16" if device.type == "cuda" else "float32").to(device)
    )
    writer = Writer(sampler, load_tokenizer(model), model, options)
    begin = time.monotonic()
    if not done:
        record(0, 0)  # whoever is stopped in the first batch goes on too
    with progress("generate", documents) as reporter, output.open("a") as stream:
        for start in range(done, documents, batch):
            records = writer.write(min(batch, documents - start), seed * 1_000_003 + start)
            stream.write("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
            stream.flush()
            record(min(start + batch, documents), output.stat().st_size)
            reporter.update(min(start + batch, documents), f"documents, {time.monotonic() - begin:.0f} s")
    field = "messages: messages" if writer.is_chat else "field: text"
    with output.open() as stream:
        kept = sum(1 for _ in stream)
    logger.info(
        "generate: %d of %d are in %s; the others were empty, or longer than %d tokens",
        kept, documents, output, options.max_new_tokens,
    )  # fmt: skip
    logger.info("generate: use it as corpus: {kind: jsonl, paths: [%s], %s}", output, field)


def _done(output: Path, settings_file: Path, settings: dict[str, object]) -> int:
    """How many documents are written already; half a batch of a stopped call is taken away."""
    if not output.exists():
        return 0
    try:
        found = json.loads(settings_file.read_text())
    except (OSError, ValueError):
        found = {}
    if {name: found.get(name) for name in settings} != settings:
        raise UsageError(
            f"{output}: this file is there already, of other settings. Name another --output, or delete it."
        )
    with output.open("r+") as stream:
        stream.truncate(found["bytes"])
    return int(found["done"])
