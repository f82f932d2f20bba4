"""What every group of options has in common, and every record."""

import hashlib
import json
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field
from pydantic.config import JsonDict

RESOURCE: JsonDict = {"resource": True}
Fraction = Annotated[float, Field(ge=0, lt=1)]


class Record(BaseModel):
    """What a run leaves behind. Unknown fields are errors; values do not change once read."""

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="constants")


class Options(Record):
    """What a user writes: infinite numbers are errors too, but where a field allows them."""

    model_config = ConfigDict(allow_inf_nan=False)

    @classmethod
    def resources(cls) -> set[str]:
        """The names of the fields that change how the work is done and not what comes out."""
        return {name for name, field in cls.model_fields.items() if field.json_schema_extra == RESOURCE}

    def result_values(self) -> dict[str, Any]:
        """The values that decide what comes out, as JSON has them: what fingerprints are made of."""
        return self.model_dump(mode="json", exclude=self.resources())


def resource(default: Any, **options: Any) -> Any:
    """A field that changes how the work is done and not what comes out, see Options.resources."""
    return Field(default, json_schema_extra=RESOURCE, **options)


def fingerprint(*parts: object) -> str:
    """16 hexadecimal digits that stand for these values: options, or anything that JSON can hold."""
    plain = [part.model_dump(mode="json") if isinstance(part, BaseModel) else part for part in parts]
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]
