"""Commands whose processes are killed while they work."""

import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]
PATIENCE_SECONDS = 240


# What is done to a command, given its process id; in words, or None where it could not be done yet.
Strike = Callable[[int], str | None]


@dataclass
class Chaos:
    """Does things to the commands of a test, at moments that `random` chooses, and adds to `injected` what it did."""

    random: random.Random
    injected: list[str]

    def run(
        self, *command: object, when: Callable[[], bool], strike: Strike, env: dict[str, str] | None = None
    ) -> tuple[int, str]:
        """Run `ctd` with `command`; its exit status and what it said on standard error.

        `strike` is called a random while after `when` is true for the first time.
        """
        with tempfile.TemporaryFile("w+") as said:
            started = subprocess.Popen(
                [sys.executable, "-m", "pipelines", *map(str, command)],
                cwd=ROOT, env=env, stdout=subprocess.DEVNULL, stderr=said,
            )  # fmt: skip
            try:
                self._disturb(started, when, strike)
                started.wait(PATIENCE_SECONDS)
            finally:
                started.kill()
                started.wait()
            said.seek(0)
            return started.returncode, said.read()

    def _disturb(self, started: subprocess.Popen, when: Callable[[], bool], strike: Strike) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while started.poll() is None and not when():
            assert time.monotonic() < deadline, "the moment did not come"
            time.sleep(0.05)
        time.sleep(self.random.uniform(0, 0.2))
        while started.poll() is None:
            if (done := strike(started.pid)) is not None:
                self.injected.append(done)
                break
            time.sleep(0.05)


def kill_command(pid: int) -> str:
    """SIGKILL for the command itself."""
    psutil.Process(pid).kill()
    return "SIGKILL of the command"


def kill_below(title: str) -> Strike:
    """SIGKILL for a process below the command whose title holds `title`."""

    def strike(pid: int) -> str | None:
        for process in psutil.Process(pid).children(recursive=True):
            with suppress(psutil.Error):  # it ended meanwhile
                if title in " ".join(process.cmdline()):
                    process.kill()
                    return f"SIGKILL of {title}"
        return None

    return strike


def losses(folder: Path) -> list[float]:
    """The loss of every step, each of which is there once."""
    (file,) = folder.glob("train-*/metrics.jsonl")
    steps = [json.loads(line) for line in file.read_text().splitlines()]
    assert [step["step"] for step in steps] == list(range(1, len(steps) + 1))
    return [step["loss"] for step in steps]


def shards(folder: Path) -> dict[str, bytes]:
    """Every file of prepared sets by name, but for what is half-written and named so."""
    files = [file for file in folder.glob("prepared/*/*") if file.suffix != ".partial"]
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in files}
