"""Lookup by name for estimators, quantizers and networks, and checks of values. Errors name what is allowed."""

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

MAX_NUMBER = 3e38  # about the largest float32


def nearest(word: str, allowed) -> str:
    """` (did you mean 'x'?)` for the entry of `allowed` that is most similar to `word`; empty if none is similar."""
    matches = difflib.get_close_matches(str(word), [str(name) for name in allowed], n=1)
    return f" (did you mean {matches[0]!r}?)" if matches else ""


def lookup(kind: str, table: Mapping[str, Any], name: str) -> Any:
    """`table[name]`, or a ValueError with the kind, the value seen, the nearest name and all allowed names."""
    if not isinstance(name, str) or name not in table:
        raise ValueError(f"unknown {kind} {name!r}{nearest(name, table)}; allowed are {', '.join(sorted(table))}")
    return table[name]


def name_of(table: Mapping[str, type], thing: Any) -> str:
    """The name in `table` of the class of `thing`, or the name of the class if it is not in the table."""
    return next((name for name, kind in table.items() if type(thing) is kind), type(thing).__name__)


def build(
    kind: str, table: Mapping[str, Callable], name: str, options: Mapping[str, Any], arguments: Mapping[str, Any] = {}
) -> Any:
    """`table[name](**arguments, **options)`; ValueError for an unknown name or option. `arguments` do not count as
    options."""
    factory = lookup(kind, table, name)
    require_known_options(kind, name, factory, options, arguments)
    return factory(**arguments, **options)


def require_known_options(
    kind: str, name: str, factory: Callable, options: Mapping[str, Any], arguments: Iterable[str] = ()
) -> None:
    """ValueError if `factory` does not take one of the options. `arguments` are parameters that are not options."""
    allowed = [parameter for parameter in inspect.signature(factory).parameters if parameter not in arguments]
    for option in options:
        if option not in allowed:
            known = ", ".join(allowed) or "none"
            raise ValueError(
                f"unknown option {option!r} of {kind} {name!r}{nearest(option, allowed)}; allowed: {known}"
            )


def require(condition: bool, name: str, value: Any, allowed: str) -> None:
    """Raise ValueError `name is value, but must be allowed` unless `condition` holds."""
    if not condition:
        raise ValueError(f"{name} is {value!r}, but must be {allowed}")


def require_integer(name: str, value: Any, minimum: int, maximum: int | None = None) -> None:
    """ValueError unless `value` is an integer from `minimum` to `maximum`. True does not count as an integer."""
    allowed = f"an integer of at least {minimum}" if maximum is None else f"an integer from {minimum} to {maximum}"
    fits = isinstance(value, int) and not isinstance(value, bool) and value >= minimum
    fits = fits and (maximum is None or value <= maximum)
    require(fits, name, value, allowed)


def require_number(name: str, value: Any) -> None:
    """ValueError unless `value` is a finite number. True does not count as a number."""
    require(is_number(value), name, value, "a finite number")


def is_number(value: Any) -> bool:
    """Whether `value` is a number that float32 can hold. True does not count as a number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= MAX_NUMBER


def require_options(name: str, value: Any) -> None:
    """ValueError unless `value` is a mapping of option names to values."""
    fits = isinstance(value, Mapping) and all(isinstance(key, str) for key in value)
    require(fits, name, value, "options by their names, as {'omega': 0.1}")
