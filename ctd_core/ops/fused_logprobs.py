"""Token and boundary log-probabilities straight from hidden states, in bounded memory."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

BLOCK_BYTES = {"cpu": 32 * 2**20, "cuda": 512 * 2**20}  # of logits; smaller ones leave a GPU waiting for the host
BLOCK_ROWS = 256  # fewer make thin matrix products
SAFE_MASS = 1e-20  # above it, a float32 sum of probabilities has lost nothing to underflow


# Called with each block of rows, the exponentials [B, V] of its logits and their sums [B]; they are changed afterwards.
Watch = Callable[[slice, Tensor, Tensor], None]


@dataclass(frozen=True)
class Head:
    """How a model turns hidden states into logits: `cap * tanh(scale * (hidden @ weight.T + bias) / cap)`.

    weight: [V, H]. bias: [V] or None. cap: logit soft-capping (Gemma 2), None for none. scale: logit scaling
    (Cohere; Granite divides instead).
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    cap: float | None = None


def token_and_boundary_logprobs(
    hidden: Tensor,
    head: Head,
    token_rows: Tensor,
    token_ids: Tensor,
    begins_pretoken: Tensor,
    boundary_rows: Tensor,
    keep_bytes: int = 256 * 2**20,
    watch: Watch | None = None,
) -> tuple[Tensor, Tensor]:
    """Log-probabilities of next tokens, and of the next token beginning with a pretoken boundary.

    hidden: [N, H]. token_ids: [Q] int64, the tokens that are asked for. token_rows: [Q] int64, the row of `hidden`
    that predicts each; any number of tokens may be asked of a row.
    begins_pretoken: [V] bool. boundary_rows: [M] int64, ascending and distinct: the rows of `hidden` for which the
    boundary is asked.
    keep_bytes: logits of up to this many bytes are kept for the backward pass; those beyond are computed again, so
    memory is bounded by `keep_bytes` and a block, whatever N and V.
    watch: sees every block's distributions, for what else is asked of them without gradients.

    Returns [Q] and [M], natural logarithms in float32 (float64 for float64 input). The boundary term is a masked
    logsumexp: it does not underflow where the boundary's probability does. Raises ValueError for a token outside
    the vocabulary.
    """
    vocabulary = head.weight.shape[0]
    if token_ids.numel() and (int(token_ids.max()) >= vocabulary or int(token_ids.min()) < 0):
        raise ValueError(f"token ids reach from {int(token_ids.min())} to {int(token_ids.max())}, but the model's "
                         f"vocabulary has {vocabulary} entries")  # fmt: skip
    device = hidden.device.type
    order = token_rows.argsort(stable=True)
    token_rows, token_ids = token_rows[order], token_ids[order]
    weight, bias = head.weight, head.bias
    if torch.is_autocast_enabled(device):  # inputs as autocast would have them, sums in float32 all the same
        dtype = torch.get_autocast_dtype(device)
        hidden, weight, bias = hidden.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    with torch.autocast(device, enabled=False):
        results = _FusedLogprobs.apply(
            *(hidden, weight, bias, token_rows, token_ids, begins_pretoken, boundary_rows),
            *(head.scale, head.cap, keep_bytes if torch.is_grad_enabled() else 0, watch),
        )  # type: ignore[no-untyped-call]
    token, boundary = results
    return token.new_empty(len(order)).index_copy(0, order, token), boundary


class _FusedLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        token_rows: Tensor,
        token_ids: Tensor,
        begins_pretoken: Tensor,
        boundary_rows: Tensor,
        scale: float,
        cap: float | None,
        keep_bytes: int,
        watch: Watch | None,
    ) -> tuple[Tensor, Tensor]:
        head = Head(weight, bias, scale, cap)
        mask = begins_pretoken.to(_wide(hidden))
        token = hidden.new_zeros(len(token_rows), dtype=mask.dtype)
        boundary = hidden.new_zeros(len(boundary_rows), dtype=mask.dtype)
        norm = hidden.new_empty(len(hidden), dtype=mask.dtype)  # logsumexp of the logits
        kept: list[Tensor] = []
        needs_grad = any(ctx.needs_input_grad[:3])
        for rows, tokens, edges in _blocks(len(hidden), weight, token_rows, boundary_rows):
            logits = logits_of(hidden[rows], head)
            keep_bytes -= logits.nbytes
            is_kept = needs_grad and keep_bytes >= 0  # the kept ones are the first blocks
            picked = logits[token_rows[tokens] - rows.start, token_ids[tokens]]
            largest = logits.amax(1)
            shifted = logits - largest[:, None] if is_kept else logits.sub_(largest[:, None])
            probabilities = shifted.exp_()
            mass = probabilities.sum(1)
            norm[rows] = largest + mass.log()
            if watch is not None:
                watch(rows, probabilities, mass)
            token[tokens] = picked - norm[token_rows[tokens]]
            asked = boundary_rows[edges] - rows.start
            if len(asked):
                share = (probabilities @ mask)[asked] / mass[asked]
                boundary[edges] = share.log()
                tiny = asked[share < SAFE_MASS]
                if len(tiny):
                    masked = logits_of(hidden[rows][tiny], head).masked_fill_(~begins_pretoken, -torch.inf)
                    boundary[edges][share < SAFE_MASS] = masked.logsumexp(1) - norm[rows][tiny]
            if is_kept:
                kept.append(logits)
        saved = (hidden, weight, bias, token_rows, token_ids, begins_pretoken, boundary_rows, norm, boundary)
        ctx.save_for_backward(*saved)
        ctx.scale, ctx.cap, ctx.kept = scale, cap, kept
        return token, boundary

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad_token, grad_boundary = grads
        hidden, weight, bias, token_rows, token_ids, begins_pretoken, boundary_rows, norm, boundary = ctx.saved_tensors
        head = Head(weight, bias, ctx.scale, ctx.cap)
        mask = begins_pretoken.to(norm.dtype)
        kept, ctx.kept = ctx.kept, []  # overwritten below: a second backward computes them again
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        grad_hidden = torch.empty_like(hidden) if needs_hidden else None
        # sums over blocks in float32: each addition in bfloat16 would be rounded to 8 bits
        grad_weight = torch.zeros_like(weight, dtype=norm.dtype) if needs_weight else None
        grad_bias = torch.zeros_like(bias, dtype=norm.dtype) if needs_bias else None
        for number, (rows, tokens, edges) in enumerate(_blocks(len(hidden), weight, token_rows, boundary_rows)):
            logits = kept[number] if number < len(kept) else logits_of(hidden[rows], head)
            slope = None if head.cap is None else 1 - (logits / head.cap) ** 2
            predicting, wanted = token_rows[tokens] - rows.start, grad_token[tokens]
            asked, grad_asked = boundary_rows[edges] - rows.start, grad_boundary[edges]
            # d log p(token) = onehot - softmax;  d log p(boundary) = softmax within the mask - softmax
            pull = norm.new_zeros(len(logits)).index_add_(0, predicting, wanted).index_add_(0, asked, grad_asked)
            inside = _inside_where_tiny(logits, asked, boundary[edges], norm[rows], begins_pretoken)
            grad = logits.sub_(norm[rows, None]).exp_()
            if len(asked):
                share = boundary[edges].exp()
                within = torch.zeros_like(pull).index_add_(0, asked, torch.where(inside.rows, 0.0, grad_asked / share))
                grad.mul_(torch.outer(within, mask).sub_(pull[:, None]))
                grad.index_add_(0, asked[inside.rows], inside.softmax.mul_(grad_asked[inside.rows][:, None]))
            else:
                grad.mul_(-pull[:, None])
            grad.view(-1).index_add_(0, predicting * grad.shape[1] + token_ids[tokens], wanted)
            if slope is not None:
                grad.mul_(slope)
            grad = (grad if head.scale == 1.0 else grad.mul_(head.scale)).to(weight.dtype)
            if grad_hidden is not None:
                grad_hidden[rows] = grad @ weight
            if grad_weight is not None:
                if grad_weight.dtype == grad.dtype:
                    grad_weight.addmm_(grad.T, hidden[rows])
                else:
                    grad_weight += grad.T @ hidden[rows]
            if grad_bias is not None:
                grad_bias += grad.sum(0, dtype=grad_bias.dtype)
        grad_weight, grad_bias = (None if sums is None else sums.to(weight.dtype) for sums in (grad_weight, grad_bias))
        return grad_hidden, grad_weight, grad_bias, None, None, None, None, None, None, None, None


@dataclass(frozen=True)
class _Tiny:
    """Boundaries [K] too improbable for a sum of probabilities: `rows` [K] bool, and the softmax within the mask."""

    rows: Tensor
    softmax: Tensor


def _inside_where_tiny(logits: Tensor, asked: Tensor, boundary: Tensor, norm: Tensor, begins_pretoken: Tensor) -> _Tiny:
    tiny = boundary < math.log(SAFE_MASS)
    finite = asked[tiny]
    log_mass = (norm[finite] + boundary[tiny]).clamp(min=torch.finfo(norm.dtype).min)
    inside = (logits[finite] - log_mass[:, None]).masked_fill_(~begins_pretoken, -torch.inf).exp_()
    return _Tiny(tiny, inside)


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def logits_of(hidden: Tensor, head: Head) -> Tensor:
    """The logits [N, V] of `hidden` [N, H], in float32 or wider."""
    logits = torch.nn.functional.linear(hidden, head.weight, head.bias).to(_wide(hidden))
    if head.scale != 1.0:
        logits = logits * head.scale
    return logits if head.cap is None else head.cap * torch.tanh(logits / head.cap)


def _blocks(length: int, weight: Tensor, token_rows: Tensor, boundary_rows: Tensor) -> list[tuple[slice, slice, slice]]:
    """Blocks of BLOCK_ROWS rows, or of more whose logits fill BLOCK_BYTES, each with its parts of the other two."""
    step = max(BLOCK_ROWS, BLOCK_BYTES.get(weight.device.type, BLOCK_BYTES["cpu"]) // (weight.shape[0] * 4))
    edges = torch.tensor([*range(0, length, step), length], device=token_rows.device)
    cuts = (edges.tolist(), *(torch.searchsorted(rows, edges).tolist() for rows in (token_rows, boundary_rows)))
    rows, tokens, boundaries = ([slice(*pair) for pair in pairwise(cut)] for cut in cuts)
    return list(zip(rows, tokens, boundaries, strict=True))
