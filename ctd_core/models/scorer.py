"""What is asked of a teacher when a corpus is scored, and the Hugging Face teacher as the first that answers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from ctd_core.models.logprob_model import LogprobModel
from ctd_core.ops.fused_logprobs import top_logprobs

Positions = npt.NDArray[np.int64]


@dataclass(frozen=True)
class ScoringRequest:
    """A sequence of T tokens, and at which of them more is asked than their own log-probabilities.

    token_ids: [T] int32. boundary_positions: [M], ascending: is the next token one that begins a pretoken?
    top_positions: [J]: which tokens are the most probable next ones?
    """

    token_ids: npt.NDArray[np.int32]
    boundary_positions: Positions
    top_positions: Positions


@dataclass(frozen=True)
class Scores:
    """The answer to a request; natural logarithms.

    token_logprobs: [T] float64, log p(token | all before it); 0 for the first, which nothing predicts.
    boundary_logprobs: [M] float64, the log-probability that the next token begins a pretoken.
    top_ids, top_logprobs: [J, K] int64 and float32, the K most probable next tokens, the first first.
    """

    token_logprobs: npt.NDArray[np.float64]
    boundary_logprobs: npt.NDArray[np.float64]
    top_ids: Positions
    top_logprobs: npt.NDArray[np.float32]


class Scorer(Protocol):
    """A teacher that scores. Another engine (a server, say) implements this and no more."""

    @property
    def vocab_size(self) -> int:
        """Token ids below this have a row in the teacher's embedding."""

    def score(self, requests: Sequence[ScoringRequest], top_k: int) -> list[Scores]:
        """Answer a batch of requests, in their order, with K = `top_k`."""


class TransformersScorer:
    """A teacher in this process, whose batches are padded on the right."""

    def __init__(self, model: LogprobModel) -> None:
        self._model = model

    @property
    def vocab_size(self) -> int:
        """The rows of the output matrix."""
        return len(self._model.mask)

    @torch.no_grad()
    def score(self, requests: Sequence[ScoringRequest], top_k: int) -> list[Scores]:
        """One forward pass over all requests; logits exist for the positions that are asked for alone."""
        device = self._model.mask.device
        lengths = np.array([len(request.token_ids) for request in requests])
        inside = np.arange(lengths.max()) < lengths[:, None]
        input_ids = np.zeros(inside.shape, dtype=np.int64)
        flat = np.concatenate([request.token_ids for request in requests]).astype(np.int64)
        input_ids[inside] = flat
        starts = np.cumsum(lengths) - lengths
        predicted = np.setdiff1d(np.arange(len(flat)), starts)  # all but each sequence's first
        boundaries = [request.boundary_positions + start for request, start in zip(requests, starts, strict=True)]
        token, boundary, hidden = self._model(
            torch.from_numpy(input_ids).to(device),
            torch.from_numpy(np.flatnonzero(inside)).to(device),
            torch.from_numpy(predicted - 1).to(device),
            torch.from_numpy(flat[predicted]).to(device),
            torch.from_numpy(np.concatenate(boundaries)).to(device),
        )
        token_logprobs = np.zeros(len(flat))
        token_logprobs[predicted] = token.double().cpu().numpy()
        boundary_ends = np.cumsum([len(positions) for positions in boundaries])
        boundary_logprobs = np.split(boundary.double().cpu().numpy(), boundary_ends[:-1])
        answers = []
        for request, start, own_boundaries in zip(requests, starts, boundary_logprobs, strict=True):
            top = self._top(hidden, request.top_positions + start, top_k)
            answers.append(Scores(token_logprobs[start : start + len(request.token_ids)], own_boundaries, *top))
        return answers

    def _top(self, hidden: torch.Tensor, positions: Positions, top_k: int) -> tuple[Positions, npt.NDArray[np.float32]]:
        if not top_k or not len(positions):
            return np.zeros((0, top_k), dtype=np.int64), np.zeros((0, top_k), dtype=np.float32)
        chosen = hidden[torch.from_numpy(positions).to(hidden.device)]
        ids, logprobs = top_logprobs(chosen, self._model.language_model.head, top_k)
        return ids.cpu().numpy(), logprobs.cpu().numpy()
