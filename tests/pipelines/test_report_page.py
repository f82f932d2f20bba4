"""report.html, and the plots of comparisons and searches."""

import json
import re

import pytest

from ctd_core.config.run import RunConfig
from ctd_core.evaluation.figures import TaskFigures
from pipelines.artifacts import report_page
from pipelines.artifacts.metrics_file import EVALUATION, METRICS_FILE
from pipelines.artifacts.report import MODELS, Continuation, Report, SetMetrics
from pipelines.artifacts.run_plan import plan_run
from pipelines.comparison.summary import Row, plot
from pipelines.display.plots import Curves, curves
from tests.pipelines.test_run import config, inputs  # noqa: F401

FIGURES = {"bits_per_byte": 1.5, "teacher_distance_bits_per_byte": 0.4, "correlation": 0.8}


@pytest.fixture
def plan(config):  # noqa: F811
    plan = plan_run(RunConfig.model_validate(config))
    plan.training.mkdir(parents=True)
    lines = [
        {
            "step": step,
            EVALUATION: plan.evaluation,
            "loss_0_alm": 1 / step,
            "learning_rate": 1e-3,
            "tokens_per_second": 100.0,
        }
        | ({"held-out_bits_per_byte": 1.2} if step % 100 == 0 else {})
        for step in range(1, 301)
    ]
    lines[49] |= {EVALUATION: "sets of these names before", "held-out_bits_per_byte": 777.0}
    (plan.training / METRICS_FILE).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return plan


REPORT = Report(
    run="x",
    sets={
        "held-out": SetMetrics(text_bytes=9, chunks=3, teacher=FIGURES, student_before=FIGURES, student_after=FIGURES)
    },
    gap_closed=0.25,
    teacher_parameters=10,
    student_parameters=8,
    tasks=[
        TaskFigures(task="t", model=model, figures={"acc": 0.5}, errors={"acc": 0.1}, questions=9) for model in MODELS
    ],
    samples=[Continuation(prompt="<script>alert(1)</script>", teacher="a & b", student="c")],
    seconds={"train": 12.0},
    peak_memory_mb={"train": 3456},
)


def test_a_page_tells_all_of_a_run_and_runs_nothing(plan):
    report_page.write_page(plan, REPORT)
    page = plan.report.with_suffix(".html").read_text()
    assert re.findall("<h2>(.*?)</h2>", page) == ["Measured", "Tasks", "Samples", "Training", "Cost", "Run"]
    assert page.count("<svg") == 3
    assert "for 300 steps. It closed 25.0% of the distance to its teacher." in page
    assert "bits per byte on held-out" in page
    assert "0.500 ± 0.100 (100%)" in page
    assert "3,456" in page
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert not re.search(r"(src|href)=.?http", page.replace("http://www.w3.org", ""))  # one file, nothing is loaded


def test_curves_are_of_the_sets_as_they_are_now(plan, monkeypatch):
    drawn = []
    monkeypatch.setattr(report_page, "curves", lambda panels: drawn.extend(panels) or "")
    report_page.write_page(plan, REPORT)
    (panel,) = [panel for panel in drawn if panel.title == "bits per byte on held-out"]
    assert panel.lines["student"] == ([0, 100, 200, 300], [1.5, 1.2, 1.2, 1.2])


def test_without_matplotlib_a_page_has_everything_but_plots(plan, monkeypatch):
    monkeypatch.setattr(report_page, "has_matplotlib", lambda: False)
    report_page.write_page(plan, REPORT)
    page = plan.report.with_suffix(".html").read_text()
    assert "<svg" not in page
    assert "pip install &#x27;ctd-ray[plots]&#x27;" in page
    assert "0.500 ± 0.100" in page


def test_variants_are_dots_the_best_on_top_beside_teacher_and_start():
    rows = [
        Row(
            variant=name, figures={"general: distance": (value, 0.01)}, references={"general: distance": {"start": 0.5}}
        )
        for name, value in (("worse", 0.4), ("best", 0.2), ("middle", 0.3))
    ]
    labels = [word for word in re.findall(r">(\w+)</text>", plot(rows)) if word in ("worse", "best", "middle", "start")]
    assert labels == ["best", "middle", "worse", "start"]


def test_lines_of_a_panel_differ_in_colour_or_dash():
    lines = {str(number): ([0, 1], [number, number]) for number in range(12)}
    drawn = curves([Curves("a panel", lines)])
    looks = re.findall(r'<path d="[^"]*" clip-path="[^"]*" style="([^"]*stroke: #[^"]*)"', drawn)
    looks = [look for look in looks if "#888888" not in look]
    assert len(looks) == len(set(looks)) == 12
