"""The runs of the studies and the recipes behind them."""

import re
from itertools import combinations

import pytest

from src.config import Config, load_config
from src.paper.runs import ROOT, recipe_file
from src.paper.studies import FIGURE3, STUDIES, TABLE1, TABLE5, RunSpec

SPECS = {spec.name: spec for study in STUDIES.values() for spec in study.specs}
RECIPES = sorted(file for folder in ("cifar10", "imagenet") for file in (ROOT / "configs" / folder).glob("*.yaml"))
NOT_IN_THE_PAPER = {"resnet20_fda_clip"}


def resolved(spec: RunSpec) -> Config:
    return load_config(recipe_file(spec), {**spec.changes, "output_dir": "run"})


def test_specs_of_one_name_are_one_run():
    for study in STUDIES.values():
        for spec in study.specs:
            assert resolved(spec) == resolved(SPECS[spec.name])


def test_specs_of_other_names_are_other_runs():
    configs = {name: resolved(spec) for name, spec in SPECS.items()}
    for first, second in combinations(SPECS, 2):
        assert configs[first] != configs[second], f"{first} and {second} would train the same twice"


def test_a_run_that_two_studies_share_has_one_figure_in_the_paper():
    for name in SPECS:
        figures = {
            row.reported
            for study in STUDIES.values()
            for row in study.rows
            if row.spec and row.spec.name == name and row.reported != (None,)
        }
        assert len(figures) <= 1, name


def test_studies_share_what_they_can():
    rows = [row for study in STUDIES.values() for row in study.rows if row.spec]
    on_imagenet = [spec for spec in SPECS.values() if resolved(spec).data.name == "imagenet"]
    assert (len(rows), len(SPECS), len(on_imagenet)) == (73, 57, 11)


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
    assert {row.method for row in study.rows if row.network == network and row.spec} == methods


def test_figure3_changes_only_n():
    terms = [resolved(spec).schedules.n for spec in FIGURE3.specs]
    assert {schedule.setting for schedule in terms} == {1}
    assert [f"n = {schedule.n_p}" for schedule in terms] == [row.method for row in FIGURE3.rows]


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_a_recipe_opens_with_its_source_its_command_and_the_papers_number(file):
    text = file.read_text(encoding="utf-8")
    heading = re.match(r"(#.*\n)+", text).group()
    assert "https://arxiv.org/abs/2103.00841" in heading
    assert f"python train.py --config {file.relative_to(ROOT)} --data_path DIR" in heading
    assert load_config(file).output_dir is None  # each run gets its own folder
    if file.stem in NOT_IN_THE_PAPER:
        assert "not in the paper" in heading
        return
    figures = next(
        row.reported
        for study in STUDIES.values()
        for row in study.rows
        if row.spec and recipe_file(row.spec) == file and not row.spec.changes and row.reported[0] is not None
    )
    for figure in figures:
        digits = 1 if file.parent.name == "imagenet" else 2
        assert figure is None or f" {figure:.{digits}f} %" in heading
    assert re.search(r"# The paper reports .* % top-\d; not reproduced with this code yet\.\n", heading)


def test_the_recipes_are_those_of_section_3():
    for spec in SPECS.values():
        config = resolved(spec)
        if config.data.name == "cifar10":
            assert (config.train.epochs, config.data.batch_size) == (400, 128)
            optimizer = config.optimizer
            lr = spec.changes.get("optimizer.lr", 0.1)
            recipe = (optimizer.name, optimizer.lr, optimizer.momentum, optimizer.weight_decay)
            assert recipe == ("momentum", lr, 0.9, 1e-4)
        else:
            assert (config.optimizer.name, config.optimizer.lr, config.optimizer.momentum) == ("adam", 1e-3, 0.9)
            assert (config.optimizer.weight_decay, config.scheduler.name) == (0.0, "polynomial_decay")
        if config.network.binary:
            fda_with_noise = "_fda" in spec.name and not re.search("_no_noise|_fda_clip$", spec.name)
            assert config.noise.enabled == (fda_with_noise or spec.name.endswith(("dsq_noise", "plus_noise")))
