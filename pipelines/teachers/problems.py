"""Word problems of two steps with solutions, as GSM8K writes them: small enough for models that train in minutes."""

import json
import random
from pathlib import Path

from ctd_core.storage.atomic import write_atomic

NAMES = ("Ada", "Ben", "Cem", "Dana", "Eli", "Fay", "Gus", "Hana", "Ivo", "June")
ITEMS = ("apples", "books", "coins", "eggs", "pens", "plums", "shells", "stamps")
GAINS = ("buys", "finds", "gets", "wins")
LOSSES = ("gives away", "loses", "sells", "uses")


def problem(chance: random.Random) -> dict[str, str]:
    """A `question` and its `answer`, which ends in `#### 24`."""
    name, item = chance.choice(NAMES), chance.choice(ITEMS)
    count = chance.randint(20, 99)
    question, answer = f"{name} has {count} {item}", ""
    for joint in (",", " and then"):
        gains = chance.random() < 0.5 and count < 90
        change = chance.randint(2, 9)
        result = count + change if gains else count - change
        question += f"{joint} {chance.choice(GAINS if gains else LOSSES)} {change}"
        answer += f" {count} {'+' if gains else '-'} {change} = {result}."
        count = result
    return {"question": f"{question}. How many {item} are left?\n", "answer": f"{answer} #### {count}"}


def write_problems(directory: Path, sizes: dict[str, int]) -> None:
    """Write files of so many problems each, by name, without the same problem twice, where they are not there yet."""
    chance, seen = random.Random(0), set[str]()
    for name, size in sizes.items():
        lines: list[str] = []
        while len(lines) < size:
            made = problem(chance)
            if made["question"] not in seen:
                seen.add(made["question"])
                lines.append(json.dumps(made) + "\n")
        if not (file := directory / f"{name}.jsonl").exists():
            write_atomic(file, "".join(lines))
