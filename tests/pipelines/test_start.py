"""The first moments of the command."""

import subprocess
import sys

import pytest

INTERRUPTED = """
import os, signal, sys

class Interrupt:
    def find_spec(self, name, *rest):
        if name == "typer":  # in the middle of the imports
            os.kill(os.getpid(), signal.{signal})

signal.signal(signal.SIGINT, signal.default_int_handler)  # tests in the background ignore it, and so would this
sys.meta_path.insert(0, Interrupt())
from pipelines.__main__ import main
main()
"""


@pytest.mark.parametrize("signal", ["SIGINT", "SIGTERM"])
def test_a_command_that_is_stopped_while_it_is_imported_says_so(signal):
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED.format(signal=signal)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 130
    assert done.stderr == "ctd: stopped\n"
