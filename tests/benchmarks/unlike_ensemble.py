"""`python -m tests.benchmarks.unlike_ensemble A B TASKS_DIR TASK…`: two models with unlike tokenizers together, without
a transfer: each token of A's vocabulary gets B's probability of the token nearest to it in edit distance (arXiv
2401.10491). It is what an ensemble of transferred models is compared with, and no part of the package.
"""

import argparse

import numpy as np
import torch
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from ctd_core.align.vocabulary import nearest_map
from ctd_core.config.evaluation import Tasks
from ctd_core.errors import DocumentError
from ctd_core.evaluation.tasks import TaskHarness
from ctd_core.models.loading import load_model
from ctd_core.text.prepared_tokenizer import prepare_tokenizer
from ctd_core.text.token_bytes import decode
from ctd_core.text.tokenizers import load_tokenizer


class UnlikeEnsemble(PreTrainedModel):
    """The mean of two distributions over A's tokens where B ends a token at the same byte; A's alone elsewhere."""

    _supports_sdpa = True  # as its members do

    def __init__(self, first, second, tokenizers):
        super().__init__(first.config)
        self.first, self.second, self.tokenizers = first, second, tokenizers
        nearest = nearest_map(tokenizers[1].encoder.token_bytes, tokenizers[0].encoder.token_bytes)
        self.nearest = torch.from_numpy(nearest.astype(np.int64))
        self.common = self.positions = 0

    def forward(self, input_ids, **_):
        """Log-probabilities [B, S, V] as logits, by A's tokens."""
        logprobs = self.first(input_ids=input_ids).logits.float().log_softmax(-1)
        for row, ids in enumerate(input_ids.cpu().numpy()):
            self._mix(logprobs[row], ids)
        return CausalLMOutput(logits=logprobs)

    def _mix(self, logprobs, ids):
        side, other = (tokenizer.encoder for tokenizer in self.tokenizers)
        ends = np.cumsum([len(decode(side.token_bytes, ids[n : n + 1])) for n in range(len(ids))])
        text = decode(side.token_bytes, ids.astype(np.int32))
        if text[:1] == b" ":  # which A's tokenizer has invented
            text, ends = text[1:], ends - 1
        (encoding,) = other.encode_batch([text.decode(errors="replace")])
        if isinstance(encoding, DocumentError):
            return
        other_ids = [*self.tokenizers[1].markers["begin"], *encoding.ids]
        other_ends = [0] * len(self.tokenizers[1].markers["begin"]) + list(encoding.byte_ends)
        at = {end: position for position, end in enumerate(other_ends)}
        rows = [(n, at[int(end)]) for n, end in enumerate(ends) if int(end) in at]
        self.common, self.positions = self.common + len(rows), self.positions + len(ids)
        here, there = (torch.tensor(part) for part in zip(*rows, strict=True))
        seen = self.second(input_ids=torch.tensor([other_ids])).logits[0, there].float().log_softmax(-1)
        mapped = seen[:, self.nearest.clamp(min=0)].masked_fill(self.nearest < 0, -torch.inf)
        mapped = mapped - mapped.logsumexp(-1, keepdim=True)
        size = mapped.shape[1]
        logprobs[here, :size] = torch.logaddexp(logprobs[here, :size], mapped) - np.log(2)


@torch.no_grad()
def main() -> None:
    """Ask it the tasks."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("first", "second", "include_path"):
        parser.add_argument(name)
    parser.add_argument("tasks", nargs="+")
    given = parser.parse_args()
    names = given.first, given.second
    tokenizers = [prepare_tokenizer(load_tokenizer(name, None), name, None, None) for name in names]
    model = UnlikeEnsemble(*(load_model(name, None, "float32", False) for name in names), tokenizers).eval()
    harness = TaskHarness(Tasks(names=given.tasks, include_path=given.include_path))
    for task in given.tasks:
        print(harness.run(model, load_tokenizer(given.first, None), task, "unlike ensemble").model_dump_json())
    print(f"{model.common / model.positions:.3f} of the positions have both models' predictions")


if __name__ == "__main__":
    main()
