"""A student as training and evaluation call it: token ids in, log-probabilities out."""

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn
from transformers import PreTrainedModel

from ctd_core.models.loading import head_of, last_hidden, vocabulary_mask
from ctd_core.models.logprobs import token_and_boundary_logprobs


class LogprobModel(nn.Module):
    """A causal language model that answers with log-probabilities. `begins_pretoken`: [tokens] bool, see Spelling."""

    def __init__(self, model: PreTrainedModel, begins_pretoken: npt.NDArray[np.bool_]) -> None:
        super().__init__()
        self.model = model
        self.mask: Tensor
        self.register_buffer("mask", vocabulary_mask(begins_pretoken, model), persistent=False)

    def forward(
        self, input_ids: Tensor, positions: Tensor, target_ids: Tensor, boundary_rows: Tensor
    ) -> tuple[Tensor, Tensor]:
        """[N] log-probabilities of `target_ids` [N], and [M] of a pretoken boundary at `boundary_rows` [M].

        input_ids: [B, S]; positions: [N], where in [B * S] each target is predicted; boundary_rows: among the N.
        """
        hidden = last_hidden(self.model, input_ids).flatten(0, 1)[positions]
        return token_and_boundary_logprobs(hidden, head_of(self.model), target_ids, self.mask, boundary_rows)
