"""The packaged conversations, which SmolLM2-135M-Instruct wrote.

As `ctd generate` does (1,536 documents at a temperature of 0.9, no message longer than 320 tokens, in bfloat16 on a
GPU), but that the questions that were answered had two characters more at their beginning, `1|`. Without those on
health, politics, persons and the like, by a list of words.
"""

import json
import lzma
from collections.abc import Iterator
from functools import cache
from importlib import resources

from ctd_core.config.text import WrittenConversations
from ctd_core.text.corpora.slices import CorpusSlice, slices_of
from ctd_core.text.documents import Document, Turn


def plan(corpus: WrittenConversations, slice_bytes: int) -> Iterator[CorpusSlice]:
    """Slices that hold their documents."""
    yield from slices_of(_documents(corpus.train_on == "all"), slice_bytes)


def read(corpus: WrittenConversations, part: CorpusSlice) -> Iterator[Document]:
    """The documents that the slice holds."""
    yield from part.documents


@cache
def _documents(all_learned: bool) -> tuple[Document, ...]:
    packed = resources.files(__package__).joinpath("conversations.jsonl.xz").read_bytes()
    records = [json.loads(line)["messages"] for line in lzma.decompress(packed).decode().splitlines()]
    return tuple(
        Document(
            f"conversations:{number}",
            tuple(
                Turn(message["role"], message["content"], all_learned or message["role"] == "assistant")
                for message in messages
            ),
        )
        for number, messages in enumerate(records)
    )
