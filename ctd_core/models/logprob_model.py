"""A student as training and evaluation call it: token ids in, log-probabilities out."""

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn
from transformers import PreTrainedModel

from ctd_core.models.loading import head_of, last_hidden, vocabulary_mask
from ctd_core.ops.fused_logprobs import token_and_boundary_logprobs


class LogprobModel(nn.Module):
    """A causal language model that answers with log-probabilities. `begins_pretoken`: [tokens] bool, see Spelling.

    projections: modules of the objectives that are trained along with the model and are no part of it.
    """

    def __init__(self, model: PreTrainedModel, begins_pretoken: npt.NDArray[np.bool_]) -> None:
        super().__init__()
        self.model = model
        self.mask: Tensor
        self.register_buffer("mask", vocabulary_mask(begins_pretoken, model), persistent=False)
        self.projections = nn.ModuleList()

    def forward(
        self, input_ids: Tensor, positions: Tensor, token_rows: Tensor, token_ids: Tensor, boundary_rows: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """[Q] log-probabilities of next tokens, [M] of a pretoken boundary (see token_and_boundary_logprobs).

        The third result are the hidden states [N, H] that they are of.

        input_ids: [B, S]; positions: [N], the places in [B * S] that matter; token_rows and boundary_rows: among the N.
        """
        hidden = last_hidden(self.model, input_ids).flatten(0, 1)[positions]
        head = head_of(self.model)
        return *token_and_boundary_logprobs(hidden, head, token_rows, token_ids, self.mask, boundary_rows), hidden
