"""train.py's command line: flags and files become a Config, before MindSpore is imported. The launcher reads it too."""

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .. import cli
from ..config import RESUMABLE, Config, load_config
from ..errors import UserError
from ..files import require_writable
from ..run_dir import CONFIG, LAST, LATEST, RUNS, epoch_checkpoints, holds_run, read_config, resolve_link

SHORTHANDS = {
    "--dataset": "data.name",
    "--data_path": "data.path",
    "--download": "data.download",
    "--output_dir": "output_dir",
    "--batch_size": "data.batch_size",
    "--epochs": "train.epochs",
    "--steps_per_epoch": "train.steps_per_epoch",
    "--seed": "seed",
    "--device_target": "runtime.device_target",
    "--mode": "runtime.mode",
    "--init_checkpoint": "init_checkpoint",
    "--amp_level": "amp.level",
    "--keep": "train.keep",
}


def parse(
    argv: Sequence[str], description: str | None = None, other_flags: Sequence[str] = ()
) -> tuple[Config, Namespace]:
    """The config and the other arguments. When a run is resumed, `output_dir` is its folder.

    Args:
        other_flags: of a launcher, for hints at unknown arguments.
    """
    parser = cli.Parser(prog="train.py", description=description)
    parser.add_argument(
        "--config", metavar="FILE", type=cli.path, help="a YAML file that names what differs from default_config.yaml"
    )
    parser.add_argument(
        "--resume", metavar="DIR", type=cli.path, help="continue the run of this folder, with its config"
    )
    parser.add_argument(
        "--from_epoch",
        metavar="N",
        type=cli.integer,
        help="with --resume: go back to the end of epoch N, if it was kept",
    )
    parser.add_argument("--distribute", action="store_true", help="this is one of several workers that msrun started")
    parser.add_argument("--check_data", action="store_true", help="decode all images first, not only the test images")
    cli.add_config_flags(parser, SHORTHANDS)
    arguments, overrides = cli.parse_config_flags(parser, argv, other_flags)
    if arguments.distribute:
        overrides["runtime.distribute"] = True
    if arguments.resume:
        return resumed(Path(arguments.resume), arguments, overrides), arguments
    if arguments.from_epoch is not None:
        raise UserError(f"--from_epoch is {arguments.from_epoch}, but needs --resume DIR")
    config = load_config(arguments.config, overrides)
    config.require_device_can()
    paths = {key: path for key in ("output_dir", "init_checkpoint") if (path := getattr(config, key)) is not None}
    config = config.model_copy(update={key: without_latest(path) for key, path in paths.items()})
    if config.output_dir is not None:
        require_no_run(Path(config.output_dir))
    require_writable(Path(config.output_dir or RUNS))
    return config, arguments


def without_latest(path: str) -> str:
    """The path with the folder that runs/latest means now: a new run is about to change that link."""
    latest, absolute = LATEST.absolute(), Path(path).absolute()
    return str(resolve_link(LATEST) / absolute.relative_to(latest)) if absolute.is_relative_to(latest) else path


def require_no_run(folder: Path) -> None:
    if holds_run(folder):
        raise UserError(
            f"{folder} already holds a run: continue it with --resume {folder}, or choose another --output_dir"
        )


def resumed(folder: Path, arguments: Namespace, overrides: dict[str, Any]) -> Config:
    """The config of a resumed run: its own, except for the keys that may change and the folder, which may have
    moved."""
    folder = resolve_link(folder)
    if folder.is_file() and holds_run(folder.parent):
        raise UserError(f"--resume is {folder}, a file: give the run's folder, --resume {folder.parent}")
    if not holds_run(folder) or not (folder / CONFIG).is_file():
        raise UserError(f"{folder} holds no run to resume: {LAST} and {CONFIG} are expected in it")
    changed = sorted(set(overrides) - RESUMABLE)
    if arguments.config or changed:
        what = "--config" if arguments.config else ", ".join(changed)
        raise UserError(
            f"{what} cannot change when a run is resumed; only {', '.join(sorted(RESUMABLE))} can; to continue "
            f"with other settings, start a new run from its weights: --init_checkpoint {folder / LAST}"
        )
    kept = epoch_checkpoints(folder)
    if arguments.from_epoch is not None and arguments.from_epoch not in kept:
        listed = ", ".join(map(str, kept)) or "none"
        raise UserError(
            f"--from_epoch is {arguments.from_epoch}, but {folder} keeps the checkpoints of epochs: {listed}"
        )
    require_writable(folder)
    one_worker = {} if arguments.distribute else {"runtime.distribute": False}
    config = load_config(read_config(folder), {**one_worker, **overrides, "output_dir": str(folder)})
    config.require_device_can()
    return config
