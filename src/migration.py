"""Bring configs, states and weights of earlier formats to today's. Imports no MindSpore.

A checkpoint and a run folder's config.yaml carry a format number. `FORMAT` goes up when a key, a name or a meaning
changes so that an older file would be read wrongly. A new config key whose default keeps the old behaviour needs no new
format.

Format 0 is what was written before the number existed. Config keys have the old names of `RENAMED`; the stem of
ResNet-18 and ResNet-34 pools as `stem_pool: same` does; AlexNet's first convolution has no bias; `scheduler.min_lr` has
an effect only on cosine_decay.

In format 1 the number comes first in a file, and the optimizer's entries in a checkpoint end in `@optimizer`.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import TYPE_CHECKING, Any

from .errors import UserError

if TYPE_CHECKING:
    import numpy as np

FORMAT = 1
# Config keys that had another name before; the error about a user's own file names the new key.
RENAMED = {"data.workers": "data.num_parallel_workers"}
_STATE_RENAMED = {"norm_sum": "grad_norm_sum"}


def require_known_format(number: Any, where: str) -> int:
    """The format number of a file; UserError if it is no such number, or newer than this version can read."""
    if isinstance(number, bool) or not isinstance(number, int) or number < 1:
        raise UserError(f"{where} is damaged: its format is {number!r}, but must be a whole number from 1")
    if number > FORMAT:
        raise UserError(
            f"{where} has format {number}, but this version reads formats up to {FORMAT}: use a newer version of this "
            "project"
        )
    return number


def migrate_config(config: Mapping[str, Any], number: int) -> dict[str, Any]:
    """The config of a run of format `number` with today's keys. Keys that are new get the value that does what the old
    version did; the input is unchanged. Values are not checked here."""
    config = deepcopy(dict(config))
    if number == 0:
        for old, new in RENAMED.items():
            section, key = old.split(".")
            values = config.get(section)
            if isinstance(values, dict) and key in values:
                values.setdefault(new.split(".")[1], values.pop(key))
        scheduler = config.get("scheduler")
        if isinstance(scheduler, dict) and scheduler.get("name") in ("polynomial_decay", "constant"):
            scheduler["min_lr"] = 0.0  # these ignored it
        network = config.get("network")
        if isinstance(network, dict) and network.get("name") in ("resnet18", "resnet34"):
            options = network.get("options")
            network["options"] = {"stem_pool": "same", **(options if isinstance(options, dict) else {})}
    return config


def migrate_state(state: Mapping[str, Any], number: int) -> dict[str, Any]:
    """A run's progress, stored with format `number`, under today's names."""
    names = _STATE_RENAMED if number == 0 else {}
    return {names.get(name, name): value for name, value in state.items()}


def migrate_arrays(config: Mapping[str, Any], arrays: dict[str, np.ndarray], number: int) -> dict[str, np.ndarray]:
    """Weights, or the optimizer's state, that a run with this config stored with format `number`.

    AlexNet's first convolution had no bias in format 0: it is 0, and so is what the optimizer keeps of it.
    """
    if number == 0 and config["network"]["name"] == "alexnet":
        import numpy as np  # not at the top: its threads would start before runtime.deliver_interrupts is called

        for name, value in list(arrays.items()):
            prefix = name.removesuffix("conv1.weight")
            if name.endswith("conv1.weight") and prefix.count(".") <= 1:
                arrays.setdefault(f"{prefix}conv1.bias", np.zeros(value.shape[:1], value.dtype))
    return arrays
