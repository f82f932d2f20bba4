"""Prompts of a file, and what a model writes after them."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerFast

from ctd_core.errors import UsageError, first_line
from ctd_core.generation.sampler import Sampler, Sampling, TransformersSampler, Written
from ctd_core.text.chat import TEMPLATE_ERRORS, apply_template
from ctd_core.text.corpora.records import ROLES, SYSTEM, WRITTEN_BESIDE, Record, first_beside
from ctd_core.text.documents import is_unicode
from ctd_core.text.prepared_tokenizer import written_before_text
from ctd_core.text.stops import stops_of

GENERATED = "generated"  # the field of a record for what was written


def read_prompts(file: Path) -> list[Record]:
    """The records of a file of JSON lines, each with a `prompt` (a text or messages) or `messages`.

    Raises UsageError, with the line, where one has neither.
    """
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")  # a string may hold other ends of lines
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{file}: cannot be read ({error}).") from error
    records = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{file}:line {number}: not a line of JSON ({error}).") from error
        given = prompt_of(record) if isinstance(record, dict) else None
        if not isinstance(given, str) and not _are_messages(given):
            raise UsageError(
                f"{file}:line {number}: no `prompt` (a text or messages) and no `messages`, each with a role."
            )
        if given and _are_messages(given) and ROLES.get(given[-1]["role"].lower()) == "assistant":
            raise UsageError(f"{file}:line {number}: the last message is an answer. Leave it out to have another.")
        if isinstance(given, str) and not given.strip():
            raise UsageError(f"{file}:line {number}: the prompt is empty.")
        if not is_unicode(json.dumps(given, ensure_ascii=False)):
            raise UsageError(f"{file}:line {number}: half a surrogate pair is no text. Write the prompt as UTF-8.")
        has_system = isinstance(record.get(SYSTEM), str)
        names = [*([SYSTEM] if has_system else []), *(WRITTEN_BESIDE if isinstance(given, list) else [])]
        if beside := first_beside(record, names):
            way = "Write it as the first of `messages`, or take" if beside == SYSTEM else "Take"
            raise UsageError(
                f"{file}:line {number}: {beside!r} is not read, and it would be asked without. {way} it out."
            )
        if GENERATED in record:
            raise UsageError(f"{file}:line {number}: {GENERATED!r} is where the answer would stand. Name it otherwise.")
        records.append(record)
    if not records:
        raise UsageError(f"{file}: no prompts are there.")
    return records


def prompt_of(record: Record) -> Any:
    """A record's text or messages; None where it has neither."""
    return record.get("prompt") or record.get("messages") or None


def named_token(record: Record, names: re.Pattern[str]) -> str | None:
    """The first of `names`, of special tokens, in a prompt: models read it as the token, and shards hold it as text."""
    found = names.search(json.dumps(prompt_of(record), ensure_ascii=False))
    return found[0] if found else None


def ends_of(sampler: Sampler, tokenizer: PreTrainedTokenizerFast, name: str) -> set[int]:
    """The tokens after which a model writes nothing more.

    Of those that its own settings name, as Llama 3's and Qwen's `<|endoftext|>`, added ones: a config that nobody set
    names an ordinary token.
    """
    return stops_of(tokenizer, name) | {token for token in sampler.stops if token in tokenizer.added_tokens_decoder}


def text_tokens(tokenizer: PreTrainedTokenizerFast) -> frozenset[int]:
    """The ids that a text can be written with: neither special tokens nor rows of an output matrix beyond all."""
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    return frozenset(tokenizer.get_vocab().values()) - special


def _are_messages(given: Any) -> bool:
    return isinstance(given, list) and all(
        isinstance(message, dict) and isinstance(message.get("role"), str) for message in given
    )


class PromptEncoder:
    """Encodes prompts: as messages to answer where the tokenizer has a chat template, as texts to go on with elsewhere.

    Args:
        tokenizer: the model's tokenizer.
        name: what messages call the model.
        options: how much it is to write.
        max_positions: how many tokens it reads; None where that is not known.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerFast, name: str, options: Sampling, max_positions: int | None
    ) -> None:
        self._tokenizer, self._name, self._options = tokenizer, name, options
        self._max_positions = max_positions
        self._begin = written_before_text(tokenizer)

    def encode(self, record: Record, place: str) -> list[int]:
        """The token ids of a prompt; raises UsageError, naming `place`, where it is too long or has no template."""
        given = prompt_of(record)
        if self._tokenizer.chat_template:
            messages = [{"role": "user", "content": given}] if isinstance(given, str) else given
            try:
                ids = apply_template(self._tokenizer, messages, add_generation_prompt=True)["input_ids"]
            except TEMPLATE_ERRORS as error:
                raise UsageError(
                    f"{place}: the chat template of {self._name} refuses it: {first_line(error)}."
                ) from error
        elif isinstance(given, str):
            plain = self._tokenizer(given, add_special_tokens=False)["input_ids"]  # and no end behind it
            ids = [*self._begin, *plain]
        else:
            raise UsageError(f"{place}: messages, and {self._name} has no chat template. Give a text as `prompt`.")
        new, most = self._options.max_new_tokens, self._max_positions
        if most is not None and len(ids) + new > most:
            raise UsageError(
                f"{place}: {len(ids)} tokens and {new} new ones are more than the {most} that {self._name} reads. "
                "Shorten it, or lower max_new_tokens."
            )
        return [int(token) for token in ids]


class Answerer(PromptEncoder):
    """Writes after prompts: an answer where the tokenizer has a chat template, a continuation of the text elsewhere.

    Args:
        sampler: the model.
        tokenizer: its tokenizer.
        name: what messages call it.
        options: how it draws.
        max_positions: how many tokens it reads; None where that is not known.
    """

    def __init__(
        self,
        sampler: Sampler,
        tokenizer: PreTrainedTokenizerFast,
        name: str,
        options: Sampling,
        max_positions: int | None,
    ) -> None:
        super().__init__(tokenizer, name, options, max_positions)
        self._sampler, self._stops = sampler, ends_of(sampler, tokenizer, name)
        self._text_tokens = text_tokens(tokenizer)

    def answer(self, records: Sequence[Record], prompts: Sequence[Sequence[int]], seed: int) -> list[Record]:
        """The records with what was `generated`: its `text`, whether it `ended` by itself, its number of `tokens`, how
        many before the end are `special_tokens` or none, which the text leaves out, and all tokens' summed `logprob`.
        """
        written = self._sampler.write(prompts, self._stops, self._options, seed)
        return [
            record | {GENERATED: self._generated(prompt, text)}
            for record, prompt, text in zip(records, prompts, written, strict=True)
        ]

    def _generated(self, prompt: Sequence[int], written: Written) -> Record:
        kept, has_ended = written.without_end(self._stops)
        text = self._tokenizer.decode(kept, skip_special_tokens=True)
        if not self._tokenizer.chat_template:  # by themselves, some tokenizers' tokens lose the space before them
            before, whole = (
                self._tokenizer.decode(part, skip_special_tokens=True) for part in (list(prompt), [*prompt, *kept])
            )
            text = whole.removeprefix(before) if whole.startswith(before) else text
        return {
            "text": text,
            "ended": has_ended,
            "tokens": len(written.ids),
            "special_tokens": sum(token not in self._text_tokens for token in kept),
            "logprob": round(sum(written.logprobs), 4),
        }


def continue_text(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, name: str, prompts: Sequence[str], max_new_tokens: int
) -> list[str]:
    """What a model that is called `name` writes after each prompt, greedily, one after another, however long."""
    options = Sampling(max_new_tokens, temperature=0)
    answerer = Answerer(TransformersSampler(model), tokenizer, name, options, max_positions=None)
    records = [{"prompt": prompt} for prompt in prompts]
    ids = [answerer.encode(record, f"the prompt {record['prompt']!r:.40}") for record in records]
    answers = [answerer.answer([record], [prompt], seed=0)[0] for record, prompt in zip(records, ids, strict=True)]
    return [answer[GENERATED]["text"] for answer in answers]
