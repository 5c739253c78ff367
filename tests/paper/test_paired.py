"""Paired differences against scipy's own intervals, and Holm's method against adjusted p-values."""

import numpy as np
import pytest
from scipy import stats

from src.paper.paired import differences, seed_deviation

NAMES = ("a", "b", "c", "d")


def accuracies(generator: np.random.Generator, seeds: int) -> dict[str, dict[int, float]]:
    """Four methods that share the luck of a seed; b is a little and c much better than a."""
    luck = generator.normal(60, 3, seeds)
    means = dict(zip(NAMES, (0, 0.4, 1.5, 0), strict=True))
    return {name: dict(enumerate(luck + mean + generator.normal(0, 0.5, seeds))) for name, mean in means.items()}


def test_one_pair_has_the_interval_of_the_paired_t_test():
    found = accuracies(np.random.default_rng(0), 6)
    (result,) = differences([("c", "a", 1.39)], found)
    expected = stats.ttest_rel(list(found["c"].values()), list(found["a"].values())).confidence_interval(0.95)
    assert (result.low, result.high) == pytest.approx((expected.low, expected.high))
    assert result.reported == 1.39 and result.verdict == "higher"
    (other,) = differences([("a", "c", None)], found)
    assert other.verdict == "lower" and other.high == pytest.approx(-result.low)


@pytest.mark.parametrize("seed", range(20))
def test_a_table_decides_as_holms_adjusted_p_values(seed):
    found = accuracies(np.random.default_rng(seed), 4)
    pairs = [("b", "a", None), ("c", "a", None), ("d", "a", None), ("c", "b", None)]
    p = [stats.ttest_rel(*(list(found[name].values()) for name in pair[:2])).pvalue for pair in pairs]
    adjusted, largest = {}, 0.0
    for rank, index in enumerate(np.argsort(p)):
        adjusted[index] = largest = max(largest, (len(p) - rank) * p[index])
    results = differences(pairs, found)
    assert [result.verdict in ("higher", "lower") for result in results] == [adjusted[i] <= 0.05 for i in range(len(p))]


def test_only_common_seeds_are_compared():
    found = {"a": {0: 60.0, 1: 61.0}, "b": {1: 62.5, 7: 99.0}, "c": {}}
    one, none, unknown = differences([("b", "a", None), ("b", "c", None), ("x", "a", None)], found)
    assert one.values == (1.5,) and one.verdict == "one seed, no claim"
    assert none.verdict == unknown.verdict == "not run"


def test_equal_differences_have_no_spread():
    found = {"a": {0: 60.0, 1: 61.0}, "b": {0: 61.0, 1: 62.0}}
    better, same = differences([("b", "a", None), ("a", "a", None)], found)
    assert better.low is None and better.verdict == same.verdict == "no spread, no claim"


def test_the_deviation_of_a_seed_is_pooled_over_methods():
    generator = np.random.default_rng(0)
    found = {name: dict(enumerate(generator.normal(60, 3, seeds))) for name, seeds in (("a", 5), ("b", 3), ("c", 1))}
    a, b = (np.var(list(found[name].values()), ddof=1) for name in "ab")
    assert seed_deviation(found) == pytest.approx(((4 * a + 2 * b) / 6) ** 0.5)
    assert seed_deviation({"c": {0: 1.0}}) is None
