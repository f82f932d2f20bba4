"""A corpus that a model writes itself: conversations where it has a chat template, texts where it has none.

An instruction-tuned model that is given nothing but the header of a user's message writes the message, and then answers
it (Magpie, arXiv 2406.08464).
"""

import sys
from bisect import bisect_left
from itertools import compress

from transformers import PreTrainedTokenizerFast

from ctd_core.errors import UsageError
from ctd_core.generation.prompts import ends_of, text_tokens
from ctd_core.generation.sampler import Sampler, Sampling
from ctd_core.text.chat import apply_template
from ctd_core.text.corpora.records import Record
from ctd_core.text.prepared_tokenizer import prepare_tokenizer
from ctd_core.text.stops import around_question


class Writer:
    """Writes documents by a sampler's tokenizer.

    Args:
        sampler: the model.
        tokenizer: its tokenizer.
        name: what messages call it.
        options: how it draws.
        max_positions: how many tokens it reads; None where that is not known.

    Raises:
        UsageError: it has neither a chat template nor a token that begins a text, or no room for as much.
    """

    def __init__(
        self,
        sampler: Sampler,
        tokenizer: PreTrainedTokenizerFast,
        name: str,
        options: Sampling,
        max_positions: int | None,
    ) -> None:
        self._sampler, self._tokenizer, self._options = sampler, tokenizer, options
        self._begin = list(prepare_tokenizer(tokenizer, name, None, None).markers["begin"])
        self._stops = self._stops_of_question = ends_of(sampler, tokenizer, name)
        self._after_question = ""
        self._text_tokens = text_tokens(tokenizer)
        self.is_chat = tokenizer.chat_template is not None
        if self.is_chat:
            self._begin, after, ids = around_question(tokenizer, name)
            if ids and ids[0] in tokenizer.added_tokens_decoder:
                self._stops_of_question = self._stops | {ids[0]}
            else:  # plain text, which the model writes, and then the answer
                self._after_question = after
        if not self._begin:
            raise UsageError(f"{name}: no token begins a text, so there is nothing to write after. Take another model.")
        new = options.max_new_tokens
        self._most = sys.maxsize if max_positions is None else max_positions - new
        if len(self._begin) > self._most:
            raise UsageError(
                f"--max-new-tokens {new}: {name} reads {max_positions} tokens at most, and {len(self._begin)} stand "
                "before a text."
            )

    def write(self, count: int, seed: int) -> list[Record]:
        """`count` documents, as records with `messages`, or with `text`.

        Less where nothing was written, where a message did not end (learned from, it would teach to stop anywhere) or
        holds special tokens, and where a question leaves its answer no room.

        Args:
            count: how many are written at once.
            seed: of what is drawn.

        Returns:
            A record each.
        """
        questions = self._texts([self._begin] * count, self._stops_of_question, 2 * seed, self._after_question)
        if not self.is_chat:
            return [{"text": text} for text in questions if text]
        asked = [[{"role": "user", "content": text}] for text in questions if text]
        prompts = [
            apply_template(self._tokenizer, messages, add_generation_prompt=True)["input_ids"] for messages in asked
        ]
        has_room = [len(prompt) <= self._most for prompt in prompts]
        asked, prompts = list(compress(asked, has_room)), list(compress(prompts, has_room))
        answers = self._texts(prompts, self._stops, 2 * seed + 1) if prompts else []
        pairs = zip(asked, answers, strict=True)
        return [{"messages": [*messages, {"role": "assistant", "content": text}]} for messages, text in pairs if text]

    def _texts(self, prompts: list[list[int]], stops: set[int], seed: int, after: str = "") -> list[str]:
        """What is written after each prompt, up to the text `after` it; nothing where it cannot be taken."""
        texts = []
        for written in self._sampler.write(prompts, stops, self._options, seed):
            kept, has_ended = written.without_end(stops)
            if after and (length := self._length_with(after, kept)) <= len(kept):
                has_ended, kept = True, kept[:length]
            is_taken = (has_ended or not self.is_chat) and self._text_tokens.issuperset(kept)
            text = self._tokenizer.decode(kept) if is_taken else ""
            texts.append((text.partition(after)[0] if after else text).strip())
        return texts

    def _length_with(self, text: str, ids: list[int]) -> int:
        """How many of the tokens it takes until they have the text; one more than there are where they do not."""
        return 1 + bisect_left(range(len(ids)), True, key=lambda last: text in self._tokenizer.decode(ids[: last + 1]))
