"""What the figures of the studies show."""

from types import SimpleNamespace

import pytest

from src.paper import plots
from src.paper.report import Finished, Outcome
from src.paper.studies import STUDIES

SHORTENED = "shortened runs: compare methods with each other at this budget, not with the paper's accuracies"


class MadeWith:
    """A budget as far as a figure needs it."""

    images = "on 5,000 held-out training images"

    def __init__(self, caution: str = ""):
        self.caution = caution

    def __str__(self) -> str:
        return "CIFAR-10, 8 of 400 epochs of 156 steps, batch 128, data.holdout 5000, train.eval_test False"


def finished(seed: int, *top1: float, rate: float = 100.0) -> Finished:
    history = [{"test_top1": value, "test_top5": 0.9, "images_per_second": rate} for value in top1]
    config = SimpleNamespace(data=SimpleNamespace(batch_size=100))
    return Finished(SimpleNamespace(seed=seed, config=config), history, [{}])


def outcomes(name: str, **runs: tuple[Finished, ...]) -> list[Outcome]:
    """The rows of a study; `row1=...` are the runs of its second row."""
    rows = STUDIES[name].rows
    return [Outcome(row, 2, runs.get(f"row{number}", ())) for number, row in enumerate(rows)]


def drawn(name: str, results: list[Outcome], tmp_path, monkeypatch, caution: str = ""):
    """The figure, after it was written."""
    figures = []
    monkeypatch.setattr(plots, "save", lambda figure, path: (figures.append(figure), figure.savefig(path)))
    plots.draw(STUDIES[name], results, MadeWith(caution), tmp_path / "figure.png")
    return figures[0]


def points(panel, marker: str) -> list[tuple[float, float]]:
    """The places of a marker in a panel."""
    return [
        (float(x), float(y))
        for line in panel.lines
        if line.get_marker() == marker
        for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True)
    ]


def texts(legend) -> list[str]:
    return [text.get_text() for text in legend.get_texts()]


def test_a_table_shows_each_run_the_mean_and_the_papers_number(tmp_path, monkeypatch):
    results = outcomes("table2", row0=(finished(0, 0.1, 0.5),), row1=(finished(0, 0.6), finished(1, 0.625)))
    figure = drawn("table2", results, tmp_path, monkeypatch)
    (panel,) = figure.axes
    assert points(panel, "o") == [(50, 0), (60, 1), (62.5, 1)]
    assert points(panel, "|") == [(61.25, 1)]  # one run has no mean
    assert points(panel, "D") == [(84.44, 0), (85.83, 1), (86.20, 2)]
    assert [label.get_text() for label in panel.get_yticklabels()] == ["STE", "sine module", "sine and noise modules"]
    assert [text.get_text() for text in panel.texts] == ["50.00", "61.25"]
    assert texts(figure.legends[0]) == ["one run, ours", "mean", "paper"]


def test_the_papers_numbers_are_left_out_where_they_do_not_compare(tmp_path, monkeypatch):
    results = outcomes("table2", row0=(finished(0, 0.5),))
    figure = drawn("table2", results, tmp_path, monkeypatch, SHORTENED)
    (panel,) = figure.axes
    assert points(panel, "D") == [] and texts(figure.legends[0]) == ["one run, ours", "mean"]
    assert [label.get_text() for label in panel.get_yticklabels()] == ["STE"]


def test_a_legend_names_only_what_is_drawn(tmp_path, monkeypatch):
    figure = drawn("bound", outcomes("bound", row1=(finished(0, 0.5),)), tmp_path, monkeypatch)
    assert texts(figure.legends[0]) == ["one run, ours", "mean"]


def test_a_table_of_two_networks_has_a_panel_for_each(tmp_path, monkeypatch):
    figure = drawn("table1", outcomes("table1", row0=(finished(0, 0.9),)), tmp_path, monkeypatch)
    assert [panel.get_title() for panel in figure.axes] == ["ResNet-20", "VGG-Small"]


def test_figure_4_shows_the_mean_curve_and_the_range_of_the_seeds(tmp_path, monkeypatch):
    results = outcomes("figure4", row0=(finished(0, 0.1, 0.3), finished(1, 0.2, 0.5)))
    for caution, names in (("", 2), (SHORTENED, 1)):
        figure = drawn("figure4", results, tmp_path, monkeypatch, caution)
        (panel,) = figure.axes
        assert points(panel, "o") == [(1, pytest.approx(15)), (2, pytest.approx(40))]
        assert len(texts(panel.get_legend())) == names


def test_figure_3_shows_accuracy_and_the_time_of_a_step(tmp_path, monkeypatch):
    results = outcomes("figure3", row1=(finished(0, 0.5),), row2=(finished(0, 0.6, rate=0.0),))
    accuracy, time = drawn("figure3", results, tmp_path, monkeypatch).axes
    assert points(accuracy, "o") == [(3, 50), (5, 60)]
    assert points(time, "o") == [(3, 1000)]  # the second run has no times


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("caution", ["", SHORTENED])
@pytest.mark.parametrize("name", ["table1", "table5", "figure3", "figure4", "settings"])
def test_a_study_without_a_finished_run_is_drawn(name, caution, tmp_path, monkeypatch):
    figure = drawn(name, outcomes(name), tmp_path, monkeypatch, caution)
    if name == "settings":
        assert "no run has finished" in [text.get_text() for text in figure.texts]


@pytest.mark.parametrize("name", ["table2", "table1", "figure3", "figure4"])
def test_titles_are_not_cut_off(name, tmp_path, monkeypatch):
    figure = drawn(name, outcomes(name, row0=(finished(0, 0.5),)), tmp_path, monkeypatch, SHORTENED)
    title = " ".join(figure.get_suptitle().split())
    assert MadeWith.images in title and SHORTENED in title
    extent = figure._suptitle.get_window_extent()
    assert extent.x0 >= 0 and extent.x1 <= figure.bbox.x1 and extent.y1 <= figure.bbox.y1
