"""The student's tokenizer, which some runs train."""

import logging
import time
from collections.abc import Iterator

from transformers import PreTrainedTokenizerFast

from ctd_core.config.run import RunConfig
from ctd_core.config.text import TrainedTokenizer
from ctd_core.errors import DocumentError
from ctd_core.models.tokenizers import build_student_tokenizer
from ctd_core.storage.atomic import atomic_directory
from ctd_core.text.corpora import in_turn, plan_slices, read_slice
from ctd_core.text.corpora.slices import training_documents
from ctd_core.text.documents import is_unicode
from ctd_core.text.prepared_tokenizer import PreparedTokenizer
from ctd_core.text.tokenizers import save_tokenizer, train_tokenizer
from pipelines.artifacts.background import repeating
from pipelines.artifacts.run_plan import RunPlan, check_corpus_unchanged
from pipelines.display.progress import progress

logger = logging.getLogger(__name__)


def student_tokenizer(plan: RunPlan) -> PreparedTokenizer:
    """The student's tokenizer, prepared; `ensure_tokenizer` has to have run where it is trained."""
    if plan.tokenizer is not None:
        plan.files.fetch(plan.tokenizer)
    return build_student_tokenizer(plan.config.student, plan.config.teacher, plan.tokenizer)


def ensure_tokenizer(plan: RunPlan) -> None:
    """Train the student's tokenizer where the run trains one and has not done so yet."""
    options, directory = plan.config.student.tokenizer, plan.tokenizer
    if not isinstance(options, TrainedTokenizer) or directory is None:
        return
    plan.files.fetch(directory)
    if directory.exists():
        plan.files.upload(directory, overwrite=False)  # where an earlier try was cut short
        return
    logger.info("prepare: training a tokenizer of %d entries", options.vocab_size)
    tokenizer = _train(plan.config, options)
    check_corpus_unchanged(plan)
    with atomic_directory(directory) as temporary:
        save_tokenizer(tokenizer, temporary)
    plan.files.upload(directory)


def _train(config: RunConfig, options: TrainedTokenizer) -> PreTrainedTokenizerFast:
    """A new tokenizer, while progress is shown."""
    read_bytes, start = 0, time.monotonic()

    def texts() -> Iterator[str]:
        nonlocal read_bytes
        for text in _texts(config, options.max_text_bytes):
            yield text
            read_bytes += len(text.encode())

    def show() -> None:
        reporter.update(read_bytes, f"bytes read, {time.monotonic() - start:.0f} s")

    with progress("prepare: tokenizer", options.max_text_bytes) as reporter, repeating(2.0, show):
        return train_tokenizer(texts(), options.vocab_size)


def _texts(config: RunConfig, max_text_bytes: int) -> Iterator[str]:
    """The corpus without its held-out documents, the sample and the rest alike; sources of a mixture in turn."""
    corpus = config.corpus.model_copy(update={"sample_fraction": 1.0})
    total = 0
    for corpus_slice in in_turn(plan_slices(config.corpus, config.prepare.slice_bytes)):
        for document in training_documents(corpus, read_slice(corpus, corpus_slice)):
            if isinstance(document, DocumentError) or not is_unicode(document.text):
                continue  # counted and dropped when it is encoded
            size = len(document.text.encode())
            if total and total + size > max_text_bytes:  # the first one has to do, however long it is
                return
            total += size
            yield document.text
