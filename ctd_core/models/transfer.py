"""A student made from its teacher under a new tokenizer."""

import copy
import logging
from collections import defaultdict

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ctd_core.errors import DocumentError
from ctd_core.models.loading import train_every_row
from ctd_core.models.model_config import check_transferable
from ctd_core.models.token_ids import forget_counts, ids_with_student, renumber
from ctd_core.text.prepared_tokenizer import PreparedTokenizer, check_embedding, same_vocabulary
from ctd_core.text.token_bytes import ids_by_bytes

logger = logging.getLogger(__name__)


def transfer_model(
    teacher: PreTrainedModel,
    student_tokenizer: PreparedTokenizer,
    teacher_tokenizer: PreparedTokenizer,
    untie: bool = False,
    pad_to_multiple_of: int = 1,
) -> PreTrainedModel:
    """A copy of `teacher` with embeddings for the student's tokenizer.

    Each new embedding is the mean of the old ones that spell its token (FVT): the old one itself where a token of the
    same bytes exists; special tokens take the embedding of the token with their role or name. Under the teacher's own
    vocabulary the student is the teacher, rows that no token uses included. Rows that pad the vocabulary to a multiple
    of `pad_to_multiple_of` are the mean of all; they stay in the softmax, as they are in the exported model, and
    objectives of stored targets teach the student to leave them out. Rows that are not finite are in no mean.

    Args:
        teacher: a model in evaluation mode; it is not changed.
        student_tokenizer: the new tokenizer.
        teacher_tokenizer: the teacher's own.
        untie: whether a tied model gets an output matrix of its own; a model counts as tied where its two matrices
            are one, whatever its config says.
        pad_to_multiple_of: what the number of rows is a multiple of.

    Returns:
        The student, in evaluation mode.

    Raises:
        UsageError: the teacher's vocabulary does not fit its embedding, or its architecture holds further tables of
            the vocabulary's size.
    """
    old_input = teacher.get_input_embeddings().weight
    old_output = teacher.get_output_embeddings()
    check_embedding(teacher_tokenizer.encoder.tokenizer, teacher_tokenizer.encoder.name, len(old_input))
    sources, size = _rows(student_tokenizer, teacher_tokenizer, len(old_input))
    size = -(-size // pad_to_multiple_of) * pad_to_multiple_of
    is_same = same_vocabulary(student_tokenizer, teacher_tokenizer)
    has_its_rows = is_same and size == len(old_input)
    check_transferable(teacher.config.get_text_config().to_dict(), type(teacher).__name__, has_its_rows)
    is_tied = old_output.weight is old_input
    tied = is_tied and not untie
    config = copy.deepcopy(teacher.config)
    text_config = config.get_text_config()
    text_config.vocab_size = config.vocab_size = size
    text_config.tie_word_embeddings = config.tie_word_embeddings = tied
    generation_config = copy.deepcopy(teacher.generation_config)
    new_ids = ids_with_student(student_tokenizer, teacher_tokenizer)
    lost = renumber(config, student_tokenizer, new_ids, "config")
    if generation_config is not None:
        lost += renumber(generation_config, student_tokenizer, new_ids, "generation_config")
        if not is_same and (counts := forget_counts(generation_config)):
            logger.warning("generation_config: what counts the teacher's tokens is taken out: %s", ", ".join(counts))
    if lost:
        logger.warning("token ids without a token in the student's tokenizer are taken out: %s", "; ".join(lost))
    student = type(teacher)._from_config(config, dtype=teacher.dtype)
    state = teacher.state_dict()
    input_name, output_name = _name_of(teacher, old_input), _output_names(teacher)
    _warn_of_rows_not_finite(teacher_tokenizer, old_input, old_output.weight)
    state[input_name] = average_rows(old_input.detach(), sources, size)
    state[output_name[0]] = state[input_name] if tied else average_rows(old_output.weight.detach(), sources, size)
    if len(output_name) > 1:
        state[output_name[1]] = average_rows(old_output.bias.detach()[:, None], sources, size)[:, 0]
    student.load_state_dict(state)
    if tied:
        student.tie_weights()
    student.generation_config = generation_config
    train_every_row(student)
    return student.eval()


def _rows(student: PreparedTokenizer, teacher: PreparedTokenizer, old_size: int) -> tuple[list[list[int]], int]:
    """For each row of the new embedding the old rows that it is the mean of, and how many rows there are.

    Tokens that lie beyond the old embedding have no row there.
    """
    if same_vocabulary(student, teacher):
        size = max(len(student.encoder.token_bytes.by_id), old_size)
        return [[row] if row < old_size else [] for row in range(size)], size
    sources = [[old_id for old_id in ids if old_id < old_size] for ids in old_tokens(student, teacher)]
    return sources, len(sources)


def _warn_of_rows_not_finite(tokenizer: PreparedTokenizer, *tables: Tensor) -> None:
    rows = sorted({row for table in tables for row in (~table.detach().isfinite().all(1)).nonzero()[:, 0].tolist()})
    if rows:
        names = tokenizer.encoder.tokenizer.convert_ids_to_tokens([row for row in rows[:8]])
        logger.warning(
            "%d rows of the teacher's embeddings are not finite and are left out: %s",
            len(rows), ", ".join(f"{row} ({name})" for row, name in zip(rows[:8], names, strict=True)),
        )  # fmt: skip


def old_tokens(student: PreparedTokenizer, teacher: PreparedTokenizer) -> list[list[int]]:
    """For each student token id, the teacher's tokens that stand for the same; none for an id without a token."""
    token_bytes = student.encoder.token_bytes
    exact = ids_by_bytes(teacher.encoder.token_bytes)
    roles = _special_roles(student, teacher)
    sources: list[list[int]] = []
    spelled = [raw for raw in token_bytes.by_id if raw and raw not in exact]
    by_bytes = dict(zip(spelled, encode_bytes(teacher, spelled), strict=True))
    for token_id, raw in enumerate(token_bytes.by_id):
        if token_bytes.is_special[token_id]:
            sources.append(roles.get(token_id, []))
        elif not raw:
            sources.append([])
        else:
            sources.append([exact[raw]] if raw in exact else by_bytes[raw])
    return sources


def encode_bytes(tokenizer: PreparedTokenizer, spelled: list[bytes]) -> list[list[int]]:
    """Token ids that spell each byte string: by the tokenizer where it is text, else the longest tokens from the left.

    Behind a line break where it would put a space in front. Bytes that no token spells are left out.
    """
    exact = ids_by_bytes(tokenizer.encoder.token_bytes)
    longest = max(map(len, exact))
    before = "\n" if tokenizer.encoder.invents_space else ""
    encodings = tokenizer.encoder.encode_batch([before + raw.decode(errors="ignore") for raw in spelled])
    results = []
    for raw, encoding in zip(spelled, encodings, strict=True):
        ids = [] if isinstance(encoding, DocumentError) else encoding.ids[encoding.byte_ends > len(before)].tolist()
        if b"".join(tokenizer.encoder.token_bytes.by_id[old_id] or b"" for old_id in ids) != raw:
            ids, at = [], 0
            while at < len(raw):
                end = next((end for end in range(min(len(raw), at + longest), at, -1) if raw[at:end] in exact), None)
                if end is not None:
                    ids.append(exact[raw[at:end]])
                at = end or at + 1
        results.append(ids)
    return results


def average_rows(old: Tensor, sources: list[list[int]], size: int) -> Tensor:
    """[size, H]: for each row the mean of `old` [U, H] over its sources; the mean of all where it has none.

    Rows of `old` that are not finite count nowhere.
    """
    finite = old.isfinite().all(1)
    used = finite.tolist()
    sources = [[old_id for old_id in ids if used[old_id]] for ids in sources]
    new = old[finite].float().mean(0).repeat(size, 1)
    lengths = np.array([len(ids) for ids in sources])
    filled = torch.from_numpy(np.flatnonzero(lengths))
    owner = torch.from_numpy(np.repeat(np.arange(len(sources)), lengths))
    flat = torch.tensor([old_id for ids in sources for old_id in ids], dtype=torch.int64)
    new[filled] = 0.0
    new.index_add_(0, owner, old.float()[flat] / torch.from_numpy(lengths)[owner][:, None])
    return new.to(old.dtype)


def _special_roles(student: PreparedTokenizer, teacher: PreparedTokenizer) -> dict[int, list[int]]:
    """The teacher's tokens for each special token of the student: where it begins or ends texts, those that do so for
    the teacher, else the one of the same name, else the one of the same role (bos, eos …).
    """
    roles: dict[int, list[int]] = {}
    student_tokenizer, teacher_tokenizer = student.encoder.tokenizer, teacher.encoder.tokenizer
    for name in ("unk", "pad", "sep", "cls", "mask", "bos", "eos"):
        student_id, teacher_id = (
            getattr(student_tokenizer, f"{name}_token_id"),
            getattr(teacher_tokenizer, f"{name}_token_id"),
        )
        if student_id is not None and teacher_id is not None:
            roles[student_id] = [teacher_id]
    named = {
        token.content: token_id for token_id, token in teacher_tokenizer.added_tokens_decoder.items() if token.special
    }
    for student_id, token in student_tokenizer.added_tokens_decoder.items():
        if token.special and token.content in named:
            roles[student_id] = [named[token.content]]
    tokens: dict[int, list[int]] = defaultdict(list)
    for role, ids in student.markers.items():
        for token_id in ids:
            tokens[token_id] += [
                token_id for token_id in teacher.markers.get(role, ()) if token_id not in tokens[token_id]
            ]
    return roles | {token_id: ids for token_id, ids in tokens.items() if ids}


def _name_of(model: nn.Module, parameter: Tensor) -> str:
    return next(name for name, found in model.named_parameters(remove_duplicate=False) if found is parameter)


def _output_names(model: PreTrainedModel) -> list[str]:
    output = model.get_output_embeddings()
    module = next(name for name, module in model.named_modules() if module is output)
    bias = getattr(output, "bias", None) is not None
    return [f"{module}.weight", *([f"{module}.bias"] if bias else [])]
