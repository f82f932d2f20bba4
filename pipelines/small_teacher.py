"""`python -m pipelines.small_teacher DIR`: a small language model, trained here in some minutes, without a download."""

import shutil
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaConfig
from transformers.utils import logging

from ctd_core.config_file import read_config
from ctd_core.errors import CtdError
from ctd_core.text.corpora import SourceText, plan_parts, read_part, training_texts
from ctd_core.text.tokenizers import train_tokenizer
from pipelines.export import export
from pipelines.places import Places
from pipelines.prepare import prepare
from pipelines.progress import say
from pipelines.recipes import read_recipe
from pipelines.run_files import whole_directory
from pipelines.train import train_student

RECIPE = "small-teacher"
VOCABULARY = 4096


def make(directory: Path) -> None:
    """Write an untrained Llama with a tokenizer of its own, train it by the recipe, put the result in `directory`."""
    if directory.exists():
        say(f"{directory} is there already")
        return
    logging.disable_progress_bar()
    config = read_config(read_recipe(RECIPE), f"recipe {RECIPE}", [])
    untrained = Path(config.teacher.model)
    if not untrained.exists():
        with whole_directory(untrained) as target:
            _write_untrained(config.corpus, target)
    places = Places(config)
    prepare(places)
    train_student(places)
    export(places)
    with whole_directory(directory) as target:
        shutil.copytree(places.model, target, dirs_exist_ok=True)


def _write_untrained(corpus, directory: Path) -> None:
    texts = (one for part in plan_parts(corpus, 2**20) for one in read_part(corpus, part))
    tokenizer = train_tokenizer(
        [one.text for one in training_texts(corpus, texts) if isinstance(one, SourceText)], VOCABULARY
    )
    tokenizer.save_pretrained(directory)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(directory)


if __name__ == "__main__":
    try:
        make(Path(sys.argv[1]))
    except CtdError as error:
        sys.exit(f"small_teacher: {error}")
