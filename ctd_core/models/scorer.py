"""What is asked of a teacher when a corpus is scored, and the Hugging Face teacher as the first that answers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ctd_core.align.spelling_trie import SpellingTrie
from ctd_core.models.logprob_model import LogprobModel
from ctd_core.ops.prefix_marginals import Marginals, PrefixMarginals

Positions = npt.NDArray[np.int64]


@dataclass(frozen=True)
class ScoringRequest:
    """A sequence of T tokens, and at which of them more is asked than their own log-probabilities.

    token_ids: [T] int32. boundary_positions: [M], ascending: is the next token one that begins a pretoken?
    top_positions: [J]: which tokens are the most probable next ones?
    prefix_positions: [P], ascending, and prefix_nodes [P]: which student tokens come next, where those before them have
    led to this node of the spelling trie? prefix_chances: [P], in [0, 1), by which some are drawn.
    """

    token_ids: npt.NDArray[np.int32]
    boundary_positions: Positions
    top_positions: Positions
    prefix_positions: Positions
    prefix_nodes: Positions
    prefix_chances: npt.NDArray[np.float64]


@dataclass(frozen=True)
class Scores:
    """The answer to a request; natural logarithms.

    token_logprobs: [T] float64, log p(token | all before it); 0 for the first, which nothing predicts.
    boundary_logprobs: [M] float64, the log-probability that the next token begins a pretoken.
    top_ids, top_logprobs: [J, K] int64 and float32, the K most probable next tokens, the first first.
    prefix_counts, prefix_ids, prefix_logprobs, prefix_drawn: [P], [E], [E], [E], next student tokens, see Marginals.
    """

    token_logprobs: npt.NDArray[np.float64]
    boundary_logprobs: npt.NDArray[np.float64]
    top_ids: Positions
    top_logprobs: npt.NDArray[np.float32]
    prefix_counts: Positions
    prefix_ids: Positions
    prefix_logprobs: npt.NDArray[np.float64]
    prefix_drawn: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Asked:
    """What is asked at the positions of requests. top_k: how many of the teacher's next tokens. prefix_k: how many of
    the student's, by `trie`, the teacher's vocabulary in student tokens; prefix_drawn: how many of these are drawn.
    """

    top_k: int = 0
    prefix_k: int = 0
    prefix_drawn: int = 0
    trie: SpellingTrie | None = None


class Scorer(Protocol):
    """A teacher that scores. Another engine (a server, say) implements this and no more."""

    @property
    def vocab_size(self) -> int:
        """Token ids below this have a row in the teacher's embedding."""

    @property
    def dtype(self) -> str:
        """The type that it calculates in, such as bfloat16."""

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

    @property
    def dtype(self) -> str:
        """The type of the output matrix."""
        return str(self._model.language_model.head.weight.dtype).removeprefix("torch.")

    @torch.no_grad()
    def score(self, requests: Sequence[ScoringRequest], asked: Asked) -> list[Scores]:
        """One forward pass over all requests; logits exist for a block of positions at a time, and once."""
        device = self._model.mask.device
        lengths = np.array([len(request.token_ids) for request in requests])
        inside = np.arange(lengths.max()) < lengths[:, None]
        input_ids = np.zeros(inside.shape, dtype=np.int64)
        flat = np.concatenate([request.token_ids for request in requests]).astype(np.int64)
        input_ids[inside] = flat
        starts = np.cumsum(lengths) - lengths
        predicted = np.setdiff1d(np.arange(len(flat)), starts)  # all but each sequence's first
        boundaries, top_positions, prefix_positions = (
            [getattr(request, name) + start for request, start in zip(requests, starts, strict=True)]
            for name in ("boundary_positions", "top_positions", "prefix_positions")
        )
        nodes, chances = zip(*((request.prefix_nodes, request.prefix_chances) for request in requests), strict=True)
        top_rows, *prefixes = (
            torch.from_numpy(np.concatenate(parts)).to(device)
            for parts in (top_positions, prefix_positions, nodes, chances)
        )
        watch = _Watch(top_rows, _AskedPrefixes(*prefixes), asked.top_k, self._prefix_marginals(asked, device))
        token, boundary, _ = self._model(
            torch.from_numpy(input_ids).to(device),
            torch.from_numpy(np.flatnonzero(inside)).to(device),
            torch.from_numpy(predicted - 1).to(device),
            torch.from_numpy(flat[predicted]).to(device),
            torch.from_numpy(np.concatenate(boundaries)).to(device),
            watch=watch,
        )
        token_logprobs = np.zeros(len(flat))
        token_logprobs[predicted] = token.double().cpu().numpy()
        top_ids, top_logprobs = watch.top()
        counts, ids, logprobs, drawn = watch.prefixes()
        counts_by_request = _split(counts, prefix_positions)
        likely = [np.zeros(count.sum()) for count in counts_by_request]
        answers = zip(
            _split(token_logprobs, [request.token_ids for request in requests]),
            _split(boundary.double().cpu().numpy(), boundaries),
            _split(top_ids, top_positions),
            _split(top_logprobs, top_positions),
            counts_by_request,
            _split(ids, likely),
            _split(logprobs, likely),
            _split(drawn, likely),
            strict=True,
        )
        return [Scores(*answer) for answer in answers]

    def _prefix_marginals(self, asked: Asked, device: torch.device) -> PrefixMarginals | None:
        if asked.trie is None:
            return None
        if self._marginals is None or self._marginals[0] is not asked:
            kept = asked.prefix_k, asked.prefix_drawn
            self._marginals = asked, PrefixMarginals(asked.trie, *kept, self.vocab_size, device)
        return self._marginals[1]


class _AskedPrefixes(NamedTuple):
    """Positions of a batch [P], ascending; the node of each, and the chance by which its tokens are drawn."""

    rows: Tensor
    nodes: Tensor
    chances: Tensor


class _Watch:
    """Collects from a batch's distributions what is asked after its tokens at [J] and at [P], ascending."""

    def __init__(
        self, top_rows: Tensor, prefixes: _AskedPrefixes, top_k: int, marginals: PrefixMarginals | None
    ) -> None:
        self._top_rows, self._prefixes = top_rows, prefixes
        self._top_k, self._marginals = top_k, marginals
        self._top = [(top_rows.new_zeros(0, top_k), torch.zeros(0, top_k, device=top_rows.device))]
        self._kept: list[Marginals] = []

    def __call__(self, rows: slice, exponentials: Tensor, mass: Tensor) -> None:
        if self._top_k and len(asked := self._inside(rows, self._top_rows)[0]):
            best = exponentials[asked].topk(self._top_k, 1)
            share = (best.values / mass[asked][:, None]).clamp(min=torch.finfo(best.values.dtype).tiny)
            self._top.append((best.indices, share.log()))
        asked, begin, end = self._inside(rows, self._prefixes.rows)
        if self._marginals is not None and len(asked):
            nodes, chances = self._prefixes.nodes[begin:end], self._prefixes.chances[begin:end]
            self._kept.append(self._marginals(exponentials, mass, asked, nodes, chances))

    @staticmethod
    def _inside(rows: slice, positions: Tensor) -> tuple[Tensor, int, int]:
        """Those of `positions` that lie in a block, counted from its start, and the part of all that they are."""
        edges = torch.tensor([rows.start, rows.stop], device=positions.device)
        begin, end = torch.searchsorted(positions, edges).tolist()
        return positions[begin:end] - rows.start, begin, end

    def top(self) -> tuple[Positions, npt.NDArray[np.float32]]:
        """[J, K] ids and log-probabilities."""
        ids, logprobs = (torch.cat(parts).cpu().numpy() for parts in zip(*self._top, strict=True))
        return ids, logprobs.astype(np.float32)

    def prefixes(self) -> tuple[Positions, Positions, npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
        """Counts [P], ids [E], log-probabilities [E], and which of them were drawn [E]."""
        counts, ids, logprobs, drawn = (
            np.concatenate([np.zeros(0, kind), *(getattr(kept, name).cpu().numpy() for kept in self._kept)])
            for name, kind in (("counts", int), ("tokens", int), ("logprobs", float), ("drawn", bool))
        )
        return counts, ids, logprobs, drawn


def _split(values: npt.NDArray[Any], like: Sequence[npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
    """`values` in parts of the lengths of `like`."""
    return np.split(values, np.cumsum([len(part) for part in like])[:-1])
