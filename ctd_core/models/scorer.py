"""What is asked of a teacher when a corpus is scored, and the Hugging Face teacher as the first that answers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from ctd_core.align.spelling_trie import SpellingTrie
from ctd_core.models.logprob_model import LogprobModel
from ctd_core.ops.fused_logprobs import top_logprobs
from ctd_core.ops.prefix_marginals import PrefixMarginals

Positions = npt.NDArray[np.int64]


@dataclass(frozen=True)
class ScoringRequest:
    """A sequence of T tokens, and at which of them more is asked than their own log-probabilities.

    token_ids: [T] int32. boundary_positions: [M], ascending: is the next token one that begins a pretoken?
    top_positions: [J]: which tokens are the most probable next ones?
    prefix_positions: [P], ascending, and prefix_nodes [P]: which student tokens come next, where those before them have
    led to this node of the spelling trie?
    """

    token_ids: npt.NDArray[np.int32]
    boundary_positions: Positions
    top_positions: Positions
    prefix_positions: Positions
    prefix_nodes: Positions


@dataclass(frozen=True)
class Scores:
    """The answer to a request; natural logarithms.

    token_logprobs: [T] float64, log p(token | all before it); 0 for the first, which nothing predicts.
    boundary_logprobs: [M] float64, the log-probability that the next token begins a pretoken.
    top_ids, top_logprobs: [J, K] int64 and float32, the K most probable next tokens, the first first.
    prefix_counts, prefix_ids, prefix_logprobs: [P], [E], [E], likely next student tokens, see PrefixMarginals.
    """

    token_logprobs: npt.NDArray[np.float64]
    boundary_logprobs: npt.NDArray[np.float64]
    top_ids: Positions
    top_logprobs: npt.NDArray[np.float32]
    prefix_counts: Positions
    prefix_ids: Positions
    prefix_logprobs: npt.NDArray[np.float64]


@dataclass(frozen=True)
class Asked:
    """What is asked at the positions of requests. top_k: how many of the teacher's next tokens. prefix_k: how many of
    the student's, by `trie`, the teacher's vocabulary in student tokens.
    """

    top_k: int = 0
    prefix_k: int = 0
    trie: SpellingTrie | None = None


class Scorer(Protocol):
    """A teacher that scores. Another engine (a server, say) implements this and no more."""

    @property
    def vocab_size(self) -> int:
        """Token ids below this have a row in the teacher's embedding."""

    def score(self, requests: Sequence[ScoringRequest], asked: Asked) -> list[Scores]:
        """Answer a batch of requests, in their order."""


class TransformersScorer:
    """A teacher in this process, whose batches are padded on the right."""

    def __init__(self, model: LogprobModel) -> None:
        self._model = model
        self._marginals: tuple[Asked, PrefixMarginals] | None = None

    @property
    def vocab_size(self) -> int:
        """The rows of the output matrix."""
        return len(self._model.mask)

    @torch.no_grad()
    def score(self, requests: Sequence[ScoringRequest], asked: Asked) -> list[Scores]:
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
        predicted_logprobs, boundary, hidden = self._model(
            torch.from_numpy(input_ids).to(device),
            torch.from_numpy(np.flatnonzero(inside)).to(device),
            torch.from_numpy(predicted - 1).to(device),
            torch.from_numpy(flat[predicted]).to(device),
            torch.from_numpy(np.concatenate(boundaries)).to(device),
        )
        token_logprobs = np.zeros(len(flat))
        token_logprobs[predicted] = predicted_logprobs.double().cpu().numpy()
        boundary_ends = np.cumsum([len(positions) for positions in boundaries])
        boundary_logprobs = np.split(boundary.double().cpu().numpy(), boundary_ends[:-1])
        answers = []
        for request, start, own_boundaries in zip(requests, starts, boundary_logprobs, strict=True):
            token = token_logprobs[start : start + len(request.token_ids)]
            top_ids, top = self._top(hidden, request.top_positions + start, asked.top_k)
            counts, ids, likely = self._prefixes(hidden, request.prefix_positions + start, request.prefix_nodes, asked)
            answers.append(Scores(token, own_boundaries, top_ids, top, counts, ids, likely))
        return answers

    def _prefixes(
        self, hidden: torch.Tensor, positions: Positions, nodes: Positions, asked: Asked
    ) -> tuple[Positions, Positions, npt.NDArray[np.float64]]:
        if asked.trie is None or not len(positions):
            return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64), np.zeros(0)
        if self._marginals is None or self._marginals[0] is not asked:
            self._marginals = asked, PrefixMarginals(asked.trie, asked.prefix_k, hidden.device)
        at, of = np.unique(positions, return_inverse=True)
        chosen, rows, come_to = (torch.from_numpy(values).to(hidden.device) for values in (at, of, nodes))
        told = self._marginals[1](hidden[chosen], self._model.language_model.head, rows, come_to)
        return told.counts.cpu().numpy(), told.tokens.cpu().numpy(), told.logprobs.cpu().numpy()

    def _top(self, hidden: torch.Tensor, positions: Positions, top_k: int) -> tuple[Positions, npt.NDArray[np.float32]]:
        if not top_k or not len(positions):
            return np.zeros((0, top_k), dtype=np.int64), np.zeros((0, top_k), dtype=np.float32)
        chosen = hidden[torch.from_numpy(positions).to(hidden.device)]
        ids, logprobs = top_logprobs(chosen, self._model.language_model.head, top_k)
        return ids.cpu().numpy(), logprobs.cpu().numpy()
