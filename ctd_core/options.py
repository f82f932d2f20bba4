"""What every group of options has in common."""

from pydantic import BaseModel, ConfigDict


class Options(BaseModel):
    """Unknown fields are errors; values do not change once read."""

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="constants")
