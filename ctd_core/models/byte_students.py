"""Byte-level students with the input expansion, made from a teacher or loaded."""

from functools import cache
from inspect import signature
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from ctd_core.align.spelling_trie import spelling_trie
from ctd_core.errors import UsageError
from ctd_core.models.byte_expansion import ExpandedEmbedding, expanded_classes
from ctd_core.text.prepared_tokenizer import PreparedTokenizer
from ctd_core.text.token_bytes import ids_by_bytes


def with_byte_expansion(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    student_tokenizer: PreparedTokenizer,
    teacher_tokenizer: PreparedTokenizer,
    max_bytes: int,
) -> PreTrainedModel:
    """A student that also reads, at each byte, the teacher's embedding of its longest token that ends there.

    The embeddings of bytes begin as zeros, so that at the end of a token of the teacher's the student reads what the
    teacher reads there.

    Args:
        student: the teacher under a tokenizer of single bytes; its weights become those of the result.
        teacher: the model whose embeddings are added; it is not changed.
        student_tokenizer: the student's tokenizer.
        teacher_tokenizer: the teacher's own.
        max_bytes: longer tokens are not looked for.

    Returns:
        The student, in evaluation mode.

    Raises:
        UsageError: as check_expandable.
    """
    check_expandable(teacher, student_tokenizer)
    spelled = student_tokenizer.encoder.token_bytes
    old = teacher.get_input_embeddings().weight.detach()
    keys, token_of = _backward_trie(teacher_tokenizer, len(old), max_bytes)
    config_class, model_class = registered_classes(type(student).__name__)
    config = config_class(
        **student.config.to_dict(), expansion_tokens=len(old), expansion_edges=len(keys), expansion_bytes=max_bytes
    )
    expanded: PreTrainedModel = model_class._from_config(config, dtype=student.dtype)
    embedding = expanded.get_input_embeddings()
    if not isinstance(embedding, ExpandedEmbedding):
        raise TypeError("expanded classes have an ExpandedEmbedding")
    byte_of = torch.full((embedding.num_embeddings,), -1)
    for token_id, raw in enumerate(spelled.by_id):
        if raw and not spelled.is_special[token_id]:
            byte_of[token_id] = raw[0]
    name = next(name for name, module in expanded.named_modules() if module is embedding)
    table = torch.cat([torch.where(old.isfinite(), old, 0), old.new_zeros(1, old.shape[1])])
    own = {"table": table, "byte_of": byte_of, "keys": keys, "token_of": token_of}
    expanded.load_state_dict(student.state_dict() | {f"{name}.{part}": tensor for part, tensor in own.items()})
    with torch.no_grad():
        embedding.weight[byte_of >= 0] = 0
    expanded.generation_config = student.generation_config
    return expanded.eval()


def check_expandable(teacher: PreTrainedModel, student_tokenizer: PreparedTokenizer) -> None:
    """Raises UsageError where a token of the student stands for several bytes, or the teacher is of an architecture
    that transformers lacks, or to whose embeddings nothing can be added.
    """
    spelled = student_tokenizer.encoder.token_bytes
    if spelled.lengths_bytes.max() > 1:
        longest = int(spelled.lengths_bytes.argmax())
        raise UsageError(
            f"student.byte_expansion is for tokenizers of single bytes, and {student_tokenizer.encoder.name} has "
            f"{spelled.by_id[longest]!r}. Take student.tokenizer: {{kind: bytes}}, or leave it out."
        )
    if type(teacher.get_input_embeddings()) is not nn.Embedding:
        raise UsageError(
            f"student.byte_expansion: {type(teacher).__name__} has embeddings of its own kind "
            f"({type(teacher.get_input_embeddings()).__name__}), to which nothing can be added. Leave it out."
        )
    registered_classes(type(teacher).__name__)
    if "cache_params" in signature(teacher.forward).parameters:
        raise UsageError(
            f"student.byte_expansion: {type(teacher).__name__} keeps states alone of what it has read (Mamba), and "
            "generate() gives such models no embeddings. Leave it out."
        )


def _backward_trie(teacher: PreparedTokenizer, rows: int, max_bytes: int) -> tuple[Tensor, Tensor]:
    """The keys [E] and tokens [E + 1] of ExpandedEmbedding for the teacher's tokens of at most `max_bytes`."""
    exact = ids_by_bytes(teacher.encoder.token_bytes)
    tokens = {raw: token_id for raw, token_id in exact.items() if len(raw) <= max_bytes and token_id < rows}
    spellings: list[list[int]] = [[] for _ in range(rows)]
    for raw, token_id in tokens.items():
        spellings[token_id] = list(raw[::-1])
    trie = spelling_trie(spellings)
    lengths = np.array([len(spelling) for spelling in spellings])
    depths = np.zeros(len(trie.first), dtype=np.int64)
    for edge, parent in enumerate(trie.parents):
        depths[edge + 1] = depths[parent] + 1
    shortest = trie.order[np.minimum(trie.first, len(trie.order) - 1)]  # of the tokens that lead on from each node
    token_of = np.where(lengths[shortest] == depths, shortest, rows)
    token_of[0] = rows
    return torch.from_numpy(trie.parents * 256 + trie.tokens), torch.from_numpy(token_of)


@cache
def registered_classes(base: str) -> tuple[type[Any], type[Any]]:
    """The classes of `expanded_classes`, made known to transformers' Auto classes in this process.

    So a model is loaded with the code of this package, and not with the file that lies beside it. Raises UsageError
    where `base` names no model class of transformers.
    """
    base_class = getattr(transformers, base, None)
    if not (isinstance(base_class, type) and issubclass(base_class, PreTrainedModel)):
        raise UsageError(f"{base} is no model class of transformers, so no byte-level student can be made of it.")
    config_class, model_class = expanded_classes(base)
    AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
    AutoModelForCausalLM.register(config_class, model_class, exist_ok=True)
    return config_class, model_class
