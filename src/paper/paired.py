"""Differences between two methods over the same seeds, and whether they can be told from chance."""

import statistics
from collections.abc import Mapping
from dataclasses import dataclass

SIGNIFICANCE = 0.05  # of a whole table: an interval's level is 95 % or, after Holm's correction, more


@dataclass(frozen=True)
class Difference:
    """Accuracy of `first` less that of `second`, in percentage points: `values` has one for each common seed.

    `low` and `high` bound the mean's interval by Student's t; None for fewer than two seeds. `reported`: the paper's.
    """

    first: str
    second: str
    values: tuple[float, ...]
    reported: float | None = None
    low: float | None = None
    high: float | None = None

    @property
    def verdict(self) -> str:
        """What may be said of it."""
        if self.low is None:
            return "one seed, no claim" if self.values else "not run"
        if self.low <= 0 <= self.high:
            return "not distinguishable at this budget"
        return "higher" if self.low > 0 else "lower"


def differences(
    pairs: list[tuple[str, str, float | None]], found: Mapping[str, Mapping[int, float]]
) -> list[Difference]:
    """Return the difference of each pair, with intervals that hold together for the whole table.

    Holm's method: the pairs are taken in the order of their p-values (paired t-test), and the k-th of m, counted from
    0, is tested at 0.05 / (m - k), until one is not significant; that one's level is then also the level of the rest.
    An interval has the level of its test, so it holds 0 exactly if the test finds no difference.

    Args:
        pairs: (first, second, the paper's difference) by the names of methods.
        found: for each method the accuracy in percent of each seed.
    """
    results = []
    for first, second, reported in pairs:
        ours, theirs = found.get(first, {}), found.get(second, {})
        seeds = sorted(ours.keys() & theirs.keys())
        results.append(Difference(first, second, tuple(ours[seed] - theirs[seed] for seed in seeds), reported))
    tested = sorted(
        (index for index, one in enumerate(results) if len(one.values) > 1), key=lambda i: p_value(results[i].values)
    )
    level = None
    for rank, index in enumerate(tested):
        one = results[index]
        if level is None:
            bounds = interval(one.values, current := SIGNIFICANCE / (len(tested) - rank))
            if bounds[0] <= 0 <= bounds[1]:
                level = current
        else:
            bounds = interval(one.values, level)
        results[index] = Difference(one.first, one.second, one.values, one.reported, *bounds)
    return results


def p_value(values: tuple[float, ...]) -> float:
    """Two-sided p-value of the one-sample t-test against 0; equal values: 0, or 1 if they are 0."""
    from scipy import stats

    if len(set(values)) == 1:
        return float(values[0] == 0)
    return float(stats.ttest_1samp(values, 0).pvalue)


def interval(values: tuple[float, ...], significance: float) -> tuple[float, float]:
    """The interval of the mean at the level 1 - significance, by Student's t."""
    from scipy import stats

    mean, error = statistics.mean(values), statistics.stdev(values) / len(values) ** 0.5
    half = float(stats.t.ppf(1 - significance / 2, len(values) - 1)) * error
    return mean - half, mean + half
