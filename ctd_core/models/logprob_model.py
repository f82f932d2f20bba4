"""A model as training, scoring and evaluation call it: token ids in, log-probabilities out."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ctd_core.models.language_model import NO_INPUTS, LanguageModel
from ctd_core.ops.fused_logprobs import Watch, token_and_boundary_logprobs


class LogprobModel(nn.Module):
    """A language model that answers with log-probabilities.

    Args:
        language_model: its module becomes `model`, whose parameters are trained.
        begins_pretoken: [tokens] bool, see TokenBytes.

    projections: modules of the objectives that are trained along with the model and are no part of it.
    reaches_projections: whether they are in the graph of the hidden states, in which DDP may look for what is used.
    mask: [V] bool, the tokens that begin a pretoken; rows that pad the vocabulary are not among them.
    """

    def __init__(self, language_model: LanguageModel, begins_pretoken: npt.NDArray[np.bool_]) -> None:
        super().__init__()
        self.language_model = language_model
        self.model = language_model.module
        self.mask: Tensor
        self.register_buffer("mask", _vocabulary_mask(begins_pretoken, language_model), persistent=False)
        self.projections = nn.ModuleList()
        self.reaches_projections = False

    def forward(
        self,
        input_ids: Tensor,
        positions: Tensor,
        token_rows: Tensor,
        token_ids: Tensor,
        boundary_rows: Tensor,
        extra_inputs: Mapping[str, Tensor] = NO_INPUTS,
        watch: Watch | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Log-probabilities of chosen next tokens and of pretoken boundaries.

        Args:
            input_ids: [B, S].
            positions: [N], the positions in [B * S] that matter.
            token_rows: [Q], among the N, those whose next token is asked for.
            token_ids: [Q], these next tokens.
            boundary_rows: [M], among the N, those at which a boundary is asked for.
            extra_inputs: see LanguageModel.hidden_states.
            watch: see token_and_boundary_logprobs.

        Returns:
            [Q] log-probabilities of the next tokens, [M] of a boundary (see token_and_boundary_logprobs), and the
            hidden states [N, H] that they are of.
        """
        hidden = self.language_model.hidden_states(input_ids, extra_inputs).flatten(0, 1)[positions]
        head = self.language_model.head
        asked = (token_rows, token_ids, self.mask, boundary_rows)
        token, boundary = token_and_boundary_logprobs(hidden, head, *asked, watch=watch)
        if self.reaches_projections:
            for parameter in self.projections.parameters():
                hidden = hidden + parameter.sum() * 0
        return token, boundary, hidden


def _vocabulary_mask(begins_pretoken: npt.NDArray[np.bool_], model: LanguageModel) -> Tensor:
    weight = model.head.weight
    size = weight.shape[0]
    mask = torch.zeros(size, dtype=torch.bool, device=weight.device)
    mask[: len(begins_pretoken)] = torch.from_numpy(begins_pretoken[:size])  # ids beyond are refused where they occur
    return mask
