"""The studies' cells and the recipes behind them."""

import re
from itertools import combinations

import pytest

from src.config import Config, load_config
from src.paper.runs import ROOT, recipe_file
from src.paper.studies import FIGURE3, STUDIES, TABLE1, TABLE5, Cell

CELLS = {cell.name: cell for study in STUDIES.values() for cell in study.cells}
RECIPES = sorted(file for folder in ("cifar10", "imagenet") for file in (ROOT / "configs" / folder).glob("*.yaml"))
NOT_IN_THE_PAPER = {"resnet20_fda_clip"}


def resolved(cell: Cell) -> Config:
    return load_config(recipe_file(cell), {**cell.changes, "output_dir": "run"})


def test_cells_of_one_name_are_one_run():
    for study in STUDIES.values():
        for cell in study.cells:
            assert resolved(cell) == resolved(CELLS[cell.name])


def test_cells_of_other_names_are_other_runs():
    configs = {name: resolved(cell) for name, cell in CELLS.items()}
    for first, second in combinations(CELLS, 2):
        assert configs[first] != configs[second], f"{first} and {second} would train the same twice"


def test_a_run_that_two_studies_share_has_one_figure_in_the_paper():
    for name in CELLS:
        figures = {
            row.reported
            for study in STUDIES.values()
            for row in study.rows
            if row.cell and row.cell.name == name and row.reported != (None,)
        }
        assert len(figures) <= 1, name


def test_studies_share_what_they_can():
    rows = [row for study in STUDIES.values() for row in study.rows if row.cell]
    on_imagenet = [cell for cell in CELLS.values() if resolved(cell).data.name == "imagenet"]
    assert (len(rows), len(CELLS), len(on_imagenet)) == (48, 39, 11)


@pytest.mark.parametrize(
    ("study", "network", "methods"),
    [
        (TABLE1, "ResNet-20", {"FP32", "DoReFa", "XNOR", "BNN+", "DSQ", "IR-Net", "FDA-BNN"}),
        (TABLE1, "VGG-Small", {"FP32", "DoReFa", "XNOR", "BNN+", "DSQ", "IR-Net", "FDA-BNN"}),
        (TABLE5, "ResNet-18", {"FP32", "DoReFa", "XNOR", "Bi-Real", "Bi-Real+PReLU", "IR-Net", "FDA-BNN"}),
        (TABLE5, "AlexNet", {"FP32", "DoReFa", "XNOR", "FDA-BNN"}),
    ],
)
def test_the_methods_that_run(study, network, methods):
    assert {row.method for row in study.rows if row.network == network and row.cell} == methods


def test_figure3_changes_n_alone():
    terms = [resolved(cell).schedules.n for cell in FIGURE3.cells]
    assert {schedule.setting for schedule in terms} == {1}
    assert [f"n = {schedule.n_p}" for schedule in terms] == [row.method for row in FIGURE3.rows]


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_a_recipe_opens_with_its_source_its_command_and_what_to_expect(file):
    text = file.read_text(encoding="utf-8")
    heading = re.match(r"(#.*\n)+", text).group()
    assert "https://arxiv.org/abs/2103.00841" in heading
    assert f"python train.py --config {file.relative_to(ROOT)} --data_path DIR" in heading
    assert load_config(file).output_dir is None  # each run gets a folder of its own
    if file.stem in NOT_IN_THE_PAPER:
        assert "not in the paper" in heading
        return
    figures = next(
        row.reported
        for study in STUDIES.values()
        for row in study.rows
        if row.cell and recipe_file(row.cell) == file and not row.cell.changes and row.reported[0] is not None
    )
    for figure in figures:
        digits = 1 if file.parent.name == "imagenet" else 2
        assert figure is None or f" {figure:.{digits}f} %" in heading
    assert "as the paper reports it" in " ".join(heading.replace("#", "").split())


def test_the_recipes_are_those_of_section_3():
    for cell in CELLS.values():
        config = resolved(cell)
        if config.data.name == "cifar10":
            assert (config.train.epochs, config.data.batch_size) == (400, 128)
            optimizer = config.optimizer
            assert (optimizer.name, optimizer.lr, optimizer.momentum, optimizer.weight_decay) == (
                "momentum",
                0.1,
                0.9,
                1e-4,
            )
        else:
            assert (config.optimizer.name, config.optimizer.lr, config.optimizer.momentum) == ("adam", 1e-3, 0.9)
            assert (config.optimizer.weight_decay, config.scheduler.name) == (0.0, "polynomial_decay")
        if config.network.binary:
            fda_with_noise = "_fda" in cell.name and not cell.name.endswith("_no_noise")
            assert config.noise.enabled == (fda_with_noise or cell.name.endswith(("dsq_noise", "plus_noise")))
