"""round.json: what was recorded of a round of an on-policy training."""

import json
from pathlib import Path
from typing import Any

ROUND_FILE = "round.json"


def read_round(folder: Path) -> dict[str, Any]:
    """What was recorded of the round in `folder`; nothing where that is missing or cut short."""
    try:
        found: dict[str, Any] = json.loads((folder / ROUND_FILE).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return found
