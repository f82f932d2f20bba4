"""What is asked of a model that writes, and the Hugging Face one as the first that does."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from ctd_core.models.model_config import end_tokens

CANDIDATES = 1024


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn.

    max_new_tokens: of each text. temperature: 0 takes the likeliest token always. top_p: from the likeliest that have
    this share together, and below 1 from no more than CANDIDATES.
    """

    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0


class Written(NamedTuple):
    """What was written after a prompt, T tokens.

    ids: with the token that ended it, where one did. logprobs: natural logarithms, of each token after all before it,
    by the model as it is: at temperature 1, of all tokens.
    """

    ids: list[int]
    logprobs: list[float]

    def without_end(self, stops: Collection[int]) -> tuple[list[int], bool]:
        """The ids before the token of `stops` that ended it, and whether one did."""
        has_ended = bool(self.ids) and self.ids[-1] in stops
        return self.ids[:-1] if has_ended else self.ids, has_ended


class Sampler(Protocol):
    """A model that writes. Another engine (a server, say) implements this and no more.

    stops: the tokens that its own settings end a text at.
    """

    @property
    def stops(self) -> Collection[int]: ...

    def write(
        self, prompts: Sequence[Sequence[int]], stops: Collection[int], options: Sampling, seed: int
    ) -> list[Written]:
        """What is written after each of the prompts (token ids), up to a token of `stops`, which comes along.

        The same for the same arguments on the same machine.
        """


class TransformersSampler:
    """A model in this process, which writes a batch of texts at once."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model

    @property
    def stops(self) -> Collection[int]:
        """Of the model's generation config."""
        return end_tokens(self._model.generation_config)

    @torch.no_grad()
    def write(
        self, prompts: Sequence[Sequence[int]], stops: Collection[int], options: Sampling, seed: int
    ) -> list[Written]:
        """Prompts are padded on the left."""
        device = self._model.device
        width = max(map(len, prompts))
        padding = min(stops, default=0)
        ids = torch.tensor([[padding] * (width - len(prompt)) + list(prompt) for prompt in prompts], device=device)
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
        drawn = {"do_sample": True, "temperature": options.temperature, "top_k": 0}
        config = GenerationConfig(
            **(drawn if options.temperature else {"do_sample": False}),
            max_new_tokens=options.max_new_tokens, eos_token_id=sorted(stops) or None, pad_token_id=padding,
        )  # fmt: skip
        recorder = _Recorder()
        with torch.random.fork_rng([device] if device.type == "cuda" else []), _own_settings(self._model):
            torch.manual_seed(seed)
            written = self._model.generate(
                ids, attention_mask=mask, generation_config=config, logits_processor=[recorder, _TopP(options)]
            )
        rows = zip(written[:, width:].tolist(), recorder.logprobs(written), strict=True)
        return [Written(kept := _up_to(row, stops), logprobs[: len(kept)]) for row, logprobs in rows]


@contextmanager
def _own_settings(model: PreTrainedModel) -> Iterator[None]:
    """Without the model's generation config, whose penalties, beams and limits would join what is asked for."""
    given = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = given


class _Recorder:
    """Sees the logits of every step, and in the next one which tokens were chosen."""

    def __init__(self) -> None:
        self._before: Tensor | None = None
        self._chosen: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """The logits [B, V] as they are."""
        self._gather(input_ids)
        self._before = scores
        return scores

    def logprobs(self, input_ids: Tensor) -> list[list[float]]:
        """Of all tokens that were chosen, after the last of them."""
        self._gather(input_ids)
        rows: list[list[float]] = torch.stack(self._chosen, 1).tolist()
        return rows

    def _gather(self, input_ids: Tensor) -> None:
        if self._before is not None:
            logits, chosen = self._before.float(), input_ids[:, -1:]
            self._chosen.append((logits.gather(1, chosen) - logits.logsumexp(1, keepdim=True))[:, 0])


class _TopP:
    """As the one of transformers, without sorting whole vocabularies, which takes a CPU as long as a small model."""

    def __init__(self, options: Sampling) -> None:
        self._options = options

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Logits [B, V] with those of other tokens than the likeliest at minus infinity."""
        if self._options.top_p >= 1 or not self._options.temperature:
            return scores
        logprobs = (scores.float() / self._options.temperature).log_softmax(1)
        best = logprobs.topk(min(CANDIDATES, logprobs.shape[1]), 1)
        share_before = best.values.exp().cumsum(1) - best.values.exp()
        kept = scores.gather(1, best.indices).masked_fill(share_before >= self._options.top_p, -torch.inf)
        return torch.full_like(scores, -torch.inf).scatter(1, best.indices, kept)


def _up_to(ids: list[int], stops: Collection[int]) -> list[int]:
    end = next((number + 1 for number, token in enumerate(ids) if token in stops), len(ids))
    return ids[:end]
