"""The commands of `ctd` that take models, and no run."""

from pathlib import Path
from typing import Annotated

import typer

models = typer.Typer()


@models.command()
def generate(
    model: Annotated[str, typer.Option(help="The model that writes: a directory or a hub id.")],
    output: Annotated[Path, typer.Option(help="The file of JSON lines. One that is there is gone on with.")],
    documents: Annotated[int, typer.Option(min=1, help="How many documents.")] = 256,
    max_new_tokens: Annotated[
        int, typer.Option(min=1, help="Of each message, or of each text. Conversations that are longer are left out.")
    ] = 256,
    temperature: Annotated[float, typer.Option(min=0.01, help="Below 1: likelier tokens more often.")] = 0.8,
    top_p: Annotated[
        float, typer.Option(min=0.01, max=1.0, help="Draw from the likeliest tokens that have this share.")
    ] = 0.95,
    batch: Annotated[int, typer.Option(min=1, help="How many are written at once.")] = 32,
    seed: Annotated[int, typer.Option(min=0, help="Of what is drawn.")] = 0,
) -> None:
    """Let a model write a corpus, such as a teacher that has none: conversations where it has a chat template.

    An instruction-tuned model that sees nothing but the beginning of a user's message writes the message, and then its
    own answer. What a student learns of such texts is what its teacher knows best.

    Example: ctd generate --model ./my-teacher --output data/written.jsonl --documents 1000
    """
    from ctd_core.generation.sampler import Sampling
    from pipelines.stages.generate import generate as stage

    stage(model, output, documents, batch, Sampling(max_new_tokens, temperature, top_p), seed)
