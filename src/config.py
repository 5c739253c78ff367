"""A YAML file and the command line become one typed, validated, frozen Config.

Keys, types and ranges are checked here, before MindSpore is imported. Names of networks, estimators and quantizers are
checked by their registries right after the import. default_config.yaml explains every key.
"""

import difflib
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    Strict,
    ValidationError,
    model_validator,
)

from .errors import UserError

DEFAULT_CONFIG = Path(__file__).resolve().parent / "default_config.yaml"  # as installed by pip
if not DEFAULT_CONFIG.is_file():
    DEFAULT_CONFIG = DEFAULT_CONFIG.parent.parent / DEFAULT_CONFIG.name  # in the repository
# What stands below these is checked by the network and the estimators.
FREE_KEYS = ("network.options", "network.estimator_options", "network.weight_estimator_options")

# What may change when a run goes on: where and how, but nothing that the result depends on.
RESUMABLE = {
    "data.path",
    "data.download",
    "runtime.device_target",
    "runtime.distribute",
    "train.save_every_steps",
    "train.keep",
    "train.on_write_error",
    "train.sink_size",
}

MAX_CONFIG_BYTES = 100_000  # bytes of a config
MAX_BATCH = 16_384  # images a step of one worker
MAX_NUMBER = 3e38  # about float32's
_repr = reprlib.Repr()  # of the value in an error, shortened
_repr.maxstring = _repr.maxother = _repr.maxlong = 100


def _to_float(value: Any) -> Any:
    """YAML 1.1 reads 1e-4, without a point, as text."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _usable_text(value: str) -> str:
    if not value.strip() or "\0" in value:
        raise ValueError("text that is not empty and holds no NUL")
    return value


def _usable_number(value: float) -> float:
    if abs(value) > MAX_NUMBER:
        raise ValueError(f"of a size up to {MAX_NUMBER}")
    return value


Text = Annotated[str, AfterValidator(_usable_text)]
Integer = Annotated[int, Strict()]
Number = Annotated[
    float, BeforeValidator(_to_float), Strict(), Field(allow_inf_nan=False), AfterValidator(_usable_number)
]
Flag = Annotated[bool, Strict()]
Positive = Annotated[Integer, Field(ge=1)]
Options = dict[str, Annotated[Any, BeforeValidator(_to_float)]]


class Section(BaseModel):
    """A frozen group of keys that refuses unknown ones."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class RuntimeSection(Section):
    device_target: Literal["CPU", "GPU", "Ascend"]
    mode: Literal["graph", "pynative"]
    distribute: Flag
    sync_batch_norm: Flag


class DataSection(Section):
    name: Text
    path: Text
    download: Flag
    batch_size: Annotated[Integer, Field(ge=1, le=MAX_BATCH)]
    num_parallel_workers: Positive
    augment: Flag


class NetworkSection(Section):
    name: Text
    options: Options
    binary: Flag
    estimator: Text
    estimator_options: Options
    weight_estimator: Text | None
    weight_estimator_options: Options
    weight_quantizer: Text
    weight_init: Text
    scale_in_gradient: Flag | None


class NoiseSection(Section):
    enabled: Flag
    eta: Text
    amplitude: Number
    reduction: Positive
    in_forward: Flag


class NSchedule(Section):
    setting: Annotated[Integer, Field(ge=1, le=3)]
    n_p: Annotated[Integer, Field(ge=1, le=1000)]
    n_s: Annotated[Integer, Field(ge=1, le=500)]


class AlphaSchedule(Section):
    start: Annotated[Number, Field(ge=0)]


class SchedulesSection(Section):
    n: NSchedule
    alpha: AlphaSchedule


class OptimizerSection(Section):
    name: Literal["momentum", "adam"]
    lr: Annotated[Number, Field(gt=0)]
    lr_for_batch: Positive | None
    momentum: Annotated[Number, Field(ge=0, lt=1)]
    weight_decay: Annotated[Number, Field(ge=0)]
    decay_all: Flag


class SchedulerSection(Section):
    name: Literal["cosine_decay", "constant", "polynomial_decay"]
    min_lr: Annotated[Number, Field(ge=0)]
    warmup_epochs: Annotated[Integer, Field(ge=0)]


class LossSection(Section):
    label_smoothing: Annotated[Number, Field(ge=0, lt=1)]


class AmpSection(Section):
    level: Literal["O0", "O2", "O3"]
    loss_scale: Literal["none", "dynamic"] | Annotated[Number, Field(ge=1)]


class TrainSection(Section):
    epochs: Annotated[Integer, Field(ge=1, le=100_000)]
    steps_per_epoch: Positive | None
    save_every_steps: Positive | None
    keep: Positive
    on_write_error: Literal["stop", "go_on"]
    sink_size: Positive | None

    def steps(self, available: int) -> int:
        """Of an epoch, of which the data give `available`."""
        return min(self.steps_per_epoch or available, available)


class Config(Section):
    seed: Annotated[Integer, Field(ge=0, le=2**31 - 1)]
    output_dir: Text | None
    init_checkpoint: Text | None
    runtime: RuntimeSection
    data: DataSection
    network: NetworkSection
    noise: NoiseSection
    schedules: SchedulesSection
    optimizer: OptimizerSection
    scheduler: SchedulerSection
    loss: LossSection
    amp: AmpSection
    train: TrainSection

    @model_validator(mode="after")
    def _warmup_ends_in_time(self) -> "Config":
        if self.scheduler.warmup_epochs >= self.train.epochs and self.scheduler.warmup_epochs > 0:
            raise ValueError(
                f"scheduler.warmup_epochs is {self.scheduler.warmup_epochs}, but must be less than "
                f"train.epochs, which is {self.train.epochs}"
            )
        return self

    def require_device_can(self) -> None:
        """UserError if the config asks for what the framework has for other devices alone. For training: a checkpoint
        made there is evaluated and exported anywhere."""
        for key, value, allowed in (
            ("runtime.device_target", self.runtime.device_target, ("GPU", "Ascend")),
            ("runtime.mode", self.runtime.mode, ("graph",)),
        ):
            if self.train.sink_size and value not in allowed:
                raise UserError(
                    f"train.sink_size is {self.train.sink_size}, but {key} is {value}, for which there is no data "
                    f"sinking: leave train.sink_size null, or choose {' or '.join(allowed)}"
                )
        if self.runtime.sync_batch_norm and self.runtime.device_target != "Ascend":
            raise UserError(
                "runtime.sync_batch_norm is true, which MindSpore has for Ascend alone, but runtime.device_target is "
                f"{self.runtime.device_target}: leave it false, or train on Ascend"
            )

    @property
    def has_noise(self) -> bool:
        """Whether binary layers get noise modules; with an alpha of 0 they would do nothing."""
        return self.noise.enabled and self.schedules.alpha.start > 0

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(), sort_keys=False)


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice, of which YAML would silently keep the last, and aliases, of which a
    few make a value larger than any memory."""

    def compose_node(self, parent, index):
        if self.check_event(yaml.AliasEvent):
            alias = self.peek_event()
            raise yaml.composer.ComposerError(
                None, None, f"the alias *{alias.anchor} is not taken here, write its value out", alias.start_mark
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=deep)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} stands twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def _parse_yaml(text: str) -> Any:
    """The value of a YAML text. ValueError if it is none; says why."""
    try:
        return yaml.load(text, Loader=_StrictLoader)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    except (yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError) as error:  # PyYAML raises all of these
        raise ValueError(" ".join(str(error).split())) from error


def read_yaml(path: str | Path) -> dict:
    """The mapping in a YAML file. UserError if it is missing, unreadable, too large, no YAML or no mapping."""
    try:
        with Path(path).open("rb") as file:
            text = file.read(MAX_CONFIG_BYTES + 1).decode("utf-8")  # no more: it may be a device without an end
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read the config {path}: {_reason(error)}") from error
    if len(text) > MAX_CONFIG_BYTES:
        raise UserError(f"the config {path} is no config: it has more than {MAX_CONFIG_BYTES:,} bytes")
    try:
        content = _parse_yaml(text)
    except ValueError as error:
        raise UserError(f"the config {path} is no valid YAML: {error}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UserError(f"the config {path} holds a {type(content).__name__}, but must hold keys and values")
    return content


def load_config(
    source: str | Path | Mapping[str, Any] | None = None, overrides: Mapping[str, Any] | None = None
) -> Config:
    """default_config.yaml, then the keys of `source`, then `overrides`.

    Args:
        source: a YAML file, or a mapping such as the config in a checkpoint.
        overrides: dotted keys, as "optimizer.lr".

    Raises:
        UserError: names the first key that is unknown or whose value is not allowed.
    """
    content = read_yaml(DEFAULT_CONFIG)
    if isinstance(source, Mapping):
        _merge(content, source, "the stored config")
    elif source is not None:
        _merge(content, read_yaml(source), str(source))
    for key, value in (overrides or {}).items():
        nested: Any = value
        for part in reversed(key.split(".")):
            nested = {part: nested}
        _merge(content, nested, "the command line")
    try:
        return Config.model_validate(content)
    except ValidationError as error:
        raise UserError(_describe(error)) from error


def annotation_of(key: str) -> Any:
    """The Python type of a dotted key; None if there is no such key."""
    model: Any = Config
    for part in key.split("."):
        field = getattr(model, "model_fields", {}).get(part)
        if field is None:
            return None
        model = field.annotation
    return model


def parse_override(key: str, text: str) -> Any:
    """The value of `--key text`: as it stands where the config wants text, else read as YAML."""
    wanted = annotation_of(key)
    if wanted is str or (Text in get_args(wanted) and text != "null"):
        return text
    try:
        return _parse_yaml(text)
    except ValueError as error:
        raise UserError(f"--{key} is {_repr.repr(text)}, which is no valid YAML value: {error}") from error


def _merge(into: dict, extra: Mapping[str, Any], origin: str, prefix: str = "") -> None:
    for key, value in extra.items():
        if key not in into and prefix.rstrip(".") not in FREE_KEYS:
            raise UserError(
                f"unknown key '{prefix}{key}' in {origin}{_nearest_key(f'{prefix}{key}')}; "
                "default_config.yaml explains every key"
            )
        if isinstance(value, Mapping) and isinstance(into.get(key), dict):
            _merge(into[key], value, origin, f"{prefix}{key}.")
        else:
            into[key] = value


def leaf_keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    """The dotted names of all keys that hold a value: `optimizer.lr`."""
    keys: list[str] = []
    for name, info in model.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            keys += leaf_keys(info.annotation, f"{prefix}{name}.")
        else:
            keys.append(prefix + name)
    return keys


def _nearest_key(key: str) -> str:
    """` (did you mean 'optimizer.lr'?)` for `lr`, `optimizer.lrr` and the like; else empty."""
    keys = leaf_keys(Config)
    last = key.rsplit(".", 1)[-1]
    matches = [known for known in keys if known.endswith(f".{last}")] or difflib.get_close_matches(key, keys, n=1)
    if not matches:
        by_name = {known.rsplit(".", 1)[-1]: known for known in reversed(keys)}
        matches = [by_name[name] for name in difflib.get_close_matches(last, by_name, n=1)]
    return f" (did you mean '{matches[0]}'?)" if matches else ""


def _describe(error: ValidationError) -> str:
    first = error.errors()[0]
    names = {part for key in leaf_keys(Config) for part in key.split(".")}
    key = ".".join(str(part) for part in first["loc"] if part in names)  # without pydantic's marks for unions
    message = first["msg"].removeprefix("Value error, ")
    if not key:
        return message
    if first["type"] == "missing":
        return f"the config lacks the key '{key}'"
    if first["type"] == "extra_forbidden":
        return f"unknown key '{key}'{_nearest_key(key)}; default_config.yaml explains every key"
    kinds = [problem["msg"] for problem in error.errors() if problem["loc"][:2] == first["loc"][:2]]
    allowed = [text.removeprefix("Input should be ").removeprefix("Value error, ") for text in kinds]
    return f"{key} is {_repr.repr(first['input'])}, but must be {' or '.join(dict.fromkeys(allowed))}"


def _reason(error: Exception) -> str:
    return error.strerror.lower() if isinstance(error, OSError) and error.strerror else str(error)
