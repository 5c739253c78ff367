"""Differences between two methods over the same seeds, and whether they can be told from chance."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

SIGNIFICANCE = 0.05  # of a whole table: an interval's level is 95 % or, after Holm's correction, more
DIGITS = 9  # of a difference in points: more are rounding errors, which would make equal differences unequal
ONE_SEED = "one seed, no claim"


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
    def mean(self) -> float:
        """The mean over the seeds; there is at least one."""
        return statistics.mean(self.values)

    @property
    def verdict(self) -> str:
        """What may be said of it."""
        if not self.values:
            return "not run"
        if self.low is None:
            return ONE_SEED if len(self.values) == 1 else "no spread, no claim"
        if self.low <= 0 <= self.high:
            return "not distinguishable at this budget"
        return "higher" if self.low > 0 else "lower"


@dataclass(frozen=True)
class Estimate:
    """A mean, its standard error and the degrees of freedom of that."""

    mean: float
    error: float
    freedom: int

    def p_value(self) -> float:
        """Two-sided, of the t-test against 0."""
        from scipy import stats

        return float(2 * stats.t.sf(abs(self.mean) / self.error, self.freedom))

    def interval(self, significance: float) -> tuple[float, float]:
        """Bounds of the mean at the level 1 - significance."""
        from scipy import stats

        half = float(stats.t.ppf(1 - significance / 2, self.freedom)) * self.error
        return self.mean - half, self.mean + half


def differences(
    pairs: Sequence[tuple[str, str, float | None]], found: Mapping[str, Mapping[int, float]], pooled: bool = False
) -> list[Difference]:
    """Return the difference of each pair, with the intervals of Holm's tests.

    Holm's method: the pairs are taken in the order of their p-values (paired t-test), and the k-th of m, counted from
    0, is tested at 0.05 / (m - k), until one is not significant; that one's level is then also the level of the rest.
    So the chance of any false finding in the table is 5 % at most. An interval has the level of its test: it holds 0
    exactly if the test finds no difference. Together the intervals do not have 95 % confidence: those of found
    differences are slightly too narrow for that.

    Args:
        pairs: (first, second, the paper's difference) by the names of methods.
        found: for each method the accuracy in percent of each seed.
        pooled: take the standard error from `seed_deviation`, for a table of many methods with few seeds.
    """
    results, estimates = [], {}
    deviation, freedom = (seed_deviation(found) if pooled else None) or (0.0, 0)
    for index, (first, second, reported) in enumerate(pairs):
        ours, theirs = found.get(first, {}), found.get(second, {})
        values = tuple(round(ours[seed] - theirs[seed], DIGITS) for seed in sorted(ours.keys() & theirs.keys()))
        results.append(Difference(first, second, values, reported))
        error = deviation * (2 / max(len(values), 1)) ** 0.5
        if not pooled and len(values) > 1:
            error, freedom = statistics.stdev(values) / len(values) ** 0.5, len(values) - 1
        if len(values) > 1 and error > 0:
            estimates[index] = Estimate(statistics.mean(values), error, freedom)
    tested = sorted(estimates, key=lambda index: estimates[index].p_value())
    level = None
    for rank, index in enumerate(tested):
        bounds = estimates[index].interval(level or SIGNIFICANCE / (len(tested) - rank))
        if level is None and bounds[0] <= 0 <= bounds[1]:
            level = SIGNIFICANCE / (len(tested) - rank)
        one = results[index]
        results[index] = Difference(one.first, one.second, one.values, one.reported, *bounds)
    return results


def seed_deviation(found: Mapping[str, Mapping[int, float]]) -> tuple[float, int] | None:
    """The standard deviation over seeds of a method, without what a seed does to all of them, and its degrees of
    freedom.

    An accuracy is taken as a part of the method, a part of the seed and a rest, whose deviation this is: (M - 1)(S - 1)
    degrees of freedom for M methods and the S seeds that all of them have. None for fewer than two of either.
    """
    run = [values for values in found.values() if values]
    seeds = sorted(set.intersection(*(set(values) for values in run))) if run else []
    if len(run) < 2 or len(seeds) < 2:
        return None
    table = np.array([[values[seed] for seed in seeds] for values in run])
    rest = table - table.mean(0) - table.mean(1, keepdims=True) + table.mean()
    freedom = (len(run) - 1) * (len(seeds) - 1)
    return float(round((np.square(rest).sum() / freedom) ** 0.5, DIGITS)), freedom
