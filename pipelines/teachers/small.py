"""`python -m pipelines.teachers.small DIR`: a small language model, trained here in minutes, without a download."""

import logging
import shutil
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils.logging import disable_progress_bar

from ctd_core.config.run import RunConfig
from ctd_core.config.text import Corpus
from ctd_core.config.yaml_files import read_config
from ctd_core.storage.atomic import atomic_directory
from ctd_core.text.corpora import plan_slices, read_slice
from ctd_core.text.corpora.slices import training_documents
from ctd_core.text.documents import Document
from ctd_core.text.tokenizers import train_tokenizer
from pipelines.artifacts.run_plan import plan_run
from pipelines.recipes import read_recipe
from pipelines.stages.export import export
from pipelines.stages.prepare import prepare
from pipelines.stages.train import train_student
from pipelines.teachers.command import make_from_command_line

logger = logging.getLogger(__name__)

RECIPE = "small-teacher"
VOCABULARY = 4096


def make(directory: Path) -> None:
    """Train a small Llama with a tokenizer of its own by the recipe, and put the result in `directory`."""
    if directory.exists():
        logger.info(f"{directory} is there already")
        return
    disable_progress_bar()
    config = read_config(read_recipe(RECIPE), f"recipe {RECIPE}", [])
    write_untrained(config.corpus, VOCABULARY, 256, 4, Path(config.teacher.model))
    train_into(config, directory)


def train_into(config: RunConfig, directory: Path) -> None:
    """Prepare and train by a run's options, and put the exported student in `directory`."""
    plan = plan_run(config)
    prepare(plan)
    train_student(plan)
    export(plan)
    with atomic_directory(directory) as target:
        shutil.copytree(plan.model, target, dirs_exist_ok=True)


def write_untrained(corpus: Corpus, vocabulary: int, hidden: int, layers: int, directory: Path) -> None:
    """Write an untrained Llama with a tokenizer of so many entries, trained on a corpus, where it is not there yet."""
    if directory.exists():
        return
    texts = (document for part in plan_slices(corpus, 2**20) for document in read_slice(corpus, part))
    tokenizer = train_tokenizer(
        [document.text for document in training_documents(corpus, texts) if isinstance(document, Document)], vocabulary
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=hidden * 11 // 4,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with atomic_directory(directory) as target:
        tokenizer.save_pretrained(target)
        LlamaForCausalLM(config).save_pretrained(target)


if __name__ == "__main__":
    make_from_command_line(make, __doc__)
