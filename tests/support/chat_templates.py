"""Chat templates in the manner of well-known families, on tiny tokenizers of several kinds."""

from functools import cache

from tokenizers import AddedToken

from ctd_core.text.prepared_tokenizer import prepare_tokenizer
from tests.support.tokenizers import TOTAL

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# A default system message where none is given, as SmolLM2 has it.
SMOLLM = (
    "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are helpful.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' "
    "+ m['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
# No system message; the assistant is called model.
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}"
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
    "{% set role = 'model' if m['role'] == 'assistant' else m['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
)
# The system message goes into the first user message; turns end with eos alone.
MISTRAL_V1 = (
    "{{ bos_token }}{% set shift = 1 if messages[0]['role'] == 'system' else 0 %}"
    "{% for m in messages[shift:] %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{% if m['role'] == 'user' %}"
    "{{ '[INST] ' }}{% if loop.first and shift %}{{ messages[0]['content'] + '\n\n' }}{% endif %}"
    "{{ m['content'] + ' [/INST]' }}{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
)
MISTRAL_V3 = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST]' + m['content'] + '[/INST]' }}"
    "{% elif m['role'] == 'system' %}{{ '[SYSTEM_PROMPT]' + m['content'] + '[/SYSTEM_PROMPT]' }}"
    "{% else %}{{ m['content'] + eos_token }}{% endif %}{% endfor %}"
)
# Special tokens that take white space with them.
PHI3 = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
DEEPSEEK = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}{{ m['content'] }}"
    "{% elif m['role'] == 'user' %}{{ '<｜User｜>' + m['content'] }}"
    "{% else %}{{ '<｜Assistant｜>' + m['content'] + '<｜end▁of▁sentence｜>' }}{% endif %}{% endfor %}"
)
# The last assistant's turn gets an empty thinking block, earlier ones have theirs taken out.
QWEN3 = (
    "{% for m in messages %}{% set content = m['content'] %}{% if m['role'] == 'assistant' %}"
    "{% if '</think>' in content %}{% set content = content.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "{% if loop.last %}{% set content = '<think>\n\n</think>\n\n' + content %}{% endif %}{% endif %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + content + '<|im_end|>\n' }}{% endfor %}"
)
# Nothing begins a text, and nothing stands before an answer.
BARE = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}{{ m['content'] + eos_token }}"
    "{% else %}{{ '[INST]' + m['content'] + '[/INST]' }}{% endif %}{% endfor %}"
)
# No special token at all.
PLAIN = "{% for m in messages %}{{ m['role'] | upper + ': ' + m['content'] + '\n' }}{% endfor %}"

# Each with its special tokens; those marked with a star take the white space after them.
TEMPLATES: dict[str, tuple[str, list[str]]] = {
    "ChatML": (CHATML, ["<|im_start|>", "<|im_end|>"]),
    "SmolLM2": (SMOLLM, ["<|im_start|>", "<|im_end|>"]),
    "Llama 3": (LLAMA3, ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]),
    "Gemma": (GEMMA, ["<bos>", "<start_of_turn>", "<end_of_turn>"]),
    "Mistral v1": (MISTRAL_V1, ["<s>", "</s>"]),
    "Mistral v3": (MISTRAL_V3, ["<s>", "</s>", "[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"]),
    "Phi-3": (PHI3, ["<|endoftext|>", "<|user|>*", "<|assistant|>*", "<|system|>*", "<|end|>*"]),
    "DeepSeek": (DEEPSEEK, ["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>"]),
    "Qwen3": (QWEN3, ["<|im_start|>", "<|im_end|>", "<think>", "</think>"]),
    "bare": (BARE, ["</s>", "[INST]", "[/INST]"]),
    "plain": (PLAIN, []),
}
KINDS = {
    "ChatML": "byte-level BPE, 300",
    "SmolLM2": "byte-level BPE, 600",
    "Llama 3": "byte-level BPE, 600",
    "Gemma": "SentencePiece BPE",
    "Mistral v1": "SentencePiece BPE with a leading space",
    "Mistral v3": "byte-level BPE, 300",
    "Phi-3": "SentencePiece BPE with a leading space",
    "DeepSeek": "byte-level BPE with a leading space",
    "Qwen3": "byte-level BPE with NFC",
    "bare": "byte-level BPE, 300",
    "plain": "bytes",
}


@cache
def chat_tokenizer(family):
    """A tokenizer with the family's template and special tokens."""
    template, names = TEMPLATES[family]
    tokenizer = TOTAL[KINDS[family]]()
    tokens = [AddedToken(name.rstrip("*"), rstrip=name.endswith("*"), normalized=False, special=True) for name in names]
    tokenizer.add_special_tokens({"additional_special_tokens": tokens})
    if names and family not in ("ChatML", "Qwen3", "bare"):
        tokenizer.bos_token = names[0].rstrip("*")  # SmolLM2's begins every message too
    if family in ("Mistral v1", "Mistral v3", "bare"):
        tokenizer.eos_token = "</s>"
    elif family == "Phi-3":
        tokenizer.eos_token = "<|endoftext|>"
    elif "<|im_end|>" in names:
        tokenizer.eos_token = "<|im_end|>"
    tokenizer.chat_template = template
    return tokenizer


@cache
def prepared_chat(family):
    return prepare_tokenizer(chat_tokenizer(family), family, None, None)
