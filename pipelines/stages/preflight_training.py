"""What a training asks of its student, teacher and prompts, looked at before anything is computed. Loads no weights."""

from collections.abc import Iterator, Mapping
from contextlib import suppress

from transformers import PreTrainedTokenizerFast

from ctd_core.config.run import RunConfig
from ctd_core.config.text import TrainedTokenizer
from ctd_core.errors import DocumentError, TokenizerError, UsageError
from ctd_core.models.model_config import check_learnable, check_origin, max_positions, num_embeddings
from ctd_core.models.tokenizers import build_student_tokenizer, with_chat
from ctd_core.text.chat import ChatTemplate
from ctd_core.text.prepared_tokenizer import PreparedTokenizer, prepare_tokenizer, same_vocabulary
from ctd_core.text.stops import EXCHANGE
from ctd_core.text.tokenizers import bytes_tokenizer, load_tokenizer


def known_tokenizer(config: RunConfig) -> tuple[PreparedTokenizer | None, PreTrainedTokenizerFast]:
    """The student's tokenizer; where it is still to be trained None, and one with the template that it will have."""
    if isinstance(config.student.tokenizer, TrainedTokenizer):
        return None, with_chat(bytes_tokenizer(), config.student, config.teacher)
    prepared = build_student_tokenizer(config.student, config.teacher, None)
    return prepared, prepared.encoder.tokenizer


def check_training(
    config: RunConfig, student: PreparedTokenizer | None, teacher: PreparedTokenizer, is_chat: bool
) -> None:
    """Look at objectives, what the student is made from, adapters, frozen parameters, and prompts.

    Args:
        config: the run's options.
        student: the student's tokenizer; None where it is still to be trained.
        teacher: the teacher's.
        is_chat: whether the student has a chat template.

    Raises:
        UsageError: they do not fit together.
    """
    if any(objective.kind == "kd" for objective in config.train.objectives):
        from ctd_core.objectives.kd import check_same_vocabulary  # takes seconds

        check_same_vocabulary(student, teacher)
    _check_student(config, student, teacher)
    for field, file in config.prompts_of_own_texts.items():
        if file is not None:
            from pipelines.stages.rounds import read_prompts_for  # takes seconds

            read_prompts_for(file, is_chat)
        elif not any(part.is_chat == is_chat for part in config.corpus.parts):
            raise no_prompts(field, is_chat)


def check_own_answers(config: RunConfig, student: PreTrainedTokenizerFast) -> None:
    """Look whether the student's chat template writes an answer behind what the student writes its own behind.

    Args:
        config: the run's options.
        student: the student's tokenizer.

    Raises:
        UsageError: it does not, as those of models that think: own texts would be learned in another context.
    """
    fields = list(config.prompts_of_own_texts)
    if not fields or not student.chat_template:
        return
    template = ChatTemplate(student, "the student's tokenizer")
    with suppress(DocumentError):  # a template that refuses a plain exchange
        (question, answer), (turn, _) = template.write(EXCHANGE), EXCHANGE
        written = question.header + turn.text + question.end + answer.header
        written, prompt = written[: len(written) - answer.lead], template.render([turn], add_generation_prompt=True)
        if written != prompt:
            raise UsageError(
                f"{fields[0]}: the student's chat template writes {written[-40:]!r} before an answer, and asks for one "
                f"by {prompt[-40:]!r}, so texts of its own would be learned behind another beginning. Take a template "
                "that has the same in both."
            )


def no_prompts(field: str, is_chat: bool) -> UsageError:
    """The error of a corpus that holds no prompts for this student, for the option `field` that asks for them."""
    what = "conversations, and this student has a chat template" if is_chat else "texts"
    return UsageError(
        f"{field}: the corpus holds no prompts: it would have to hold {what}. Name a file of prompts: {field}.prompts."
    )


def _check_student(config: RunConfig, tokenizer: PreparedTokenizer | None, old: PreparedTokenizer) -> None:
    student, phases, teacher = config.student, config.train.phases, config.teacher
    if student.model is None:
        origin = teacher.model, teacher.revision, teacher.trust_remote_code
        rows = num_embeddings(*origin)
        has_its_rows = tokenizer is not None and same_vocabulary(tokenizer, old)
        check_origin(*origin, has_its_rows and rows % student.pad_to_multiple_of == 0)
    else:
        check_learnable(student.model, student.revision, student.trust_remote_code)
        if tokenizer is not None:
            _check_own_tokenizer(student.model, student.revision, tokenizer)
    is_frozen = any(phase.options.freeze for phase in phases)
    train = config.train
    asks_layers = train.activation_checkpointing or train.strategy == "fsdp" or train.weighting != "fixed"
    if student.adapters is None and not is_frozen and student.byte_expansion is None and not asks_layers:
        return
    from ctd_core.models.building import student_skeleton  # takes seconds
    from ctd_core.models.byte_students import check_expandable
    from ctd_core.models.language_model import HuggingFaceModel
    from ctd_core.training.optimizer import check_phases

    skeleton = student_skeleton(student, teacher)
    if student.byte_expansion is not None and tokenizer is not None:
        check_expandable(skeleton, tokenizer)
    check_phases(HuggingFaceModel(skeleton), phases)
    if asks_layers:
        _ = HuggingFaceModel(skeleton).layers  # its error is for the user


def _check_own_tokenizer(model: str, revision: str | None, chosen: PreparedTokenizer) -> None:
    """Raises UsageError where a model's own tokenizer, if there is one, has other tokens by the ids of `chosen`."""
    try:
        own = prepare_tokenizer(load_tokenizer(model, revision), model, None, None).encoder.token_bytes.by_id
    except TokenizerError:
        return
    pairs = enumerate(zip(own, chosen.encoder.token_bytes.by_id, strict=False))
    other = next((number for number, (mine, given) in pairs if None not in (mine, given) and mine != given), None)
    if other is not None:
        given = chosen.encoder.token_bytes.by_id[other]
        raise UsageError(
            f"student.tokenizer: {chosen.encoder.name} is not that of student.model, {model}: token {other} is "
            f"{given!r}, and the model learned {own[other]!r} there. Name the model's own tokenizer. To move a model "
            "to another one, make it the teacher and leave student.model out."
        )


def check_prompts(config: RunConfig, tokenizers: Mapping[str, PreparedTokenizer | None]) -> None:
    """Look whether models have room for questions, samples and what they write.

    Args:
        config: the run's options.
        tokenizers: of the `teacher` and the `student`; None for one that is still to be trained.

    Raises:
        UsageError: a prompt and what is to be written after it are more than a model reads.
    """
    written = {"train.on_policy": config.train.on_policy, "evaluate.own_texts": config.evaluate.own_texts}
    own = {field: options.max_new_tokens for field, options in written.items() if options is not None}
    asked = dict(_asked(config))
    new_tokens = {field: tokens for field, (tokens, _) in asked.items()}
    for who, model, fields in (("teacher", config.teacher, new_tokens), ("student", config.origin, new_tokens | own)):
        longest = max_positions(model.model, model.revision, model.trust_remote_code)
        if longest is None:
            continue
        for field, tokens in fields.items():
            if tokens >= longest:
                raise UsageError(
                    f"{field}.max_new_tokens: {tokens} new tokens leave no room for a prompt: {model.model} reads "
                    f"{longest} in all."
                )
        if (tokenizer := tokenizers[who]) is not None and asked:
            _check_lengths(asked, tokenizer, f"the {who}", longest)


def _asked(config: RunConfig) -> Iterator[tuple[str, tuple[int, list[str]]]]:
    """By the field that asks: how many tokens are to be written, and after which prompts."""
    if config.sample.prompts:
        yield "sample", (config.sample.max_new_tokens, config.sample.prompts)
    for name, problems in config.evaluate.problems.items():
        from ctd_core.evaluation.problems import read_problems  # takes seconds

        yield (
            f"evaluate.problems.{name}",
            (problems.max_new_tokens, [question for question, _ in read_problems(problems)]),
        )


def _check_lengths(
    asked: Mapping[str, tuple[int, list[str]]], tokenizer: PreparedTokenizer, name: str, longest: int
) -> None:
    from ctd_core.generation.prompts import PromptEncoder  # takes seconds
    from ctd_core.generation.sampler import Sampling

    for field, (tokens, prompts) in asked.items():
        encoder = PromptEncoder(tokenizer.exported, name, Sampling(tokens), longest)
        for number, prompt in enumerate(prompts, 1):
            encoder.encode({"prompt": prompt}, f"{field}: number {number}")
