"""The commands of `ctd` that take models, and no run."""

import re
from pathlib import Path
from typing import Annotated, cast

import typer

from ctd_core.config.models import Average
from ctd_core.errors import UsageError

models = typer.Typer()
LEAST_TEMPERATURE = 0.01


Models = Annotated[
    list[str],
    typer.Option(
        "--model", help="The model that writes: a directory or a hub id. Repeated: an ensemble of one tokenizer."
    ),
]


@models.command()
def generate(
    model: Models,
    output: Annotated[Path, typer.Option(help="The file of JSON lines. One that is there is gone on with.")],
    prompts: Annotated[
        Path | None, typer.Option(help="Write after these: JSON lines, each with a prompt (a text or messages).")
    ] = None,
    documents: Annotated[int, typer.Option(min=1, help="Without --prompts: how many documents.")] = 256,
    max_new_tokens: Annotated[
        int, typer.Option(min=1, help="Of each message, or of each text. Conversations that are longer are left out.")
    ] = 256,
    temperature: Annotated[
        float, typer.Option(min=0, help="Below 1: likelier tokens more often. 0: always the likeliest.")
    ] = 0.8,
    top_p: Annotated[
        float, typer.Option(min=0.01, max=1.0, help="Draw from the likeliest tokens that have this share.")
    ] = 0.95,
    batch: Annotated[int, typer.Option(min=1, help="How many are written at once.")] = 32,
    seed: Annotated[int, typer.Option(min=0, max=10**9, help="Of what is drawn.")] = 0,
    actors: Annotated[
        int, typer.Option(min=0, help="Copies of the model that write at the same time, on Ray; 0: in this process.")
    ] = 0,
    gpus: Annotated[float, typer.Option(min=0, help="With --actors: GPUs for each.")] = 0.0,
    average: Annotated[
        str, typer.Option(help="What an ensemble averages: probabilities or logprobs.")
    ] = "probabilities",
) -> None:
    """Let a model write: answers to the prompts of a file, or a corpus, such as for a teacher that has none.

    With --prompts, each record comes back with what was `generated`: a `text`, whether it `ended` by itself, its number
    of `tokens`, their `logprob`, and how many `special_tokens` it holds, which the text leaves out.

    Without, an instruction-tuned model that sees nothing but the beginning of a user's message writes the message, and
    then its own answer. What a student learns of such texts is what its teacher knows best.

    Example: ctd generate --model runs/mine/model --prompts questions.jsonl --output answers.jsonl --temperature 0
    """
    from ctd_core.generation.sampler import Sampling
    from pipelines.stages import generate as stage

    for option, file in (("--output", output), ("--prompts", prompts)):
        if re.match(r"\w+:/", str(file)):  # a path has one slash of two
            raise UsageError(f"{option} is a file on this machine, and here stands a URI")

    if temperature and not LEAST_TEMPERATURE <= temperature <= 100:
        raise UsageError(f"--temperature {temperature}: 0, or from {LEAST_TEMPERATURE} to 100")
    if gpus and not actors:
        raise UsageError("--gpus belongs to --actors")
    options, copies = Sampling(max_new_tokens, temperature, top_p), stage.Actors(actors, gpus)
    job = stage.Job(model, options, batch, seed, read_average(average), copies)
    if prompts is not None:
        stage.answer(job, prompts, output)
    elif not temperature:
        raise UsageError("--temperature 0 writes the same document again and again: give --prompts, or a higher one")
    else:
        stage.generate(job, output, documents)


def read_average(word: str) -> Average:
    """What an ensemble averages; raises UsageError for another word."""
    if word not in ("probabilities", "logprobs"):
        raise UsageError(f"{word!r}: an ensemble averages probabilities or logprobs")
    return cast("Average", word)
