"""What models reach in tasks."""

from pydantic import Field

from ctd_core.config.base import Record


class TaskFigures(Record):
    """What one model reaches in one task."""

    task: str
    model: str
    figures: dict[str, float] = Field(description="by the harness's name, such as acc or exact_match (strict-match)")
    errors: dict[str, float] = Field(description="standard errors, where they are known")
    questions: int
    cut_questions: int = Field(default=0, description="longer than the model reads: their beginnings were left out")
