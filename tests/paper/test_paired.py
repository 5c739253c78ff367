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
    """Shares of 360 images, whose differences are equal but for rounding."""
    found = {"a": {seed: 100 * (200 + 7 * seed) / 360 for seed in range(5)}}
    found["b"] = {seed: 100 * (206 + 7 * seed) / 360 for seed in range(5)}
    better, same = differences([("b", "a", None), ("a", "a", None)], found)
    assert better.low is None and better.verdict == same.verdict == "no spread, no claim"
    (pooled,) = differences([("b", "a", None)], found, pooled=True)
    assert pooled.low is None and pooled.verdict == "no spread, no claim"


def test_the_deviation_of_a_seed_is_the_rest_of_a_model_with_methods_and_seeds():
    found = accuracies(np.random.default_rng(3), 5)
    del found["b"][2]  # only the seeds of all methods count
    seeds = (0, 1, 3, 4)
    factors = [
        [float(a == name) for a in NAMES] + [float(s == seed) for s in seeds] for name in NAMES for seed in seeds
    ]
    values = np.array([found[name][seed] for name in NAMES for seed in seeds])
    rest = values - np.array(factors) @ np.linalg.lstsq(np.array(factors), values, rcond=None)[0]
    deviation, freedom = seed_deviation(found)
    assert deviation == pytest.approx((np.square(rest).sum() / 9) ** 0.5, abs=1e-8) and freedom == 9
    assert seed_deviation({"a": found["a"]}) is None and seed_deviation({}) is None
    assert seed_deviation({"a": {0: 1.0}, "b": {0: 2.0}}) is None


def test_two_methods_pooled_have_the_paired_interval_and_more_methods_a_narrower_one():
    found = accuracies(np.random.default_rng(5), 3)
    two = {name: found[name] for name in "ac"}
    (paired,), (pooled,) = (differences([("c", "a", None)], two, pooled=how) for how in (False, True))
    assert (pooled.low, pooled.high) == pytest.approx((paired.low, paired.high), rel=1e-6)
    (more,) = differences([("c", "a", None)], found, pooled=True)
    deviation, freedom = seed_deviation(found)
    half = stats.t.ppf(0.975, freedom) * deviation * (2 / 3) ** 0.5
    assert (more.low, more.high) == pytest.approx((more.mean - half, more.mean + half))
    assert freedom == 6 and more.verdict == "higher"


def test_a_pooled_table_finds_something_where_nothing_is_in_one_of_twenty():
    """Of 400 tables of 12 equal methods with two seeds that differ by chance only; 5 % would be 20."""
    generator = np.random.default_rng(7)
    pairs, wrong = [(str(number), "0", None) for number in range(1, 12)], 0
    for _ in range(400):
        luck = generator.normal(0, 2, 2)
        found = {str(number): dict(enumerate(luck + generator.normal(60, 0.5, 2))) for number in range(12)}
        wrong += any(one.verdict != "not distinguishable at this budget" for one in differences(pairs, found, True))
    assert 2 <= wrong <= 28, wrong
