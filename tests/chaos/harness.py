"""Commands whose processes are killed while they work."""

import json
import random
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]
PATIENCE_SECONDS = 240


@dataclass
class Chaos:
    """Counts what was done to the commands of a test, at moments that `random` chooses."""

    random: random.Random
    injected: list[str] = field(default_factory=list)

    def run(self, *command: object, kill: str | None = None, once: Callable[[], bool], env=None) -> tuple[int, str]:
        """Run `ctd` with `command`; its exit status and what it said on standard error.

        The first time that `once` is true, and a random while later, a process below it whose title holds `kill` gets
        SIGKILL, or the command itself where that is None.
        """
        started = subprocess.Popen(
            [sys.executable, "-m", "pipelines", *map(str, command)],
            cwd=ROOT, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        deadline = time.monotonic() + PATIENCE_SECONDS
        while started.poll() is None and not once():
            assert time.monotonic() < deadline, f"nothing to kill in {command}"
            time.sleep(0.05)
        time.sleep(self.random.uniform(0, 0.5))
        while started.poll() is None:
            victims = [started.pid] if kill is None else below(started.pid, kill)
            if victims:
                psutil.Process(self.random.choice(victims)).kill()
                self.injected.append(f"SIGKILL of {kill or 'the command'}")
                break
            time.sleep(0.05)
        said = started.communicate(timeout=PATIENCE_SECONDS)[1]
        return started.returncode, said


def below(pid: int, title: str) -> list[int]:
    """The processes below `pid` whose title holds `title`."""
    found = []
    for one in psutil.Process(pid).children(recursive=True):
        try:
            if title in " ".join(one.cmdline()):
                found.append(one.pid)
        except psutil.Error:  # it ended meanwhile
            continue
    return found


def losses(folder: Path) -> list[float]:
    """The loss of every step, each of which is there once."""
    (file,) = folder.glob("train-*/metrics.jsonl")
    steps = [json.loads(line) for line in file.read_text().splitlines()]
    assert [one["step"] for one in steps] == list(range(1, len(steps) + 1))
    return [one["loss"] for one in steps]


def shards(folder: Path) -> dict[str, bytes]:
    """Every file of prepared sets by name; nothing half-written is among them."""
    files = {one.relative_to(folder).as_posix(): one.read_bytes() for one in folder.glob("prepared/*/*")}
    assert not [name for name in files if name.endswith(".partial")]
    return files
