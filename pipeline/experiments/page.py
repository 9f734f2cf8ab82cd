"""Builds the HTML page of an experiment. Its template escapes every text."""

from __future__ import annotations

from pathlib import Path

from pipeline.experiments import charts
from pipeline.experiments.results import ExperimentReport
from pipeline.experiments.tables import cells, columns, estimate, notes, points
from pipeline.results.page.page import image
from pipeline.results.page.templates import page_environment


def render_experiment(report: ExperimentReport) -> str:
    """The HTML text."""
    environment = page_environment(Path(__file__).parent)
    environment.filters |= {"points": points, "estimate": estimate}
    drawn = (
        ("Accuracy against large tokens", charts.accuracy_against(report.rows, "large_tokens", "large tokens/sample")),
        ("Accuracy against all tokens", charts.accuracy_against(report.rows, "total_tokens", "tokens/sample")),
        ("Accuracy against a token budget", charts.budget_curves(report.rows)),
        ("Tokens by owner", charts.tokens_by_owner(report.rows)),
    )
    return environment.get_template("experiment.html.jinja").render(
        report=report,
        columns=columns(report),
        rows=[(row, cells(row, report)) for row in report.rows],
        notes=notes(report),
        charts=[(title, image(picture)) for title, picture in drawn if picture],
    )
