"""Several models of one tokenizer as one, which averages what they predict: what a transfer to one tokenizer is for.

Section 5.2 of arXiv 2503.20083.
"""

import copy
import inspect
import json
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, GenerationMixin, PreTrainedModel, PreTrainedTokenizerFast
from transformers.cache_utils import Cache
from transformers.modeling_outputs import CausalLMOutputWithPast

from ctd_core.config.base import fingerprint
from ctd_core.config.models import Average, Dtype
from ctd_core.errors import UsageError
from ctd_core.models.loading import load_model
from ctd_core.models.model_config import end_tokens, positions_of
from ctd_core.text.prepared_tokenizer import check_embedding
from ctd_core.text.tokenizers import load_tokenizer

LENGTH = "max_position_embeddings"


class EnsembleCache(Cache):  # type: ignore[misc]  # the package has no types
    """The caches of all members; what is done to its layers is done to theirs."""

    def __init__(self, members: Sequence[Cache]) -> None:
        super().__init__(layers=[layer for member in members for layer in member.layers])
        self.members = list(members)


class Ensemble(PreTrainedModel, GenerationMixin):  # type: ignore[misc]
    """Models of one tokenizer whose next-token distributions are averaged.

    Their logits are log-probabilities, [B, S, V] float32, where V is the smallest number of rows of an output matrix:
    rows beyond it are padding. `generate` keeps a cache for each member, and none where one has another kind of it.

    Args:
        members: models on one device, which may be of different architectures.
        weights: of each member; all alike without them.
        average: `probabilities` are added up, so that what one member thinks likely stays likely; of `logprobs`, so
            that what one thinks unlikely is unlikely.

    Raises:
        UsageError: no members, or weights that are not theirs.
    """

    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = True  # as its members do

    @classmethod
    def _can_set_experts_implementation(cls) -> bool:
        return True  # what the config of the first says is its own

    def __init__(
        self,
        members: Sequence[PreTrainedModel],
        weights: Sequence[float] | None = None,
        average: Average = "probabilities",
    ) -> None:
        if len(members) < 2:
            raise UsageError("an ensemble has two members or more")
        shares = [1.0] * len(members) if weights is None else list(weights)
        if len(shares) != len(members) or not all(0 < share < math.inf for share in shares):
            raise UsageError(f"weights: {len(members)} members need as many numbers above 0, not {shares}")
        config = copy.deepcopy(members[0].config)
        rows = [member.get_output_embeddings().weight.shape[0] for member in members]
        config.get_text_config().vocab_size = min(rows)
        if lengths := [length for member in members if (length := positions_of(member)) is not None]:
            setattr(config.get_text_config(), LENGTH, min(lengths))
        super().__init__(config)
        self.members: Any = nn.ModuleList(members)
        self.average = average
        self.register_buffer("shares", torch.tensor(shares, device=members[0].device) / sum(shares), persistent=False)
        self.generation_config = copy.deepcopy(members[0].generation_config)
        ends = {token: None for member in members for token in end_tokens(member.generation_config)}
        self.generation_config.eos_token_id = list(ends) or None
        self.eval()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: EnsembleCache | None = None,
        use_cache: bool = False,
        logits_to_keep: int = 0,
        member_inputs: Sequence[dict[str, Any]] | None = None,
        return_dict: bool = True,
        **options: Any,
    ) -> CausalLMOutputWithPast:
        """Averaged log-probabilities as logits. `member_inputs` are what `generate` gives each member."""
        if not return_dict or (
            unknown := [name for name, value in options.items() if value is not None and value is not False]
        ):
            raise ValueError(f"an ensemble takes ids, masks and positions, and not {', '.join(unknown or ['tuples'])}")
        if member_inputs is None:
            if past_key_values is not None:
                raise ValueError("with a cache, call an ensemble through generate()")
            inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "logits_to_keep": logits_to_keep}
            inputs |= {} if position_ids is None else {"position_ids": position_ids}
            member_inputs = [{**inputs, "use_cache": False}] * len(self.members)
        rows = self.config.get_text_config().vocab_size
        shares = self.shares.log() if self.average == "probabilities" else self.shares
        combined: Tensor | None = None
        for member, share, given in zip(self.members, shares, member_inputs, strict=True):
            logprobs = member(**given).logits[..., :rows].float().log_softmax(-1)
            if self.average == "probabilities":
                combined = logprobs + share if combined is None else torch.logaddexp(combined, logprobs + share)
            else:
                combined = logprobs * share if combined is None else combined + logprobs * share
        assert combined is not None
        logits = combined if self.average == "probabilities" else combined.log_softmax(-1)
        return CausalLMOutputWithPast(logits=logits, past_key_values=past_key_values)

    def generate(self, *arguments: Any, **options: Any) -> Any:
        """As any model's, but for ways that draft tokens, which need one cache."""
        for name in ("assistant_model", "prompt_lookup_num_tokens"):
            if options.get(name) is not None:
                raise ValueError(f"an ensemble cannot generate with {name}")
        return super().generate(*arguments, **options)

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, past_key_values: EnsembleCache | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """What each member makes of it, with its own cache. (`generate` looks for an argument of the name kwargs.)"""
        caches = [None] * len(self.members) if past_key_values is None else past_key_values.members
        inputs = [
            member.prepare_inputs_for_generation(input_ids, past_key_values=cache, **kwargs)
            for member, cache in zip(self.members, caches, strict=True)
        ]
        return {"member_inputs": inputs, "past_key_values": past_key_values, "use_cache": past_key_values is not None}

    def _prepare_cache_for_generation(
        self, generation_config: Any, model_kwargs: dict[str, Any], *arguments: Any, **options: Any
    ) -> None:
        if not all("past_key_values" in inspect.signature(member.forward).parameters for member in self.members):
            generation_config.use_cache = model_kwargs["use_cache"] = False  # Mamba's is another one
        if generation_config.use_cache is not False:
            caches = [DynamicCache(config=member.config.get_text_config(decoder=True)) for member in self.members]
            model_kwargs["past_key_values"] = EnsembleCache(caches)

    def get_input_embeddings(self) -> Any:
        """Those of the first member: transformers asks for a model's device by them."""
        return self.members[0].get_input_embeddings()


def load_ensemble(
    names: Sequence[str],
    average: Average = "probabilities",
    dtype: Dtype = "float32",
    weights: Sequence[float] | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """The models in directories or of hub ids as one, with their tokenizer, on the CPU; one is itself.

    Where one of them has a chat template, its tokenizer is the one.

    Args:
        names: one or more.
        average: what is averaged.
        dtype: what their weights are loaded as.
        weights: of each; all alike without them.

    Returns:
        Model and tokenizer.

    Raises:
        UsageError: there is no such model, their tokenizers or chat templates differ, or one has not all tokens.
    """
    tokenizers = [load_tokenizer(name, None) for name in names]
    check_one_tokenizer(tokenizers, names)
    models = [load_model(name, dtype=dtype) for name in names]
    tokenizer = next((given for given in tokenizers if given.chat_template), tokenizers[0])
    if len(models) == 1:
        return models[0], tokenizer
    missing = [
        set(check_embedding(tokenizer, name, model.get_input_embeddings().num_embeddings))
        for model, name in zip(models, names, strict=True)
    ]
    missing_everywhere = missing[0].intersection(*missing[1:])
    for of_one, name in zip(missing, names, strict=True):
        if some := sorted(of_one - missing_everywhere):
            raise UsageError(f"{name} has no embeddings for {', '.join(some)}, which others have: it cannot join them.")
    return Ensemble(models, weights, average), tokenizer


def check_one_tokenizer(tokenizers: Sequence[PreTrainedTokenizerFast], names: Sequence[str]) -> None:
    """Raises UsageError where tokenizers do not write the same ids, or two write messages in other templates."""
    first, *others = [_fingerprint(tokenizer) for tokenizer in tokenizers]
    for other, tokenizer, name in zip(others, tokenizers[1:], names[1:], strict=True):
        if other != first:
            here, there = tokenizers[0].get_vocab(), tokenizer.get_vocab()
            different = [token for token in {**here, **there} if here.get(token) != there.get(token)]
            shown = f" {len(different):,} tokens have other ids, such as {different[0]!r}." if different else ""
            raise UsageError(
                f"{names[0]} and {name} have different tokenizers, so their predictions cannot be averaged.{shown} "
                "Move both to one tokenizer first (ctd run), with the same student.chat."
            )
    asked = zip(tokenizers, names, strict=True)
    templates = {tokenizer.get_chat_template(): name for tokenizer, name in asked if tokenizer.chat_template}
    if len(templates) > 1:
        raise UsageError(
            f"{' and '.join(templates.values())} have different chat templates, so they cannot be asked the same. Move "
            "them with the same student.chat, or copy one's chat_template.jinja to the other."
        )


def _fingerprint(tokenizer: PreTrainedTokenizerFast) -> str:
    """Of all that decides which ids a text becomes."""
    parts = json.loads(tokenizer.backend_tokenizer.to_str())
    for name in ("truncation", "padding", "decoder"):
        parts.pop(name, None)
    return fingerprint(parts)
