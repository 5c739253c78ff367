"""Values that change over training: pure functions of progress, and their tables in the graph.

Progress is 0 at the first step and 1 at the last. A schedule is evaluated for every step before training starts; the
graph reads its row by the optimizer's step counter. The host sets nothing between steps, so schedules work with data
sinking, do not advance on a skipped step, and compile once.
"""

import math
import warnings
from collections.abc import Callable, Mapping
from functools import cache

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from .amp import NoAutoCast
from .validation import require, require_integer, require_number

Schedule = Callable[[float], float]


def constant(value: float) -> Schedule:
    """The same value at every step."""
    return lambda progress: value


def grow(start: int, end: int) -> Schedule:
    """An integer that grows from start to end, with an equal share of training for each value.

    n(p) = min(start + floor(p (end - start + 1)), end). Only integers: between them the closed form of the Fourier
    derivative has poles.
    """
    return lambda progress: min(start + math.floor(progress * (end - start + 1)), end)


def cosine(start: float) -> Schedule:
    """start (1 + cos(pi p)) / 2, which is exactly 0 at progress 1; ValueError unless start is a finite number."""
    require_number("start", start)
    return lambda progress: start * (1 + math.cos(math.pi * progress)) / 2


def linear(start: float) -> Schedule:
    """start (1 - p), which is exactly 0 at progress 1; ValueError unless start is a finite number."""
    require_number("start", start)
    return lambda progress: start * (1 - progress)


def log_spaced(start: float, end: float) -> Schedule:
    """start (end / start)^p: equal ratios in equal shares of training; start and end above 0."""
    return lambda progress: start * (end / start) ** progress


def accelerate(start: float, end: float) -> Schedule:
    """start + (end - start) (1 - cos(pi p / 2)): slow at first, fastest at the end."""
    return lambda progress: start + (end - start) * (1 - math.cos(math.pi * progress / 2))


N_SETTINGS: dict[int, Callable[[int, int], Schedule]] = {
    1: lambda n_p, n_s: constant(n_p),
    2: lambda n_p, n_s: grow(1, n_p),
    3: lambda n_p, n_s: grow(n_s, 2 * n_s),
}
ALPHA_SCHEDULES: dict[str, Callable[[float], Schedule]] = {"cosine": cosine, "linear": linear}


def number_of_terms(setting: int = 3, n_p: int = 9, n_s: int = 9) -> Schedule:
    """n by a setting of the paper's Figure 4, one of `N_SETTINGS`; 3 is the default.

    Raises:
        ValueError: setting is unknown, or n_p or n_s is below 1.
    """
    require(setting in N_SETTINGS, "schedule setting of n", setting, f"one of {', '.join(map(str, N_SETTINGS))}")
    require_integer("n_p", n_p, 1)
    require_integer("n_s", n_s, 1)
    return N_SETTINGS[setting](n_p, n_s)


def tabulate(schedule: Schedule, steps: int) -> np.ndarray:
    """The schedule at each of `steps` training steps, float32 (steps,). A single step has progress 1. ValueError if
    `steps` is below 1."""
    require_integer("steps", steps, 1)
    return np.array([schedule(step / (steps - 1) if steps > 1 else 1.0) for step in range(steps)], np.float32)


class ScheduledValue(NoAutoCast):
    """A float32 Tensor of shape (): `value` until `follow` gives it a table, then the table's row at the current step.

    After the end of the table its last row is used.

    Args:
        name: name of the value, such as "n"; None: it is not scheduled.
        value: used until a table is followed.
        schedule: `attach` tabulates it if it is given no table of this name.
    """

    def __init__(self, name: str | None, value: float, schedule: Schedule | None = None):
        super().__init__()
        self.scheduled = name
        self.schedule = schedule
        self.table = Tensor([value], ms.float32)
        self.followed_step = None

    def add_flags(self, **flags):
        # set_train calls this method on every cell of the network.
        if flags.get("training") and self.scheduled is not None and self.followed_step is None:
            _warn_of_constants()
        return super().add_flags(**flags)

    def extend_repr(self):
        return "constant" if self.scheduled is None else self.scheduled

    def follow(self, table: Tensor, step: Parameter) -> None:
        """From now on, return row `step` of `table`: float32 (steps,); `step` is an int32 Parameter of shape (1,)."""
        self.table = table
        # Avoid nn.Cell's registration: the counter is a parameter of the optimizer, not of the network.
        object.__setattr__(self, "followed_step", step)

    def construct(self):
        if self.followed_step is None:
            return self.table[0]
        row = ops.minimum(self.followed_step, self.table.shape[0] - 1)
        return ops.gather(self.table, row, 0).reshape(())


@cache
def _warn_of_constants() -> None:
    """Warn, once per process, that a network is set to training while its scheduled values follow no table."""
    warnings.warn(
        "a binary network is trained without schedules: n, alpha and the estimators' own values stay constant, and the "
        f"noise is not annealed. Call {__name__}.attach(network, tables, optimizer.global_step, steps) before "
        "training; docs/python_api.md shows how",
        stacklevel=2,
    )


def attach(
    network: nn.Cell, tables: Mapping[str, np.ndarray], step: Parameter, steps: int | None = None
) -> dict[str, np.ndarray]:
    """Make every scheduled value of the network follow the table of its name, or else its own schedule.

    Args:
        network: any Cell.
        tables: float32 arrays (steps,) by scheduled name, made by `tabulate`.
        step: the optimizer's `global_step`.
        steps: number of training steps, for values with their own schedule.

    Returns:
        The tables that are followed, by name. If two tables with one name differ (T of the estimators of activations
        and of weights), the second is called `T_2`: activations come first.

    Raises:
        ValueError: a scheduled value has neither table nor schedule: it would silently stay constant.
    """
    followed: dict[str, np.ndarray] = {}
    tensors: dict[str, Tensor] = {}  # one per table, shared by all layers: they are constants of the graph
    for _, cell in network.cells_and_names():
        if not isinstance(cell, ScheduledValue) or cell.scheduled is None:
            continue
        table = tables.get(cell.scheduled)
        if table is None and cell.schedule is not None and steps is not None:
            table = tabulate(cell.schedule, steps)
        if table is None:
            raise ValueError(f"no schedule for {cell.scheduled!r}, which this network's layers follow")
        name, number = cell.scheduled, 2
        while name in followed and not np.array_equal(followed[name], table):
            name, number = f"{cell.scheduled}_{number}", number + 1
        if name not in followed:
            followed[name], tensors[name] = table, Tensor(table, ms.float32)
        cell.follow(tensors[name], step)
    return followed
