"""The configs of models, read without their weights."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers.utils.hub import cached_file

from ctd_core.errors import UsageError, first_line
from ctd_core.storage.locations import is_missing_path

if TYPE_CHECKING:
    from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel

WIDENED = ("mxfp4", "fp8")  # quantised weights that are widened when they are loaded
TABLES = re.compile("vocab_size_|ple_layer_ids|num_hash_layers")  # what has rows by token ids
EXPANSION_BASE = "expansion_base"  # in the config of a student that models.byte_expansion has the code of


def read_model_config(name: str, revision: str | None = None, trust_remote_code: bool = False) -> "PretrainedConfig":
    """The config of the model in a directory or of a hub id.

    Args:
        name: a directory or a hub id.
        revision: of a hub id: a branch, tag or commit.
        trust_remote_code: whether code that lies beside the config may run.

    Returns:
        The config.

    Raises:
        UsageError: there is no model, it is a directory of adapters, or its code is its own and not trusted.
    """
    from transformers import AutoConfig  # takes seconds, as it brings torch

    values = _config_values(name, revision, trust_remote_code)
    if EXPANSION_BASE in values:
        from ctd_core.models.byte_students import registered_classes

        registered_classes(values[EXPANSION_BASE])
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(
            name, revision=revision, trust_remote_code=trust_remote_code
        )
    except (OSError, ValueError) as error:
        raise UsageError(f"{name}: no model is there ({first_line(error)}).") from error
    return config


def is_byte_expanded(name: str, revision: str | None = None, trust_remote_code: bool = False) -> bool:
    """Whether the model in `name` has student.byte_expansion, from its config alone; raises as read_model_config."""
    return EXPANSION_BASE in _config_values(name, revision, trust_remote_code)


def check_transferable(values: dict[str, Any], name: str, same_vocabulary: bool) -> None:
    """Look whether a student can be made from a model under another tokenizer.

    Args:
        values: what the config of its language model holds.
        name: how the model is named in an error.
        same_vocabulary: whether the student has the very rows of the model.

    Raises:
        UsageError: the model has tables of its vocabulary's size beside embeddings and output matrix, its weights are
            quantised, or it reads bytes before each byte.
    """
    method = _quantised_by(values)
    if method is not None and method not in WIDENED:
        raise UsageError(
            f"{name} holds weights quantised by {method}, so no student can be made from it: name the model that it "
            "was quantised from, or another one in student.model."
        )
    if further := [key for key, size in values.items() if TABLES.match(key) and size]:
        raise UsageError(
            f"{name} has tables of its vocabulary's size beside embeddings and output matrix ({', '.join(further)}), "
            "so no student can be made from it under another tokenizer: name one in student.model."
        )
    if EXPANSION_BASE in values and not same_vocabulary:
        raise UsageError(
            f"{name} has student.byte_expansion, which fits its own tokenizer alone, so no student can be made from it "
            "under another tokenizer or with pad_to_multiple_of: name one in student.model."
        )


def check_learnable(name: str, revision: str | None, trust_remote_code: bool) -> None:
    """Raises UsageError where the weights of a student of its own are quantised; raises as read_model_config too."""
    method = _quantised_by(_config_values(name, revision, trust_remote_code))
    if method is not None:
        raise UsageError(
            f"student.model: {name} holds weights quantised by {method}, which do not learn. Name the model that it "
            "was quantised from."
        )


def _quantised_by(values: dict[str, Any]) -> str | None:
    """The method by which the weights of a model are quantised; None where they are not."""
    config = values.get("quantization_config")
    return str(config.get("quant_method", "a method without a name")) if config else None


def check_origin(name: str, revision: str | None, trust_remote_code: bool, same_vocabulary: bool) -> None:
    """As check_transferable, of the model in a directory or of a hub id; raises as read_model_config too."""
    values = _config_values(name, revision, trust_remote_code)
    check_transferable(values | values.get("text_config", {}), name, same_vocabulary)


def num_embeddings(name: str, revision: str | None = None, trust_remote_code: bool = False) -> int:
    """The rows of the embedding of the model in `name`, from its config alone; raises as read_model_config."""
    return int(_text_value(name, revision, trust_remote_code, "vocab_size"))


def max_positions(name: str, revision: str | None = None, trust_remote_code: bool = False) -> int | None:
    """The most tokens that the model in `name` reads, None where its config names no such number.

    Raises as read_model_config.
    """
    found = _text_value(name, revision, trust_remote_code, "max_position_embeddings")
    return None if found is None else int(found)


def longest_window(name: str, revision: str | None = None, trust_remote_code: bool = False) -> int | None:
    """The most tokens of a text beside which a model reads shorter ones as alone; as `max_positions`.

    Of longrope (Phi-3's), one text beyond the original length changes the positions of its whole batch.
    """
    values = _config_values(name, revision, trust_remote_code)
    values = values.get("text_config", values)
    for rope in (values.get("rope_parameters"), values.get("rope_scaling")):
        if isinstance(rope, Mapping) and "longrope" in (rope.get("rope_type"), rope.get("type")):
            for part in (rope, values):
                if (original := part.get("original_max_position_embeddings")) is not None:
                    return int(original)
    return max_positions(name, revision, trust_remote_code)


def positions_of(model: "PreTrainedModel") -> int | None:
    """The most tokens that a loaded model reads, None where its config names no such number."""
    found: int | None = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return found


def end_tokens(config: "GenerationConfig | None") -> list[int]:
    """The ids at which a generation config ends a text."""
    given: int | list[int] | None = getattr(config, "eos_token_id", None)
    return [] if given is None else [given] if isinstance(given, int) else list(given)


def _text_value(name: str, revision: str | None, trust_remote_code: bool, key: str) -> Any:
    """A value of the language model's config: from config.json, or where that leaves it out, the class's default."""
    values = _config_values(name, revision, trust_remote_code)
    values = values.get("text_config", values)
    if key in values:
        return values[key]
    return getattr(read_model_config(name, revision, trust_remote_code).get_text_config(), key, None)


def _config_values(name: str, revision: str | None, trust_remote_code: bool) -> dict[str, Any]:
    """What config.json holds; raises as read_model_config."""
    folder = Path(name)
    if folder.is_dir() and (folder / "adapter_config.json").exists() and not (folder / "config.json").exists():
        base = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8")).get("base_model_name_or_path")
        raise UsageError(
            f"{name}: these are LoRA adapters of {base}, not a model. Merge them first: `from peft import "
            f"AutoPeftModelForCausalLM as Adapted; Adapted.from_pretrained({name!r}).merge_and_unload()"
            ".save_pretrained('merged')`, and copy the tokenizer's files there."
        )
    if is_missing_path(name):
        raise UsageError(f"{name}: there is no such directory. Name one that exists, or a hub id such as org/model.")
    try:
        file = cached_file(name, "config.json", revision=revision)
        if file is None:
            raise FileNotFoundError("it has no config.json")
        values: dict[str, Any] = json.loads(Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{name}: no model is there ({first_line(error)}).") from error
    if values.get("model_type") == "rwkv":
        raise UsageError(
            f"{name}: RWKV is not supported: in transformers it changes its weights when it is first used, and reads "
            "padding as text."
        )
    if "auto_map" in values and EXPANSION_BASE not in values and not trust_remote_code:
        from transformers import CONFIG_MAPPING

        if values.get("model_type") not in CONFIG_MAPPING:
            raise UsageError(
                f"{name}: this model brings code of its own, which is not run unless you trust it: read it, then set "
                "trust_remote_code: true beside the model's name."
            )
    return values
