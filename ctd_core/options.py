"""What every group of options has in common."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Fraction = Annotated[float, Field(ge=0, lt=1)]


class Options(BaseModel):
    """Unknown fields are errors; values do not change once read."""

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="constants")
