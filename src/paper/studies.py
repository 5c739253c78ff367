"""The paper's tables and figures: their rows, the numbers that it reports, and the runs that give ours.

A `RunSpec` is one training run without its seed: a recipe in configs/ and what differs from it. Specs of the same name
are the same run, which studies share. Reported numbers are the paper's (Xu et al., NeurIPS 2021), in percent.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class RunSpec:
    """A training run: `recipe`, a file below configs/ without suffix, and the keys in which the run differs from it."""

    name: str
    recipe: str
    changes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """A row of a table. `reported`: top-1, or top-1 and top-5, of the paper; None if it gives no number. Without `spec`
    the method is not run here."""

    network: str
    method: str
    reported: tuple[float | None, ...] = (None,)
    spec: RunSpec | None = None
    note: str = ""

    def figure(self, measure: int) -> float | None:
        """Return the paper's top-1 (0) or top-5 (1), or None if it gives none."""
        return self.reported[measure] if measure < len(self.reported) else None


@dataclass(frozen=True)
class Study:
    """A table or figure: `title` without data set and budget; `finding` is what the paper concludes from it, or why it
    is here."""

    name: str
    title: str
    dataset: str
    rows: tuple[Row, ...]
    finding: str
    pairs: tuple[tuple[str, str], ...] = ()  # methods whose difference is of interest: the first less the second
    pooled: bool = False  # many rows for few seeds: differences are judged by the spread of all runs

    @property
    def digits(self) -> int:
        """Digits after the point, as the paper prints accuracies."""
        return 1 if self.dataset == "imagenet" else 2

    @property
    def specs(self) -> list[RunSpec]:
        """Each run once, in the order of the rows."""
        return list({row.spec.name: row.spec for row in self.rows if row.spec}.values())


def spec(recipe: str, suffix: str = "", **changes) -> RunSpec:
    """Return the run of a recipe, or a changed one with a suffix in its name: noise__eta is the key noise.eta."""
    return RunSpec(recipe.replace("/", "_") + suffix, recipe, {key.replace("__", "."): changes[key] for key in changes})


HALF_BINARY = "activations of two bits"
SAME_SHORTCUTS = "run here on Bi-Real's shortcuts with PReLU"


def _resnet20(method: str) -> RunSpec:
    return spec(f"cifar10/resnet20_{method}")


def _vgg_small(method: str) -> RunSpec:
    return spec(f"cifar10/vgg_small_{method}")


def _resnet18(method: str) -> RunSpec:
    return spec(f"imagenet/resnet18_{method}")


def _alexnet(method: str) -> RunSpec:
    return spec(f"imagenet/alexnet_{method}")


TABLE1 = Study(
    "table1",
    "Table 1: methods on CIFAR-10",
    "cifar10",
    (
        Row("ResNet-20", "FP32", (92.10,), _resnet20("fp32")),
        Row("ResNet-20", "DoReFa", (84.44,), _resnet20("dorefa")),
        Row("ResNet-20", "XNOR", (85.23,), _resnet20("xnor")),
        Row("ResNet-20", "LNS", (85.78,)),
        Row("ResNet-20", "TBN", (84.34,), note=HALF_BINARY),
        Row("ResNet-20", "BNN+", (None,), _resnet20("bnn_plus"), note="84.59 in the paper's Table 3"),
        Row("ResNet-20", "DSQ", (84.11,), _resnet20("dsq")),
        Row("ResNet-20", "IR-Net", (85.40,), _resnet20("irnet")),
        Row("ResNet-20", "FDA-BNN", (86.20,), _resnet20("fda")),
        Row("VGG-Small", "FP32", (94.10,), _vgg_small("fp32")),
        Row("VGG-Small", "DoReFa", (90.20,), _vgg_small("dorefa")),
        Row("VGG-Small", "BinaryNet", (89.90,)),
        Row("VGG-Small", "XNOR", (89.80,), _vgg_small("xnor")),
        Row("VGG-Small", "BNN+", (91.31,), _vgg_small("bnn_plus")),
        Row("VGG-Small", "DSQ", (91.72,), _vgg_small("dsq")),
        Row("VGG-Small", "IR-Net", (90.40,), _vgg_small("irnet")),
        Row("VGG-Small", "FDA-BNN", (92.54,), _vgg_small("fda")),
    ),
    "The paper: FDA-BNN is the best binary network in both columns.",
)
TABLE2 = Study(
    "table2",
    "Table 2: the sine module and the noise module",
    "cifar10",
    (
        Row("ResNet-20", "STE", (84.44,), _resnet20("dorefa")),
        Row("ResNet-20", "sine module", (85.83,), _resnet20("fda_no_noise")),
        Row("ResNet-20", "sine and noise modules", (86.20,), _resnet20("fda")),
    ),
    "The paper: each module adds to the accuracy.",
    (("sine module", "STE"), ("sine and noise modules", "sine module"), ("sine and noise modules", "STE")),
)
TABLE3 = Study(
    "table3",
    "Table 3: the noise module on other estimators",
    "cifar10",
    (
        Row("ResNet-20", "DSQ", (84.11,), _resnet20("dsq")),
        Row("ResNet-20", "DSQ with noise", (84.46,), spec("cifar10/resnet20_dsq", "_noise", noise__enabled=True)),
        Row("ResNet-20", "BNN+", (84.59,), _resnet20("bnn_plus")),
        Row("ResNet-20", "BNN+ with noise", (84.87,), spec("cifar10/resnet20_bnn_plus", "_noise", noise__enabled=True)),
        Row("ResNet-20", "FDA", (85.83,), _resnet20("fda_no_noise")),
        Row("ResNet-20", "FDA with noise", (86.20,), _resnet20("fda")),
    ),
    "The paper: the noise module helps every estimator.",
    (("DSQ with noise", "DSQ"), ("BNN+ with noise", "BNN+"), ("FDA with noise", "FDA")),
)
TABLE4 = Study(
    "table4",
    "Table 4: eta of the noise module",
    "cifar10",
    (
        Row("ResNet-20", "eta = 0", (85.27,), spec("cifar10/resnet20_fda", "_eta_none", noise__eta="none")),
        Row("ResNet-20", "eta = a t", (85.93,), spec("cifar10/resnet20_fda", "_eta_linear", noise__eta="linear")),
        Row("ResNet-20", "eta = a sin(t)", (86.20,), _resnet20("fda")),
    ),
    "The paper: the sine is best, and without eta the noise module costs accuracy.",
    (("eta = a sin(t)", "eta = 0"), ("eta = a sin(t)", "eta = a t")),
)
TABLE5 = Study(
    "table5",
    "Table 5: methods on ImageNet",
    "imagenet",
    (
        Row("ResNet-18", "FP32", (69.6, 89.2), _resnet18("fp32"), SAME_SHORTCUTS),
        Row("ResNet-18", "TBN", (55.6, 79.0), note=HALF_BINARY),
        Row("ResNet-18", "DoReFa", (52.5, 67.7), _resnet18("dorefa"), SAME_SHORTCUTS),
        Row("ResNet-18", "BinaryNet", (42.2, 67.1)),
        Row("ResNet-18", "XNOR", (51.2, 73.2), _resnet18("xnor"), SAME_SHORTCUTS),
        Row("ResNet-18", "ABC-Net", (42.7, 67.6)),
        Row("ResNet-18", "Bi-Real", (56.4, 79.5), _resnet18("birealnet")),
        Row("ResNet-18", "Bi-Real+PReLU", (59.0, 81.3), _resnet18("birealnet_prelu")),
        Row("ResNet-18", "BOP", (54.2, 77.2)),
        Row("ResNet-18", "LNS", (59.4, 81.7)),
        Row("ResNet-18", "HWGQ", (59.6, 82.2), note=HALF_BINARY),
        Row("ResNet-18", "PCNN", (57.3, 80.0)),
        Row("ResNet-18", "QN", (53.6, 75.3)),
        Row("ResNet-18", "ResNetE", (58.1, 80.6)),
        Row("ResNet-18", "BONN", (59.3, 81.6)),
        Row("ResNet-18", "IR-Net", (58.1, 80.0), _resnet18("irnet"), SAME_SHORTCUTS),
        Row("ResNet-18", "RBCN", (59.5, 81.6)),
        Row("ResNet-18", "FDA-BNN", (60.2, 82.3), _resnet18("fda")),
        Row("AlexNet", "FP32", (56.6, 80.2), _alexnet("fp32")),
        Row("AlexNet", "BinaryNet", (41.2, 65.6)),
        Row("AlexNet", "DoReFa", (43.6, None), _alexnet("dorefa")),
        Row("AlexNet", "XNOR", (44.2, 69.2), _alexnet("xnor"), "run here on DoReFa's layout"),
        Row("AlexNet", "LNS", (44.4, None)),
        Row("AlexNet", "FDA-BNN", (46.2, 69.7), _alexnet("fda")),
    ),
    "The paper: FDA-BNN is the best binary network in both columns.",
)


def _fixed_n(n: int) -> RunSpec:
    return spec("cifar10/resnet20_fda", f"_n{n}", schedules__n__setting=1, schedules__n__n_p=n)


FIGURE3_N = (1, 3, 5, 7, 9, 12, 15, 18)  # n + 1 cosines each; the paper prints a curve without its points
FIGURE3 = Study(
    "figure3",
    "Figure 3: accuracy and step time against n",
    "cifar10",
    tuple(Row("ResNet-20", f"n = {n}", spec=_fixed_n(n)) for n in FIGURE3_N),
    "The paper: accuracy saturates near n = 10, while the time of a step grows with n. Here the gradient has a closed "
    "form.",
)
FIGURE4 = Study(
    "figure4",
    "Figure 4: three settings of n",
    "cifar10",
    (
        Row("ResNet-20", "setting 1: n = 9", spec=_fixed_n(9)),
        Row(
            "ResNet-20",
            "setting 2: n from 1 to 9",
            spec=spec("cifar10/resnet20_fda", "_n_from_1", schedules__n__setting=2),
        ),
        Row("ResNet-20", "setting 3: n from 9 to 18", (86.20,), _resnet20("fda")),
    ),
    "The paper: setting 3 is best; it prints curves, and a number only for the end of setting 3.",
    (
        ("setting 3: n from 9 to 18", "setting 1: n = 9"),
        ("setting 3: n from 9 to 18", "setting 2: n from 1 to 9"),
    ),
)


def _against_one(
    name: str, title: str, dataset: str, rows: tuple[Row, ...], finding: str, baseline: str, pooled: bool = False
) -> Study:
    """A study that compares every other row with the method `baseline`."""
    others = [row.method for row in rows if row.method != baseline]
    return Study(name, title, dataset, rows, finding, tuple((method, baseline) for method in others), pooled)


# What the paper leaves open, and what else is known: no row has a number of the paper.
NOISE = _against_one(
    "noise",
    "The noise module: where it acts and how it starts",
    "cifar10",
    (
        Row("ResNet-20", "Eq. 14", spec=_resnet20("fda")),
        Row("ResNet-20", "Eq. 14, uniform start", spec=spec("cifar10/resnet20_fda", "_uniform", noise__init="uniform")),
        Row(
            "ResNet-20",
            "Algorithm 1",
            spec=spec("cifar10/resnet20_fda", "_algorithm1", noise__in_forward=False),
        ),
        Row(
            "ResNet-20",
            "Algorithm 1, uniform start",
            spec=spec("cifar10/resnet20_fda", "_algorithm1_uniform", noise__in_forward=False, noise__init="uniform"),
        ),
    ),
    "The paper states both forms and no start.",
    "Eq. 14",
)
BOUND = Study(
    "bound",
    "The sine module with its gradient cut off at 1",
    "cifar10",
    (
        Row("ResNet-20", "STE", spec=_resnet20("dorefa")),
        Row("ResNet-20", "FDA", spec=_resnet20("fda_no_noise")),
        Row("ResNet-20", "FDA, 0 beyond 1", spec=_resnet20("fda_clip")),
    ),
    "The paper's gradient has side lobes and no bound; the public re-implementation sets it to 0 where |t| > 1.",
    (("FDA, 0 beyond 1", "FDA"), ("FDA, 0 beyond 1", "STE")),
)


def _by_estimator(label: str, name: str, **options) -> Row:
    return Row("ResNet-20", label, spec=spec("cifar10/resnet20_dorefa", f"_{name}", network__estimator=name, **options))


ESTIMATORS = _against_one(
    "estimators",
    "Other estimators on the same network",
    "cifar10",
    (
        Row("ResNet-20", "STE", spec=_resnet20("dorefa")),
        Row("ResNet-20", "FDA", spec=_resnet20("fda_no_noise")),
        _by_estimator("EDE", "ede", network__estimator_options={"t_min": 0.001}),  # IR-Net's T for ResNet-20
        _by_estimator("RBNN", "rbnn"),
        _by_estimator("ReSTE", "reste"),
        _by_estimator("ApproxSign", "approx_sign"),
    ),
    "Only the estimator differs: DoReFa's weights throughout, none of the other parts of these methods.",
    "STE",
)


def _changed(suffix: str, **changes) -> RunSpec:
    return spec("cifar10/resnet20_fda_no_noise", f"_{suffix}", **changes)


SETTINGS = _against_one(
    "settings",
    "The sine module with other settings",
    "cifar10",
    (
        Row("ResNet-20", "FDA", spec=_resnet20("fda_no_noise")),
        Row("ResNet-20", "omega 0.05", spec=_changed("omega_0.05", network__estimator_options={"omega": 0.05})),
        Row("ResNet-20", "omega 0.2", spec=_changed("omega_0.2", network__estimator_options={"omega": 0.2})),
        Row("ResNet-20", "0 beyond 0.5", spec=_changed("clip_0.5", network__estimator_options={"clip": 0.5})),
        Row("ResNet-20", "0 beyond 1", spec=_resnet20("fda_clip")),
        Row("ResNet-20", "0 beyond 2", spec=_changed("clip_2", network__estimator_options={"clip": 2.0})),
        Row("ResNet-20", "learning rate 0.05", spec=_changed("lr_0.05", optimizer__lr=0.05)),
        Row("ResNet-20", "learning rate 0.2", spec=_changed("lr_0.2", optimizer__lr=0.2)),
        Row(
            "ResNet-20",
            "omega 0.05, learning rate 0.2",
            spec=_changed("omega_0.05_lr_0.2", network__estimator_options={"omega": 0.05}, optimizer__lr=0.2),
        ),
        Row(
            "ResNet-20",
            "omega 0.2, learning rate 0.05",
            spec=_changed("omega_0.2_lr_0.05", network__estimator_options={"omega": 0.2}, optimizer__lr=0.05),
        ),
        Row("ResNet-20", "wider start", spec=_changed("he_normal", network__weight_init="he_normal")),
        Row("ResNet-20", "weights by STE", spec=_changed("weights_ste", network__weight_estimator="clipped_ste")),
    ),
    "The peak of the gradient is 4 omega (n + 1) / pi: omega scales it, as the learning rate does for the weights, and "
    "moves its zeros; two rows change both, so that their product stays the same. The wider start is 2.4 "
    "times as wide.",
    "FDA",
    pooled=True,
)

ALL = (TABLE1, TABLE2, TABLE3, TABLE4, TABLE5, FIGURE3, FIGURE4, NOISE, BOUND, ESTIMATORS, SETTINGS)
STUDIES = {study.name: study for study in ALL}
