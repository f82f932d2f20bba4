"""A student made from its teacher under a new tokenizer."""

import copy
from collections import defaultdict

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ctd_core.errors import CtdError, DocumentError
from ctd_core.models.loading import train_every_row
from ctd_core.text.segments import Side
from ctd_core.text.spelling import ids_by_bytes

TRANSFER_VERSION = 2  # of what transfer_model calculates


def transfer_model(
    teacher: PreTrainedModel, student_side: Side, teacher_side: Side, untie: bool = False, vocab_multiple: int = 1
) -> PreTrainedModel:
    """A copy of `teacher` with embeddings for the student's tokenizer.

    Each new embedding is the mean of the old ones that spell its token (FVT): the old one itself where a token of the
    same bytes exists; special tokens take the embedding of the token with their role or name. Rows that pad the
    vocabulary to a multiple of `vocab_multiple` are the mean of all. `untie` gives a tied model an output matrix of its
    own.
    """
    sources = old_tokens(student_side, teacher_side)
    size = -(-len(sources) // vocab_multiple) * vocab_multiple
    old_input = teacher.get_input_embeddings().weight
    old_output = teacher.get_output_embeddings()
    largest = max(max(ids) for ids in sources if ids)
    if largest >= len(old_input):
        raise CtdError(
            f"{teacher_side.encoder.name}: its token ids reach {largest}, and the teacher's embedding has "
            f"{len(old_input)} entries. Take the tokenizer that belongs to the model."
        )
    config = copy.deepcopy(teacher.config)
    text_config = config.get_text_config()
    tied = bool(text_config.tie_word_embeddings) and not untie
    text_config.vocab_size = config.vocab_size = size
    text_config.tie_word_embeddings = config.tie_word_embeddings = tied
    tokenizer = student_side.encoder.tokenizer
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(config, name, getattr(tokenizer, name))
    student = type(teacher)._from_config(config, dtype=teacher.dtype)
    state = teacher.state_dict()
    input_name, output_name = _name_of(teacher, old_input), _output_names(teacher)
    state[input_name] = average_rows(old_input.detach(), sources, size)
    state[output_name[0]] = state[input_name] if tied else average_rows(old_output.weight.detach(), sources, size)
    if len(output_name) > 1:
        state[output_name[1]] = average_rows(old_output.bias.detach()[:, None], sources, size)[:, 0]
    student.load_state_dict(state)
    if tied:
        student.tie_weights()
    student.generation_config = copy.deepcopy(teacher.generation_config)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(student.generation_config, name, getattr(tokenizer, name))
    train_every_row(student)
    return student.eval()


def old_tokens(student: Side, teacher: Side) -> list[list[int]]:
    """For each student token id, the teacher's tokens that stand for the same; none for an id without a token."""
    spelling = student.encoder.spelling
    exact = ids_by_bytes(teacher.encoder.spelling)
    roles = _special_roles(student, teacher)
    sources: list[list[int]] = []
    spelled = [raw for raw in spelling.token_bytes if raw and raw not in exact]
    by_bytes = dict(zip(spelled, spell_bytes(teacher, spelled), strict=True))
    for token_id, raw in enumerate(spelling.token_bytes):
        if spelling.is_special[token_id]:
            sources.append(roles.get(token_id, []))
        elif not raw:
            sources.append([])
        else:
            sources.append([exact[raw]] if raw in exact else by_bytes[raw])
    return sources


def spell_bytes(side: Side, spelled: list[bytes]) -> list[list[int]]:
    """Token ids that spell each byte string: by the tokenizer where it is text, else the longest tokens from the left.

    Bytes that no token spells are left out.
    """
    exact = ids_by_bytes(side.encoder.spelling)
    longest = max(map(len, exact))
    encodings = side.encoder.encode_batch([raw.decode(errors="ignore") for raw in spelled])
    results = []
    for raw, encoding in zip(spelled, encodings, strict=True):
        ids = [] if isinstance(encoding, DocumentError) else encoding.ids[encoding.byte_ends > 0].tolist()
        if b"".join(side.encoder.spelling.token_bytes[one] or b"" for one in ids) != raw:
            ids, at = [], 0
            while at < len(raw):
                end = next((end for end in range(min(len(raw), at + longest), at, -1) if raw[at:end] in exact), None)
                if end is not None:
                    ids.append(exact[raw[at:end]])
                at = end or at + 1
        results.append(ids)
    return results


def average_rows(old: Tensor, sources: list[list[int]], size: int) -> Tensor:
    """[size, H]: for each row the mean of `old` [U, H] over its sources; the mean of all where it has none."""
    new = old.float().mean(0).repeat(size, 1)
    lengths = np.array([len(ids) for ids in sources])
    filled = torch.from_numpy(np.flatnonzero(lengths))
    owner = torch.from_numpy(np.repeat(np.arange(len(sources)), lengths))
    flat = torch.tensor([one for ids in sources for one in ids], dtype=torch.int64)
    new[filled] = 0.0
    new.index_add_(0, owner, old.float()[flat] / torch.from_numpy(lengths)[owner][:, None])
    return new.to(old.dtype)


def _special_roles(student: Side, teacher: Side) -> dict[int, list[int]]:
    """The teacher's tokens for each special token of the student: where it begins or ends texts, those that do so for
    the teacher, else the one of the same name, else the one of the same role (bos, eos …).
    """
    roles: dict[int, list[int]] = {}
    mine, theirs = student.encoder.tokenizer, teacher.encoder.tokenizer
    for name in ("unk", "pad", "sep", "cls", "mask", "bos", "eos"):
        student_id, teacher_id = getattr(mine, f"{name}_token_id"), getattr(theirs, f"{name}_token_id")
        if student_id is not None and teacher_id is not None:
            roles[student_id] = [teacher_id]
    named = {token.content: one for one, token in theirs.added_tokens_decoder.items() if token.special}
    for student_id, token in mine.added_tokens_decoder.items():
        if token.special and token.content in named:
            roles[student_id] = [named[token.content]]
    tokens: dict[int, list[int]] = defaultdict(list)
    for role, ids in student.markers.items():
        for token_id in ids:
            tokens[token_id] += [one for one in teacher.markers.get(role, ()) if one not in tokens[token_id]]
    return roles | {token_id: ids for token_id, ids in tokens.items() if ids}


def _name_of(model: nn.Module, parameter: Tensor) -> str:
    return next(name for name, one in model.named_parameters(remove_duplicate=False) if one is parameter)


def _output_names(model: PreTrainedModel) -> list[str]:
    output = model.get_output_embeddings()
    module = next(name for name, one in model.named_modules() if one is output)
    bias = getattr(output, "bias", None) is not None
    return [f"{module}.weight", *([f"{module}.bias"] if bias else [])]
