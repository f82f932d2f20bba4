"""`python -m pipelines.teachers.maths DIR`: a small specialist in word problems, and students that hardly know them.

DIR/problems.jsonl, few.jsonl, test.jsonl    what the teacher learns, what students learn, what all are asked
DIR/teacher                                  the specialist
DIR/student, DIR/same                        beginners, with another tokenizer and with the teacher's
"""

import logging
import shutil
from pathlib import Path

from transformers.utils.logging import disable_progress_bar

from ctd_core.config.run import RunConfig
from ctd_core.config.text import Corpus, JsonLines
from ctd_core.config.yaml_files import read_config
from pipelines.recipes import read_recipe
from pipelines.teachers.command import make_from_command_line
from pipelines.teachers.problems import write_problems
from pipelines.teachers.small import train_into, write_untrained

logger = logging.getLogger(__name__)

RECIPE = "maths-beginner"
SIZES = {"problems": 40_000, "few": 2_000, "test": 300}
TEACHER = {"vocabulary": 512, "hidden": 96, "layers": 3}
STUDENT = {"vocabulary": 280, "hidden": 64, "layers": 3}


def make(directory: Path) -> None:
    """Write the problems, train the specialist and the beginners; what is there already stays."""
    disable_progress_bar()
    write_problems(directory, SIZES)
    _train(directory, "teacher", TEACHER, "problems", steps=1200)
    _train(directory, "student", STUDENT, "few", steps=500)
    _train(directory, "same", STUDENT | {"vocabulary": TEACHER["vocabulary"]}, "few", steps=500)


def _train(directory: Path, name: str, sizes: dict[str, int], learned: str, steps: int) -> None:
    target = directory / name
    if target.exists():
        logger.info(f"{target} is there already")
        return
    untrained = directory / f"{name}-untrained"
    write_untrained(_corpus(directory / "problems.jsonl"), **sizes, directory=untrained)
    if name == "same":  # whose tokenizer has to be the teacher's very own
        shutil.copy(directory / "teacher" / "tokenizer.json", untrained)
    changes = {
        "name": f"maths-{name}", "teacher.model": untrained, "student.model": untrained,
        "student.tokenizer.name": untrained, "corpus.paths": f"[{directory / learned}.jsonl]", "train.steps": steps,
    }  # fmt: skip
    train_into(_config(changes), target)


def _corpus(file: Path) -> Corpus:
    return JsonLines(kind="jsonl", paths=[str(file)], prompt="question", response="answer", as_text=True)


def _config(changes: dict[str, object]) -> RunConfig:
    overrides = [f"{path}={value}" for path, value in changes.items()]
    return read_config(read_recipe(RECIPE), f"recipe {RECIPE}", overrides)


if __name__ == "__main__":
    make_from_command_line(make, __doc__)
