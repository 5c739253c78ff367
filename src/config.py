"""Turn a YAML file and the command line into one typed, validated, frozen Config.

Keys, types and ranges are checked here, before MindSpore is imported. Names of networks, estimators and quantizers are
checked by their registries right after the import. default_config.yaml explains every key.
"""

import difflib
import functools
import os
import re
import reprlib
from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    Strict,
    ValidationError,
    model_validator,
)

from .errors import UserError
from .migration import FORMAT, RENAMED, require_known_format

DEFAULT_CONFIG = Path(__file__).resolve().parent / "default_config.yaml"  # as installed by pip
if not DEFAULT_CONFIG.is_file():
    DEFAULT_CONFIG = DEFAULT_CONFIG.parent.parent / DEFAULT_CONFIG.name  # in the repository
# The network and the estimators check what is below these.
FREE_KEYS = ("network.options", "network.estimator_options", "network.weight_estimator_options")

# What may change when a run is resumed: where and how it runs, but nothing that its result depends on.
RESUMABLE = {
    "data.path",
    "data.download",
    "data.num_parallel_workers",
    "runtime.device_target",
    "runtime.distribute",
    "train.save_every_steps",
    "train.keep",
    "train.on_write_error",
    "train.sink_size",
}

MAX_CONFIG_BYTES = 100_000  # bytes of a config
MAX_BATCH = 16_384  # images per step of one worker
MIN_IMAGE_SIZE, MAX_IMAGE_SIZE = 4, 1024  # pixels per side
MAX_NUMBER = 3e38  # about float32's
_repr = reprlib.Repr()  # of the value in an error, shortened
_repr.maxstring = _repr.maxother = _repr.maxlong = 100


def _usable_text(value: str) -> str:
    if not value.strip() or "\0" in value:
        raise ValueError("text that is not empty and holds no NUL")
    return value


def _usable_number(value: float) -> float:
    if abs(value) > MAX_NUMBER:
        raise ValueError(f"of a size up to {MAX_NUMBER}")
    return value


Text = Annotated[str, AfterValidator(_usable_text)]
PathText = Annotated[Text, AfterValidator(os.path.expanduser)]  # of a file or folder; ~ is the home folder
Integer = Annotated[int, Strict()]
Number = Annotated[float, Strict(), Field(allow_inf_nan=False), AfterValidator(_usable_number)]
Flag = Annotated[bool, Strict()]
Positive = Annotated[Integer, Field(ge=1)]
Options = dict[str, Any]


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
    path: PathText
    download: Flag
    batch_size: Annotated[Integer, Field(ge=1, le=MAX_BATCH)]
    num_parallel_workers: Positive
    augment: Flag
    image_size: Annotated[Integer, Field(ge=MIN_IMAGE_SIZE, le=MAX_IMAGE_SIZE)] | None
    holdout: Annotated[Integer, Field(ge=0)]


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
    init: Text
    in_forward: Flag


class NSchedule(Section):
    setting: Integer
    n_p: Annotated[Integer, Field(ge=1, le=1000)]
    n_s: Annotated[Integer, Field(ge=1, le=500)]


class AlphaSchedule(Section):
    name: Text
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
    eval_every: Positive
    eval_test: Flag
    on_write_error: Literal["stop", "go_on"]
    sink_size: Positive | None

    def steps(self, available: int) -> int:
        """Steps of an epoch, if the data give `available` of them."""
        return min(self.steps_per_epoch or available, available)


class Config(Section):
    seed: Annotated[Integer, Field(ge=0, le=2**31 - 1)]
    output_dir: PathText | None
    init_checkpoint: PathText | None
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
    def _min_lr_is_reached(self) -> "Config":
        minimum, lr = self.scheduler.min_lr, self.optimizer.lr
        if minimum > 0 and self.scheduler.name == "constant":
            raise ValueError(
                f"scheduler.min_lr is {minimum}, but a constant learning rate has no end: leave it 0.0, or choose "
                "another scheduler.name"
            )
        if minimum > lr and self.optimizer.lr_for_batch is None:
            raise ValueError(f"scheduler.min_lr is {minimum}, but must be at most optimizer.lr, which is {lr}")
        return self

    @model_validator(mode="after")
    def _some_images_are_evaluated(self) -> "Config":
        if not self.train.eval_test and not self.data.holdout:
            raise ValueError(
                "train.eval_test is false, but data.holdout is 0: keep training images to evaluate instead"
            )
        return self

    @model_validator(mode="after")
    def _warmup_ends_in_time(self) -> "Config":
        if self.scheduler.warmup_epochs >= self.train.epochs and self.scheduler.warmup_epochs > 0:
            raise ValueError(
                f"scheduler.warmup_epochs is {self.scheduler.warmup_epochs}, but must be less than "
                f"train.epochs, which is {self.train.epochs}"
            )
        return self

    def require_device_can(self) -> None:
        """UserError if the config asks for what MindSpore supports only on other devices. Only training needs this: its
        checkpoints can be evaluated and exported on any device."""
        for key, value, allowed in (
            ("runtime.device_target", self.runtime.device_target, ("GPU", "Ascend")),
            ("runtime.mode", self.runtime.mode, ("graph",)),
        ):
            if self.train.sink_size and value not in allowed:
                raise UserError(
                    f"train.sink_size is {self.train.sink_size}, but {key} is {value}, which has no data sinking: "
                    f"leave train.sink_size null, or choose {' or '.join(allowed)}"
                )
        if self.runtime.sync_batch_norm and self.runtime.device_target != "Ascend":
            raise UserError(
                "runtime.sync_batch_norm is true, which MindSpore supports only on Ascend, but "
                f"runtime.device_target is {self.runtime.device_target}: leave it false, or train on Ascend"
            )

    @property
    def has_noise(self) -> bool:
        """Whether binary layers get noise modules. With an alpha of 0 they would do nothing."""
        return self.noise.enabled and self.schedules.alpha.start > 0

    def to_yaml(self) -> str:
        """The text of a run folder's config.yaml, with the format's number first."""
        return yaml.dump({"format": FORMAT, **self.model_dump()}, Dumper=_Dumper, sort_keys=False)


# Words and numbers as YAML 1.2 reads them. YAML 1.1, PyYAML's own, takes 010 for 8, 1:30 for 90, `no` for false.
_SCALARS = {
    "null": re.compile(r"(?:~|null|Null|NULL|)$"),
    "bool": re.compile(r"(?:true|True|TRUE|false|False|FALSE)$"),
    "int": re.compile(r"[-+]?[0-9]+$"),
    "float": re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?$"),
}


class _Loader(yaml.SafeLoader):
    """A loader of plain data: null, true, false, decimal numbers, text, lists and mappings.

    It refuses a key given twice, of which YAML would silently keep the last, and aliases, of which a few make a value
    larger than any memory.
    """

    yaml_implicit_resolvers: dict = {}
    yaml_constructors: dict = {}

    def compose_node(self, parent, index):
        if self.check_event(yaml.AliasEvent):
            alias = self.peek_event()
            raise yaml.composer.ComposerError(
                None, None, f"the alias *{alias.anchor} is not supported, write its value out", alias.start_mark
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=deep)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} is given twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes text that YAML 1.1 or 1.2 would read as another type."""


for _tag, _pattern in _SCALARS.items():
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", _pattern, None)
    _Dumper.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", _pattern, None)
for _tag, _constructor in {
    "null": yaml.SafeLoader.construct_yaml_null,
    "bool": yaml.SafeLoader.construct_yaml_bool,
    "int": lambda loader, node: int(loader.construct_scalar(node)),
    "float": lambda loader, node: float(loader.construct_scalar(node)),
    "str": yaml.SafeLoader.construct_yaml_str,
    "seq": yaml.SafeLoader.construct_yaml_seq,
    "map": yaml.SafeLoader.construct_yaml_map,
}.items():
    _Loader.add_constructor(f"tag:yaml.org,2002:{_tag}", _constructor)
_Loader.add_constructor(None, yaml.SafeLoader.construct_undefined)


def _parse_yaml(text: str) -> Any:
    """The value of a YAML text. ValueError with the reason if it is not YAML."""
    try:
        return yaml.load(text, Loader=_Loader)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    except (yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError) as error:  # PyYAML raises all of these
        raise ValueError(" ".join(str(error).split())) from error


def read_yaml(path: str | Path) -> dict:
    """The mapping in a YAML file. UserError if it is missing, unreadable, too large, or not a mapping in YAML."""
    try:
        with Path(path).open("rb") as file:
            text = file.read(MAX_CONFIG_BYTES + 1).decode("utf-8")  # the path may be an endless device
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read the config {path}: {_reason(error)}") from error
    if len(text) > MAX_CONFIG_BYTES:
        raise UserError(f"{path} is not a config: it has more than {MAX_CONFIG_BYTES:,} bytes")
    try:
        content = _parse_yaml(text)
    except ValueError as error:
        raise UserError(f"the config {path} is not valid YAML: {error}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UserError(f"the config {path} holds a {type(content).__name__}, but must hold keys and values")
    return content


@functools.cache
def _defaults() -> dict:
    return read_yaml(DEFAULT_CONFIG)


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
    content = deepcopy(_defaults())
    if isinstance(source, Mapping):
        _merge(content, source, "the stored config")
    elif source is not None:
        given = read_yaml(source)
        if "format" in given:  # another run's config.yaml
            require_known_format(given.pop("format"), f"the config {source}")
        _merge(content, given, str(source))
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


def choices(key: str) -> tuple[str, ...]:
    """The only values that a key takes, as they are written; empty if there are others."""
    annotation = annotation_of(key)
    if annotation is bool:
        return ("true", "false")
    return get_args(annotation) if get_origin(annotation) is Literal else ()


def parse_override(key: str, text: str) -> Any:
    """The value of `--key text`: the text itself if the config wants text, else what it is in YAML."""
    wanted = annotation_of(key)
    if wanted is str or (text != "null" and any(kind in get_args(wanted) for kind in (Text, PathText))):
        return text
    try:
        return _parse_yaml(text)
    except ValueError as error:
        raise UserError(f"--{key} is {_repr.repr(text)}, which is not a valid YAML value: {error}") from error


def _merge(into: dict, extra: Mapping[str, Any], origin: str, prefix: str = "") -> None:
    for key, value in extra.items():
        full = f"{prefix}{key}"
        if full in RENAMED:
            raise UserError(f"the key '{full}' in {origin} is now called '{RENAMED[full]}': rename it")
        if key not in into and prefix.rstrip(".") not in FREE_KEYS:
            raise UserError(
                f"unknown key '{full}' in {origin}{_key_hint(str(key), full)}; default_config.yaml explains every key"
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


@dataclass(frozen=True)
class Explanation:
    """What default_config.yaml tells about a key or a section: its comment, and the default as it is written."""

    meaning: str
    default: str


def explanations() -> dict[str, Explanation]:
    """The comments of default_config.yaml by dotted key or section; one on a line of its own continues the last."""
    found: dict[str, Explanation] = {}
    sections: list[str] = []
    for line in DEFAULT_CONFIG.read_text(encoding="utf-8").splitlines():
        if match := re.match(r"( *)(\w+): *(.*?) *(?:# *(.*))?$", line):
            indentation, name, default, comment = match.groups()
            sections[len(indentation) // 2 :] = [name]
            found[".".join(sections)] = Explanation(comment or "", default)
        elif (match := re.match(r" +# *(.*)$", line)) and sections:
            last = found[".".join(sections)]
            found[".".join(sections)] = replace(last, meaning=f"{last.meaning} {match.group(1)}")
    return found


def similar_keys(key: str) -> list[str]:
    """The keys that a wrong one may mean: those of the same last part, else the most similar one."""
    keys = leaf_keys(Config)
    last = key.rsplit(".", 1)[-1]
    same = [known for known in keys if known.rsplit(".", 1)[-1] == last]
    if same:
        return same
    if close := difflib.get_close_matches(key, keys, n=1):
        return close
    by_name = {known.rsplit(".", 1)[-1]: known for known in reversed(keys)}
    return [by_name[name] for name in difflib.get_close_matches(last, by_name, n=1)]


def did_you_mean(names: Iterable[str]) -> str:
    """` (did you mean a or b?)`; empty without names."""
    listed = list(names)
    return f" (did you mean {' or '.join(listed)}?)" if listed else ""


def _key_hint(key: str, full: str) -> str:
    if key in leaf_keys(Config):  # in a file: `optimizer.lr: 0.1`
        *sections, last = key.split(".")
        nested = f"{last}: VALUE"
        for section in reversed(sections):
            nested = f"{section}: {{{nested}}}"
        return f" (a file has sections: write {nested})"
    return did_you_mean(f"'{name}'" for name in similar_keys(full))


def _describe(error: ValidationError) -> str:
    first = error.errors()[0]
    names = {part for key in leaf_keys(Config) for part in key.split(".")}
    key = ".".join(str(part) for part in first["loc"] if part in names)  # without pydantic's marks for unions
    message = first["msg"].removeprefix("Value error, ")
    if not key:
        return message
    kinds = [problem["msg"] for problem in error.errors() if problem["loc"][:2] == first["loc"][:2]]
    allowed = [text.removeprefix("Input should be ").removeprefix("Value error, ") for text in kinds]
    allowed = ["true or false" if text == "a valid boolean" else text for text in allowed]
    return f"{key} is {_repr.repr(first['input'])}, but must be {' or '.join(dict.fromkeys(allowed))}"


def _reason(error: Exception) -> str:
    return error.strerror.lower() if isinstance(error, OSError) and error.strerror else str(error)
