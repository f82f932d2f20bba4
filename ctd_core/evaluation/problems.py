"""Problems with a number as their answer, such as GSM8K's, judged by what a model writes.

The number is taken out as lm-evaluation-harness does for its task gsm8k: strictly the first after `#### `, flexibly the
last one that is written. As there, they are compared as they are written, but for commas, $ and a final stop: 3.50 is
not 3.5.
"""

import re
from collections.abc import Callable, Iterator
from itertools import islice

from transformers import PreTrainedModel, PreTrainedTokenizerFast

from ctd_core.config.evaluation import Problems
from ctd_core.errors import DocumentError, UsageError
from ctd_core.evaluation.figures import TaskFigures
from ctd_core.generation.prompts import GENERATED, Answerer
from ctd_core.generation.sampler import Sampling, TransformersSampler
from ctd_core.models.model_config import positions_of
from ctd_core.text.corpora import read_documents

RULES = {
    "exact_match (strict-match)": re.compile(r"#### (-?[0-9.,]+)"),
    "exact_match (flexible-extract)": re.compile(r"-?[$0-9.,]{2,}|-?[0-9]+"),
}
IGNORED = (re.compile(","), re.compile(r"\$"), re.compile(r"(?s).*#### "), re.compile(r"\.$"))
NUMBER = re.compile(r"-?(\d+(\.\d*)?|\.\d+)")
SLICE_BYTES = 2**20


def read_problems(options: Problems) -> list[tuple[str, str]]:
    """Questions with their answers; raises UsageError where there are none, or one cannot be read or answered."""
    found = list(islice(_problems(options), options.limit))
    if not found:
        raise UsageError("evaluate.problems: no problem is there.")
    return found


def _problems(options: Problems) -> Iterator[tuple[str, str]]:
    for number, document in enumerate(read_documents(options.corpus, SLICE_BYTES), 1):
        if isinstance(document, DocumentError):
            raise UsageError(f"evaluate.problems: {document}")
        if [turn.role for turn in document.turns] != ["user", "assistant"]:
            raise UsageError(
                f"evaluate.problems: number {number}: it has other messages than a question and its answer. Give two "
                "fields of text."
            )
        question, answer = (turn.text for turn in document.turns)
        if not question.strip():
            raise UsageError(f"evaluate.problems: number {number}: its question is empty.")
        if not NUMBER.fullmatch(_plain(answer)):
            raise UsageError(
                f"evaluate.problems: number {number}: its answer gives no number: {answer[-60:]!r}. An answer is a "
                "number alone, without a unit, or a solution that ends in one, such as `#### 24`."
            )
        yield question, answer


def numbers_in(text: str) -> dict[str, str | None]:
    """The number that a text gives as its answer, by each rule: the first after ####, and the last of all."""
    found = {rule: pattern.findall(text) for rule, pattern in RULES.items()}
    return {
        rule: (numbers[0] if "strict" in rule else numbers[-1]) if numbers else None for rule, numbers in found.items()
    }


def is_right(number: str | None, answer: str) -> bool:
    """Whether a number is the answer's, which may be the number alone or a solution that ends in `#### 24`."""
    return number is not None and _plain(number) == _plain(answer)


def _plain(text: str) -> str:
    for pattern in IGNORED:
        text = pattern.sub("", text)
    return text.strip().lower()


def ask_problems(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    problems: list[tuple[str, str]],
    options: Problems,
    task: str,
    name: str,
    on_batch: Callable[[float], None] = lambda share: None,
) -> TaskFigures:
    """Let a model write after every problem, greedily: an answer, where its tokenizer has a chat template.

    Args:
        model: on its device.
        tokenizer: the model's; it writes before a text what has to stand there.
        problems: questions with their answers.
        options: how to ask.
        task: what results call the problems.
        name: what results and messages call the model.
        on_batch: called with the share of the problems that is done.

    Returns:
        The share that is right by each rule with its standard error, and the share of answers that ended by themselves.

    Raises:
        UsageError: a question is longer than the model reads.
    """
    sampling = Sampling(options.max_new_tokens, temperature=0)
    answerer = Answerer(TransformersSampler(model), tokenizer, name, sampling, positions_of(model))
    prompts = [
        answerer.encode({"prompt": question}, f"evaluate.problems.{task}: number {number}")
        for number, (question, _) in enumerate(problems, 1)
    ]
    right: dict[str, int] = dict.fromkeys(RULES, 0)
    ended = 0
    order = sorted(range(len(problems)), key=lambda number: len(prompts[number]))  # of like length together
    for start in range(0, len(order), options.batch_size):
        batch = order[start : start + options.batch_size]
        written = answerer.answer([{}] * len(batch), [prompts[number] for number in batch], seed=0)
        for number, record in zip(batch, written, strict=True):
            ended += record[GENERATED]["ended"]
            for rule, found in numbers_in(record[GENERATED]["text"]).items():
                right[rule] += is_right(found, problems[number][1])
        on_batch((start + len(batch)) / len(order))
    count = len(problems)
    shares = {rule: correct / count for rule, correct in right.items()} | {"ended by itself": ended / count}
    errors = {rule: (share * (1 - share) / max(count - 1, 1)) ** 0.5 for rule, share in shares.items()}
    return TaskFigures(task=task, model=name, figures=shares, errors=errors, questions=count)
