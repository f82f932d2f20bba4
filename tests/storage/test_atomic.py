"""What is written atomically is complete, whoever else writes the same."""

import subprocess
import sys

from ctd_core.storage.atomic import write_atomic

WRITER = """
import sys
from pathlib import Path
from ctd_core.storage.atomic import atomic_directory
for number in range(100):
    with atomic_directory(Path(sys.argv[1])) as temporary:
        for name in "abc":
            (temporary / name).write_text(sys.argv[2])
"""


def test_two_writers_of_one_directory_leave_one_of_both_complete(tmp_path):
    both = [subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path / "model"), who]) for who in ("one", "two")]
    assert [writer.wait(timeout=120) for writer in both] == [0, 0]
    assert {(tmp_path / "model" / name).read_text() for name in "abc"} in ({"one"}, {"two"})
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_file_is_replaced_and_its_folder_made(tmp_path):
    file = tmp_path / "new" / "x.txt"
    write_atomic(file, "größer")
    write_atomic(file, b"bytes")
    assert file.read_bytes() == b"bytes"
    assert list(file.parent.iterdir()) == [file]
