"""Byte-level models that also read, at each byte, the longest token of an older vocabulary that ends there.

The input expansion of byte-level students in arXiv 2503.20083. This file is written beside every model that is saved,
as the code that loads it elsewhere, so it needs torch and transformers alone.
"""

from contextlib import suppress
from functools import wraps
from inspect import signature
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

CODE = "modeling_byte_expansion"


class ExpandedEmbedding(nn.Embedding):
    """The embedding of each byte, plus a fixed one of the longest older token that ends at it.

    A trie holds the older tokens, spelled backwards: a node's children are those of the edges with its number; the
    edge of index n leads to node n + 1, and node 0 is the root.

    table: [U + 1, H], the older tokens' embeddings and a row of zeros, which stands for none.
    byte_of: [V] int64, the byte that a token stands for, −1 for a special token.
    keys: [E] int64, ascending: an edge's upper node * 256 + its byte.
    token_of: [E + 1] int64, the row of the table for the token that a node spells, U where it spells none.
    """

    def __init__(self, num_embeddings: int, hidden_size: int, old_tokens: int, edges: int, max_bytes: int) -> None:
        super().__init__(num_embeddings, hidden_size)
        self.max_bytes = max_bytes
        self.table: Tensor
        self.byte_of: Tensor
        self.keys: Tensor
        self.token_of: Tensor
        self.register_buffer("table", torch.zeros(old_tokens + 1, hidden_size))  # a parameter that is loaded learns
        self.register_buffer("byte_of", torch.full((num_embeddings,), -1))
        self.register_buffer("keys", torch.zeros(edges, dtype=torch.int64))
        self.register_buffer("token_of", torch.full((edges + 1,), old_tokens))

    def expansion(self, input_ids: Tensor) -> Tensor:
        """[B, S] int64, the row of the table at each position of `input_ids` [B, S]: a suffix of its own row alone."""
        none = len(self.table) - 1
        before = self.byte_of[input_ids]  # the byte so many places before each
        node, longest = torch.zeros_like(input_ids), torch.full_like(input_ids, none)
        for _ in range(self.max_bytes):
            key = node * 256 + before
            edge = torch.searchsorted(self.keys, key).clamp(max=len(self.keys) - 1)
            known = (node >= 0) & (before >= 0) & (self.keys[edge] == key)
            node = torch.where(known, edge + 1, -1)
            found = torch.where(known, self.token_of[edge + 1], none)
            longest = torch.where(found == none, longest, found)
            before = nn.functional.pad(before[:, :-1], (1, 0), value=-1)
        return longest

    def forward(self, input: Tensor) -> Tensor:
        """[B, S, H] of `input` [B, S], whose rows begin where their texts do, or at least `max_bytes` before."""
        return super().forward(input) + nn.functional.embedding(self.expansion(input), self.table)


def expanded_classes(base: str) -> tuple[type[Any], type[Any]]:
    """The config and model classes of a byte-level student; `base` names the model class of transformers."""
    base_class: Any = getattr(transformers, base)

    class ByteExpandedConfig(base_class.config_class):  # type: ignore[misc]
        """The config of the base, with the sizes of the expansion."""

        model_type = "byte_expanded_" + base_class.config_class.model_type

        def __init__(
            self, expansion_tokens: int = 1, expansion_edges: int = 1, expansion_bytes: int = 16, **values: Any
        ) -> None:
            super().__init__(**values)
            self.expansion_tokens, self.expansion_edges = expansion_tokens, expansion_edges
            self.expansion_bytes, self.expansion_base = expansion_bytes, base
            names = {"AutoConfig": "ByteExpandedConfig", "AutoModelForCausalLM": "ByteExpandedForCausalLM"}
            self.auto_map = {auto: f"{CODE}.{name}" for auto, name in names.items()}

    class ByteExpandedForCausalLM(base_class):  # type: ignore[misc]
        """The base with an ExpandedEmbedding."""

        config_class = ByteExpandedConfig

        def __init__(self, config: Any) -> None:
            super().__init__(config)
            rows, hidden_size = self.get_input_embeddings().weight.shape
            sizes = config.expansion_tokens, config.expansion_edges, config.expansion_bytes
            self.set_input_embeddings(ExpandedEmbedding(rows, hidden_size, *sizes))

        @classmethod
        def is_custom_code(cls) -> bool:
            """No: transformers leaves a custom model's fixed buffers, which no file holds, without their values."""
            return False

        def resize_token_embeddings(self, *arguments: Any, **options: Any) -> Any:
            embedding = super().resize_token_embeddings(*arguments, **options)
            kept = embedding.byte_of[: len(embedding.weight)]
            embedding.byte_of = nn.functional.pad(kept, (0, len(embedding.weight) - len(kept)), value=-1)
            return embedding

        @wraps(base_class.forward)  # generate() reads its signature
        def forward(self, input_ids: Tensor | None = None, *arguments: Any, **inputs: Any) -> Any:
            given = signature(base_class.forward).bind_partial(self, input_ids, *arguments).arguments | inputs
            cache = given.get("past_key_values")
            if input_ids is not None and cache is not None and cache.get_seq_length():
                raise ValueError(
                    "This model reads the bytes before each byte. With a cache, call it through generate(), or give "
                    "inputs_embeds: model.get_input_embeddings()(all_ids)[:, -new:]."
                )
            return super().forward(input_ids, *arguments, **inputs)

        @wraps(base_class.prepare_inputs_for_generation)
        def prepare_inputs_for_generation(self, input_ids: Tensor, *arguments: Any, **options: Any) -> dict[str, Any]:
            inputs: dict[str, Any] = super().prepare_inputs_for_generation(input_ids, *arguments, **options)
            if inputs.get("input_ids") is not None:
                new, embedding = inputs["input_ids"].shape[1], self.get_input_embeddings()
                cache = options.get("past_key_values")
                if cache is not None and input_ids.shape[1] < cache.get_seq_length() + new:
                    raise ValueError(
                        "This model reads the bytes before each byte: give generate() the ids of all of them, and no "
                        "prefill_chunk_size."
                    )
                read = input_ids[:, -(new + self.config.expansion_bytes - 1) :]
                inputs |= {"input_ids": None, "inputs_embeds": embedding(read)[:, -new:]}
            return inputs

        def save_pretrained(self, save_directory: str | Path, **options: Any) -> None:
            super().save_pretrained(save_directory, **options)
            code = Path(__file__).read_text(encoding="utf-8")
            classes = f'\n\nByteExpandedConfig, ByteExpandedForCausalLM = expanded_classes("{base}")\n'
            (Path(save_directory) / f"{CODE}.py").write_text(code.removesuffix(classes) + classes, encoding="utf-8")

    with suppress(ImportError):  # transformers 4 has no such mapping
        from transformers import conversion_mapping as mappings

        base_type = base_class.config_class.model_type  # how weights lie in files, such as experts, goes by this name
        conversion = mappings.get_checkpoint_conversion_mapping(base)
        conversion = conversion or mappings.get_checkpoint_conversion_mapping(base_type)
        if conversion is not None:
            mappings.register_checkpoint_conversion_mapping(ByteExpandedConfig.model_type, conversion, overwrite=True)
    return ByteExpandedConfig, ByteExpandedForCausalLM
