"""Language models of a few thousand random parameters."""

import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from ctd_core.generation.sampler import TransformersSampler, Written
from ctd_core.models.language_model import HuggingFaceModel
from ctd_core.models.logprob_model import LogprobModel


def llama(vocabulary, tied=True, seed=0, dtype=torch.float32):
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, tie_word_embeddings=tied, bos_token_id=0, eos_token_id=0,
        initializer_range=0.3,
    )  # fmt: skip
    return LlamaForCausalLM(config).to(dtype).eval()


def gpt2(vocabulary, seed=0):
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=vocabulary, n_embd=32, n_layer=2, n_head=4, n_positions=512, bos_token_id=0, eos_token_id=0
    )
    return GPT2LMHeadModel(config).eval()


class EndingSampler(TransformersSampler):
    """Writes texts that all end, which those of random models hardly ever do."""

    def write(self, prompts, stops, options, seed):
        return [
            Written([*ids[:-1], min(stops)], logprobs) for ids, logprobs in super().write(prompts, stops, options, seed)
        ]


def logprobs_of(model, begins_pretoken):
    return LogprobModel(HuggingFaceModel(model), begins_pretoken)
