"""A corpus that a model writes itself: conversations where it has a chat template, texts where it has none.

An instruction-tuned model that is given nothing but the header of a user's message writes the message, and then answers
it (Magpie, arXiv 2406.08464).
"""

from typing import Any

from transformers import PreTrainedTokenizerFast

from ctd_core.errors import UsageError
from ctd_core.generation.sampler import Sampler, Sampling
from ctd_core.text.chat import apply_template
from ctd_core.text.prepared_tokenizer import prepare_tokenizer
from ctd_core.text.stops import first_header, stops_of

Record = dict[str, Any]


class Writer:
    """Writes documents by a sampler's tokenizer.

    Args:
        sampler: the model.
        tokenizer: its tokenizer.
        name: what messages call it.
        options: how it draws.

    Raises:
        UsageError: it has neither a chat template nor a token that begins a text.
    """

    def __init__(self, sampler: Sampler, tokenizer: PreTrainedTokenizerFast, name: str, options: Sampling) -> None:
        self._sampler, self._tokenizer, self._options = sampler, tokenizer, options
        self._begin = list(prepare_tokenizer(tokenizer, name, None, None).markers["begin"])
        self._stops = stops_of(tokenizer, name)
        self.is_chat = tokenizer.chat_template is not None
        if self.is_chat:
            self._begin = first_header(tokenizer, name)
        if not self._begin:
            raise UsageError(f"{name}: no token begins a text, so there is nothing to write after. Take another model.")

    def write(self, count: int, seed: int) -> list[Record]:
        """`count` documents, as records with `messages`, or with `text`.

        Less where nothing was written, and where a message did not end: learned from, it would teach to stop anywhere.

        Args:
            count: how many are written at once.
            seed: of what is drawn.

        Returns:
            A record each.
        """
        first = self._texts([self._begin] * count, 2 * seed)
        if not self.is_chat:
            return [{"text": text} for text in first if text]
        asked = [[{"role": "user", "content": text}] for text in first if text]
        if not asked:
            return []
        prompts = [
            apply_template(self._tokenizer, messages, add_generation_prompt=True)["input_ids"] for messages in asked
        ]
        answers = self._texts(prompts, 2 * seed + 1)
        pairs = zip(asked, answers, strict=True)
        return [{"messages": [*messages, {"role": "assistant", "content": text}]} for messages, text in pairs if text]

    def _texts(self, prompts: list[list[int]], seed: int) -> list[str]:
        written = self._sampler.write(prompts, self._stops, self._options, seed)
        ended = [ids if ids and (ids[-1] in self._stops or not self.is_chat) else [] for ids, _ in written]
        return [self._tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in ended]
