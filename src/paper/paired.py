"""Differences between two methods over the same seeds, and whether they can be told from chance."""

import statistics
from collections.abc import Mapping
from dataclasses import dataclass

SIGNIFICANCE = 0.05  # of a whole table: an interval's level is 95 % or, after Holm's correction, more


@dataclass(frozen=True)
class Difference:
    """Accuracy of `first` less that of `second`, in percentage points: `values` has one for each common seed.

    `low` and `high` bound the mean's interval by Student's t; None without a test. `reported`: the paper's.
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
        if not self.values:
            return "not run"
        if self.low is None:
            return "one seed, no claim" if len(self.values) == 1 else "no spread, no claim"
        if self.low <= 0 <= self.high:
            return "not distinguishable at this budget"
        return "higher" if self.low > 0 else "lower"


def differences(
    pairs: list[tuple[str, str, float | None]], found: Mapping[str, Mapping[int, float]]
) -> list[Difference]:
    """Return the difference of each pair, with the intervals of Holm's tests.

    Holm's method: the pairs are taken in the order of their p-values (paired t-test), and the k-th of m, counted from
    0, is tested at 0.05 / (m - k), until one is not significant; that one's level is then also the level of the rest.
    So the chance of any false finding in the table is 5 % at most. An interval has the level of its test: it holds 0
    exactly if the test finds no difference. The intervals do not hold all at once with 95 %, as those of found
    differences are a little narrower than that would take.

    Args:
        pairs: (first, second, the paper's difference) by the names of methods.
        found: for each method the accuracy in percent of each seed.
    """
    results = unjudged(pairs, found)
    tested = sorted(
        (index for index, one in enumerate(results) if len(set(one.values)) > 1),
        key=lambda i: p_value(results[i].values),
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


def unjudged(pairs: list[tuple[str, str, float | None]], found: Mapping[str, Mapping[int, float]]) -> list[Difference]:
    """The difference of each pair in the seeds that both have, without intervals. Arguments: as for `differences`."""
    results = []
    for first, second, reported in pairs:
        ours, theirs = found.get(first, {}), found.get(second, {})
        seeds = sorted(ours.keys() & theirs.keys())
        results.append(Difference(first, second, tuple(ours[seed] - theirs[seed] for seed in seeds), reported))
    return results


def seed_deviation(found: Mapping[str, Mapping[int, float]]) -> float | None:
    """The standard deviation over seeds, pooled over the methods that have at least two; None if none has."""
    groups = [list(values.values()) for values in found.values() if len(values) > 1]
    if not groups:
        return None
    squares = sum((len(group) - 1) * statistics.variance(group) for group in groups)
    return (squares / sum(len(group) - 1 for group in groups)) ** 0.5


def p_value(values: tuple[float, ...]) -> float:
    """Two-sided p-value of the one-sample t-test against 0. The values are not all equal."""
    from scipy import stats

    return float(stats.ttest_1samp(values, 0).pvalue)


def interval(values: tuple[float, ...], significance: float) -> tuple[float, float]:
    """The interval of the mean at the level 1 - significance, by Student's t."""
    from scipy import stats

    mean, error = statistics.mean(values), statistics.stdev(values) / len(values) ** 0.5
    half = float(stats.t.ppf(1 - significance / 2, len(values) - 1)) * error
    return mean - half, mean + half
