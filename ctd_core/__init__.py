"""Cross-tokenizer distillation: everything that calculates. Nothing here imports Ray."""
