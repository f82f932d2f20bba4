"""What `--dry-run` looks at: all that can be wrong before anything is computed."""

from transformers import AutoConfig

from ctd_core.config import PretrainedTokenizer, RunConfig
from ctd_core.errors import UsageError
from ctd_core.models.adapters import check_targets
from ctd_core.models.loading import skeleton
from ctd_core.text.segments import BEGIN, Side, make_side
from ctd_core.text.tokenizers import load_tokenizer
from pipelines.places import Places
from pipelines.prepare import teacher_side
from pipelines.progress import say


def check_inputs(config: RunConfig, places: Places) -> None:
    """Files, tokenizers and the configs of models; raises UsageError or TokenizerError for the first that is wrong."""
    _ = places.datasets  # plans every corpus
    teachers = {"teacher": config.teacher} | {
        f"more_teachers.{name}": one for name, one in config.more_teachers.items()
    }
    for field, teacher in teachers.items():
        _tell_missing(field, teacher_side(teacher))
    if isinstance(config.student.tokenizer, PretrainedTokenizer):
        name, revision = config.student.tokenizer.name, config.student.tokenizer.revision
        given = config.student.begin_token, config.student.end_token
        _tell_missing("student", make_side(load_tokenizer(name, revision), name, *given))
    student = config.student
    windows = (config.prepare.teacher_window_tokens, config.prepare.student_window_tokens)
    models = [(f"{field}.model", one.model, one.revision, windows[0]) for field, one in teachers.items()]
    origin = student if student.model is not None else config.teacher
    which = "student.model" if student.model is not None else "teacher.model, which the student is made from"
    models.append((which, origin.model or "", origin.revision, windows[1]))
    for field, name, revision, window in models:
        try:
            longest = getattr(AutoConfig.from_pretrained(name, revision=revision), "max_position_embeddings", None)
        except Exception as error:  # OSError, ValueError and more
            raise UsageError(f"{field}: {name}: no model is there ({str(error).splitlines()[0]}).") from error
        if longest is not None and window > longest:
            raise UsageError(
                f"{field}: {name} reads {longest} tokens at most, and its window in prepare is {window}. Set "
                "prepare.student_window_tokens and prepare.teacher_window_tokens to fit."
            )
    if student.adapters is not None:
        check_targets(skeleton(origin.model or "", origin.revision), student.adapters)


def _tell_missing(field: str, side: Side) -> None:
    """Say which ends of a text `side` has no token for, as where a tokenizer.json comes without its special tokens."""
    for role, tokens in side.markers.items():
        if not tokens:
            loss = "the first chunk of every window" if role == BEGIN else "the end of every text"
            say(
                f"{side.encoder.name}: no token of it is known to {role} a text, so {loss} is not learned. Name one: "
                f"{field}.{role}_token."
            )
