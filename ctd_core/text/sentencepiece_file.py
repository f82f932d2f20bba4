"""A tokenizer as the file tokenizer.model of SentencePiece, which llama.cpp reads in place of a tokenizer.json."""

import json
import re
from typing import Any

from transformers import PreTrainedTokenizerFast

from ctd_core.text.corpora.general_text import general_documents

METASPACE = "▁"
BYTE = re.compile("<0x[0-9A-F]{2}>")
RUNS = " -=.\n\ta0"  # characters of which runs are probes
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE_PIECE = 1, 2, 3, 4, 6  # types of pieces


def sentencepiece_file(tokenizer: PreTrainedTokenizerFast) -> bytes | None:
    """The tokenizer as a SentencePiece model that gives the same ids.

    A piece's score is the rank of the first merge that makes it. SentencePiece joins what makes the best piece,
    whatever it is made of, and a tokenizer may have merges of another kind, so both are asked for the ids of the
    packaged general set, of runs of characters, and of added tokens.

    Args:
        tokenizer: any tokenizer.

    Returns:
        What tokenizer.model holds; None for a tokenizer that is not BPE with metaspace and byte fallback, or that gives
        other ids than SentencePiece would.

    Raises:
        ImportError: the library sentencepiece is not installed.
    """
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    model = state["model"]
    begins_with_space = _begins_with_space(state)
    if model["type"] != "BPE" or not model.get("byte_fallback") or begins_with_space is None:
        return None
    import sentencepiece

    added = {token["content"]: token["special"] for token in state["added_tokens"]}
    rank: dict[str, int] = {}
    for number, (left, right) in enumerate(model["merges"]):
        rank.setdefault(left + right, number)
    file = _serialised(tokenizer, added, rank, begins_with_space)
    try:
        processor: Any = sentencepiece.SentencePieceProcessor(model_proto=file)
    except RuntimeError:  # added tokens that it takes for pieces
        return None
    probes = [document.text for document in general_documents()]
    probes += [f"x{character * count}y" for character in RUNS for count in range(1, 70)]
    probes += [f"a {token}b{token}" for token, is_special in added.items() if not is_special]
    given = tokenizer(probes, add_special_tokens=False)["input_ids"]
    return file if processor.encode(probes) == given else None


def _begins_with_space(state: dict[str, Any]) -> bool | None:
    """Whether a space is put before a text; None where spaces are no metaspaces, or more is done to a text."""
    steps = [state["normalizer"]] if state["normalizer"] is not None else []
    if steps and steps[0]["type"] == "Sequence":
        steps = steps[0]["normalizers"]
    kinds = [(step["type"], step.get("prepend") or step.get("content")) for step in steps]
    before = state["pre_tokenizer"]
    is_split = before is not None and before["type"] == "Split" and before["pattern"] == {"String": " "}
    if kinds == [("Prepend", METASPACE), ("Replace", METASPACE)] and before is None:
        return True
    if kinds == [("Replace", METASPACE)] and (before is None or is_split):  # of spaces, where none are left
        return False
    if not kinds and before is not None and before["type"] == "Metaspace" and not before.get("split", True):
        return {"first": True, "always": True, "never": False}.get(before["prepend_scheme"])
    return None


def _serialised(
    tokenizer: PreTrainedTokenizerFast, added: dict[str, bool], rank: dict[str, int], begins_with_space: bool
) -> bytes:
    from transformers.utils import sentencepiece_model_pb2_new as sentencepiece  # needs protobuf

    file: Any = sentencepiece.ModelProto()
    pieces = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    for token, text in enumerate(pieces):
        kind = NORMAL
        if text == tokenizer.unk_token:
            kind = UNKNOWN
        elif text in added:
            kind = CONTROL if added[text] else USER_DEFINED
        elif BYTE.fullmatch(text):
            kind = BYTE_PIECE
        file.pieces.add(piece=text, score=-float(rank.get(text, len(rank) + token)), type=kind)
    file.trainer_spec.model_type = 2  # BPE
    file.trainer_spec.byte_fallback = True
    file.trainer_spec.vocab_size = len(pieces)
    for role in ("unk", "bos", "eos", "pad"):
        number = getattr(tokenizer, f"{role}_token_id")
        setattr(file.trainer_spec, f"{role}_id", -1 if number is None else number)
    file.normalizer_spec.name = "identity"
    file.normalizer_spec.add_dummy_prefix = begins_with_space
    file.normalizer_spec.remove_extra_whitespaces = False
    return bytes(file.SerializeToString())
