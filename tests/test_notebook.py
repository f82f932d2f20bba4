"""The notebook that builds the method step by step does what its stored output says."""

import json
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parent / "notebooks" / "alm_in_100_lines.ipynb"


@pytest.mark.slow
def test_the_notebook_runs_and_its_student_comes_closer_to_its_teacher(capsys):
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    names = {}
    for number, source in enumerate(code):
        exec(compile(source, f"cell {number}", "exec"), names)
    assert names["after"] < 0.8 * names["before"]
    stored = ["".join(text["text"]) for cell in cells for text in cell.get("outputs", [])]
    assert capsys.readouterr().out.splitlines()[:2] == stored[0].splitlines()
    assert sum(bool(line.strip()) for source in code for line in source.splitlines()) <= 110
