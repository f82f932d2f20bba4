"""What every group of options has in common, and every record."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Fraction = Annotated[float, Field(ge=0, lt=1)]


class Record(BaseModel):
    """What a run leaves behind. Unknown fields are errors; values do not change once read."""

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="constants")


class Options(Record):
    """What a user writes: infinite numbers are errors too, but where a field allows them."""

    model_config = ConfigDict(allow_inf_nan=False)
