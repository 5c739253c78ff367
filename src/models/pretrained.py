"""Weights for `create_model(..., pretrained=...)`."""

from collections.abc import Mapping
from typing import Any

from .. import checkpoints, pretrained
from ..binary import Binarization
from ..checkpoints import Checkpoint
from ..errors import UserError


def read(
    network: str,
    name: str | bool,
    binarization: Binarization,
    options: Mapping[str, Any],
    defaults: Mapping[str, Any],
) -> Checkpoint:
    """Read the weights called `name`; True: the default of the network, binary or in full precision as it is.

    Args:
        options, defaults: of the network itself, given and its own.

    Raises:
        UserError: there are none, they are of another network, or they were trained with other options that change what
            the network computes.
    """
    found = checkpoints.read(pretrained.weights(network if name is True else name, binary=binarization.binary))
    if found.config is None:
        raise UserError(f"the weights {found.path} do not hold the config that they were trained with")
    own = found.config["network"]
    own = own | {"options": {**defaults, **own["options"]}}
    if own["name"] != network:
        raise UserError(f"{name} are weights of {own['name']}, not of {network}")
    given = {"binary": binarization.binary, "options": {**defaults, **options}}
    if binarization.binary:
        given["weight_quantizer"] = binarization.weight_quantizer
    for key, value in given.items():
        if own[key] != value:
            raise UserError(f"the weights {found.path} were trained with network.{key} {own[key]!r}, not {value!r}")
    return found
