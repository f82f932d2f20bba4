"""What `--dry-run` looks at: all that can be wrong before anything is computed."""

from transformers import AutoConfig

from ctd_core.config import PretrainedTokenizer, RunConfig
from ctd_core.errors import UsageError
from ctd_core.text.segments import make_side
from ctd_core.text.tokenizers import load_tokenizer
from pipelines.places import Places
from pipelines.prepare import teacher_side


def check_inputs(config: RunConfig, places: Places) -> None:
    """Files, tokenizers and the configs of models; raises UsageError or TokenizerError for the first that is wrong."""
    _ = places.datasets  # plans every corpus
    teacher_side(config)
    if isinstance(config.student.tokenizer, PretrainedTokenizer):
        name, revision = config.student.tokenizer.name, config.student.tokenizer.revision
        make_side(load_tokenizer(name, revision), name, config.student.begin_token, config.student.end_token)
    models = [("teacher.model", config.teacher.model, config.teacher.revision)]
    if config.student.model is not None:
        models.append(("student.model", config.student.model, config.student.revision))
    for field, name, revision in models:
        try:
            AutoConfig.from_pretrained(name, revision=revision)
        except Exception as error:  # OSError, ValueError and more
            raise UsageError(f"{field}: {name}: no model is there ({str(error).splitlines()[0]}).") from error
