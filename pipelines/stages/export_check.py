"""`ctd export --check` and `--push`: whether the exported student is one elsewhere, and sending it to the hub.

The check runs plain transformers in a Python of its own, and compares with what this project computes.
"""

import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from ctd_core.errors import CtdError, UsageError, first_line
from ctd_core.models.loading import load_model
from ctd_core.models.model_config import EXPANSION_BASE, end_tokens
from ctd_core.text.stops import stops_of
from ctd_core.text.tokenizers import load_tokenizer
from pipelines.artifacts.locks import stage_lock
from pipelines.artifacts.report import RESULTS
from pipelines.artifacts.run_plan import RunPlan
from pipelines.stages.export import write_model

logger = logging.getLogger(__name__)
TEXTS = [
    "Hello, world!",
    "  two  spaces\n\tand a tab",
    "Größe, naïve, 日本語, 👩‍👩‍👧",
    "x = 12345 # nothing",
    "<|im_end|></s>",
]
TOLERANCE = 1e-3  # of logits, in float32
ELSEWHERE = """
import json, sys
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

directory, trust, texts = sys.argv[1], sys.argv[2] == "True", json.loads(sys.argv[3])
tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
model = AutoModelForCausalLM.from_pretrained(directory, trust_remote_code=trust, dtype=torch.float32)
found = {"ids": [tokenizer(text)["input_ids"] for text in texts]}
found["texts"] = [tokenizer.decode(ids) for ids in found["ids"]]
with torch.no_grad():
    found["logits"] = [model(torch.tensor([ids])).logits[0, -1].tolist() for ids in found["ids"]]
prompt = torch.tensor([found["ids"][0]])
cached, plain = (
    model.generate(prompt, max_new_tokens=12, do_sample=False, use_cache=use_cache)[0].tolist()
    for use_cache in (True, False)
)
found["cached"], found["plain"] = cached, plain
if tokenizer.chat_template:
    found["chat"] = tokenizer.apply_chat_template(
        [{"role": "user", "content": texts[0]}], add_generation_prompt=True
    )["input_ids"]
print(json.dumps(found))
"""


# What an export may be made of: of an earlier one, files that the new one lacks would be loaded with it.
MODEL_FILES = ["*.safetensors", "*.json", "*.jinja", "*.py", "*.model"]


def check_export(plan: RunPlan) -> Path:
    """Export the student, and check it in a Python without this project.

    Args:
        plan: the run.

    Returns:
        The directory.

    Raises:
        CtdError: something is different there.
    """
    with stage_lock(plan.files, RESULTS):
        directory = write_model(plan)
        origin = plan.config.student if plan.config.student.model is not None else plan.config.teacher
        check_directory(directory, origin.trust_remote_code)
    return directory


def check_directory(directory: Path, trust_remote_code: bool = False) -> None:
    """Compare an exported model with plain transformers in a Python of its own, and log what is the same.

    Args:
        directory: the exported model.
        trust_remote_code: whether code of others that lies beside it may run; byte expansion's is this project's own.

    Raises:
        CtdError: with all that is different.
    """
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    is_trusted = trust_remote_code and "auto_map" in config
    has_code = EXPANSION_BASE in config or is_trusted
    # isolated: neither the directory that it runs in nor PYTHONPATH holds modules for it
    command = [sys.executable, "-I", "-c", ELSEWHERE, str(directory.resolve()), str(has_code), json.dumps(TEXTS)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise CtdError(f"{directory}: transformers cannot use it: {done.stderr.strip().splitlines()[-1]}")
    wrong = list(_differences(directory, json.loads(done.stdout.splitlines()[-1]), config, is_trusted))
    if wrong:
        raise CtdError(f"{directory}: elsewhere it is not the same:\n" + "\n".join(f"  {line}" for line in wrong))
    logger.info("export: plain transformers has the same tokens and logits, and generates the same with a cache")
    if has_code:
        logger.info(
            "export: it has code of its own: trust_remote_code=True elsewhere; vLLM and llama.cpp cannot run it"
        )
    else:
        logger.info(
            "export: a plain %s with a tokenizer.json, which vLLM and llama.cpp's converter read where they know the "
            "architecture", config["architectures"][0],
        )  # fmt: skip


def _differences(directory: Path, found: dict[str, Any], config: dict[str, Any], is_trusted: bool) -> list[str]:
    tokenizer, model = load_tokenizer(str(directory)), load_model(str(directory), trust_remote_code=is_trusted)
    wrong = []
    for text, ids, spelled, logits in zip(TEXTS, found["ids"], found["texts"], found["logits"], strict=True):
        own = tokenizer(text)["input_ids"]
        if ids != own:
            wrong.append(f"the tokens of {text!r} are {ids[:12]}, here {own[:12]}")
            continue
        if text not in spelled:
            wrong.append(f"its tokens of {text!r} are decoded as {spelled!r}")
        with torch.no_grad():
            difference = (model(torch.tensor([own])).logits[0, -1] - torch.tensor(logits)).abs().max()
        if not difference <= TOLERANCE:
            wrong.append(f"the logits after {text!r} differ by {difference:.3g}")
    if found["cached"] != found["plain"]:
        wrong.append("generate() writes something else with a cache than without")
    rows = config.get("text_config", config)["vocab_size"]
    if len(tokenizer) > rows:
        wrong.append(f"the tokenizer has {len(tokenizer)} tokens, and the model {rows} rows")
    if tokenizer.chat_template:
        messages = [{"role": "user", "content": TEXTS[0]}]
        if found["chat"] != tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]:
            wrong.append("the chat template writes other tokens")
    known = set(end_tokens(model.generation_config))
    missing = stops_of(tokenizer, str(directory)) - known
    if missing and (tokenizer.chat_template or not known):
        names = ", ".join(tokenizer.convert_ids_to_tokens(sorted(missing)))
        wrong.append(f"what it writes would not stop at {names}: generation_config.json does not name it")
    return wrong


def push(directory: Path, repository: str, is_public: bool) -> str:
    """Send an exported student with its card to the Hugging Face hub; private unless it is to be public.

    Args:
        directory: the exported student.
        repository: ORG/NAME.
        is_public: whether everybody may see it.

    Returns:
        The address of the commit.

    Raises:
        UsageError: the name is none, or a public model's card names no licence.
        CtdError: the hub refuses it.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    card = (directory / "README.md").read_text(encoding="utf-8")
    if is_public and "\nlicense:" not in card.split("\n---\n")[0]:
        raise UsageError(
            f"{directory / 'README.md'}: the card names no licence, since the base model's is not known. Write "
            "`license: …` between the first lines of that model's README.md (of a hub id, in a copy of it, which the "
            "run then names), or push without --public."
        )
    api = HfApi()
    try:
        api.create_repo(repository, private=not is_public, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repository, folder_path=directory, commit_message="Upload the student", delete_patterns=MODEL_FILES
        )
    except HFValidationError as error:
        raise UsageError(f"--push {repository}: write ORG/NAME ({first_line(error)}).") from error
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise CtdError(
            f"--push {repository}: the hub refuses it ({first_line(error)}). Log in with `hf auth login`, or set "
            "HF_TOKEN."
        ) from error
    return str(commit)
