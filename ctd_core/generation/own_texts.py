"""What a student writes itself, to learn from what its teacher thinks of it: on-policy distillation.

The prompts are beginnings of the corpus's documents: of a conversation all before an assistant's message, of a text
what is not learned of it, or its first words.
"""

from collections.abc import Sequence

import numpy as np

from ctd_core.generation.prompts import GENERATED
from ctd_core.text.corpora.records import Record
from ctd_core.text.documents import Document, Text

PROMPT_CHARACTERS = 200  # of a text, no more than half of it, up to the end of a word


def prompts_of(document: Document, is_chat: bool) -> list[Record]:
    """The prompts in a document, as `messages`, or as a text `prompt`; none where a document of the other kind is."""
    turns = document.turns
    if turns and is_chat:
        messages = [{"role": turn.role, "content": turn.text} | dict(turn.names) for turn in turns]
        return [
            {"messages": messages[:number]}
            for number, turn in enumerate(turns)
            if number and turn.role == "assistant" and not any(before.tool_calls for before in turns[:number])
        ]
    text = document.text
    if turns or is_chat or not text.strip():
        return []
    first = next(segment for segment in document.segments if isinstance(segment, Text))
    if not first.scored:
        return [{"prompt": first.text}]
    limit = min(PROMPT_CHARACTERS, len(text) // 2)
    cut = text.rfind(" ", 0, limit + 1)
    prompt = text[: cut if cut > 0 else limit]
    return [{"prompt": prompt}] if prompt.strip() else []


def choose_prompts(prompts: Sequence[Record], count: int, seed: int, round_number: int) -> list[Record]:
    """`count` of the prompts, each as often as the others or once more, by seed and round."""
    random = np.random.default_rng([seed, round_number])
    chosen: list[Record] = []
    while len(chosen) < count:
        chosen += [prompts[number] for number in random.permutation(len(prompts))]
    return chosen[:count]


def figures_of(records: Sequence[Record]) -> dict[str, float]:
    """How many texts were written, and how many prompts could not be asked; of the texts, mean length, the share that
    ended, the mean surprise of a token in bits (at temperature 1 the entropy).
    """
    written = [record[GENERATED] for record in records if "error" not in record[GENERATED]]
    tokens = sum(text["tokens"] for text in written)
    bits = -sum(text["logprob"] for text in written) / np.log(2)
    return {
        "texts": len(written),
        "not_asked": len(records) - len(written),
        "mean_tokens": tokens / max(len(written), 1),
        "share_ended": sum(text["ended"] for text in written) / max(len(written), 1),
        "bits_per_token": float(bits / max(tokens, 1)),
    }
