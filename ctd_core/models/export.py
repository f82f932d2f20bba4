"""A trained student as a directory that Hugging Face transformers loads."""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast


def export_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, card: str, directory: Path) -> None:
    """Write model, tokenizer, generation config and model card into `directory`."""
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    (directory / "README.md").write_text(card, encoding="utf-8")


@torch.no_grad()
def continue_text(name: str, revision: str | None, prompts: list[str], max_new_tokens: int) -> list[str]:
    """The greedy continuation of each prompt by the model and tokenizer in `name`, without the prompt."""
    tokenizer = AutoTokenizer.from_pretrained(name, revision=revision)
    model = AutoModelForCausalLM.from_pretrained(name, revision=revision, dtype=torch.float32).eval()
    continuations = []
    for prompt in prompts:
        inputs = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
        written = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
        continuations.append(tokenizer.decode(written[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
    return continuations
