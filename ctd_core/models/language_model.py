"""What this project needs of a language model, and the Hugging Face models as the first kind of one."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch import Tensor, nn
from transformers import PreTrainedModel

from ctd_core.errors import UsageError
from ctd_core.ops.fused_logprobs import Head

NO_INPUTS: Mapping[str, Tensor] = {}


class LanguageModel(Protocol):
    """A causal language model. A new kind of student (bytes with code of its own, say) implements this and no more.

    Shapes: B rows, S positions, H hidden size, V vocabulary.
    """

    @property
    def module(self) -> nn.Module:
        """What is moved between devices, trained, sharded and checkpointed."""

    @property
    def hidden_size(self) -> int:
        """H."""

    def hidden_states(self, input_ids: Tensor, extra_inputs: Mapping[str, Tensor]) -> Tensor:
        """The last hidden states [B, S, H], of which the head makes logits.

        Args:
            input_ids: [B, S], padded on the right.
            extra_inputs: what else this kind of model reads at each position, as `Batch.extra_inputs` has it.

        Returns:
            The hidden states.
        """

    @property
    def head(self) -> Head:
        """The output matrix [V, H] with its bias, scale and soft cap."""

    @property
    def embeddings(self) -> Tensor:
        """The input embeddings [V, H]."""

    @property
    def layers(self) -> nn.ModuleList:
        """The layers, the first first; raises UsageError where they are not known."""

    def save(self, directory: Path) -> None:
        """Write weights and config so that the model can be loaded again."""


@dataclass(frozen=True)
class HuggingFaceModel:
    """A causal language model of Hugging Face transformers."""

    module: PreTrainedModel

    @property
    def hidden_size(self) -> int:
        """H."""
        return int(self.module.config.get_text_config().hidden_size)

    def hidden_states(self, input_ids: Tensor, extra_inputs: Mapping[str, Tensor] = NO_INPUTS) -> Tensor:
        """The last hidden states [B, S, H] of `input_ids` [B, S]; `extra_inputs` are passed on by name."""
        hidden: Tensor = self._body(input_ids=input_ids, use_cache=False, **extra_inputs).last_hidden_state
        return hidden

    @property
    def _body(self) -> nn.Module:
        """What is below the output matrix: some models name no base."""
        body: nn.Module = self.module.base_model if self.module.base_model is not self.module else self.module.model
        return body

    @property
    def head(self) -> Head:
        """The output matrix with what the config does to logits."""
        output = self.module.get_output_embeddings()
        config = self.module.config.get_text_config()
        scale = float(getattr(config, "logit_scale", None) or 1) / float(getattr(config, "logits_scaling", None) or 1)
        cap = getattr(config, "final_logit_softcapping", None)
        return Head(output.weight, getattr(output, "bias", None), scale, float(cap) if cap else None)

    @property
    def embeddings(self) -> Tensor:
        """The input embeddings [V, H]."""
        weight: Tensor = self.module.get_input_embeddings().weight
        return weight

    @property
    def layers(self) -> nn.ModuleList:
        """The list of as many modules as the config has layers."""
        count = self.module.config.get_text_config().num_hidden_layers
        body = getattr(self._body, "language_model", self._body)  # beside which others are for images
        for module in body.modules():
            if isinstance(module, nn.ModuleList) and len(module) == count:
                return module
        raise UsageError(f"{type(self.module).__name__} has no list of its {count} layers, so they are not known.")

    def save(self, directory: Path) -> None:
        """As `save_pretrained` does."""
        self.module.save_pretrained(directory)
