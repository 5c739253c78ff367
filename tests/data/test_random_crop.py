"""Where random crops lie."""

import numpy as np

from src.data.random_crop import random_box


def test_random_crops_have_the_area_and_aspect_ratio_of_the_recipe():
    width, height = 500, 375
    areas, ratios, lefts = [], [], []
    for seed in range(2000):
        left, top, right, bottom = random_box(width, height, np.random.default_rng(seed))
        assert 0 <= left < right <= width and 0 <= top < bottom <= height
        areas.append((right - left) * (bottom - top) / (width * height))
        ratios.append((right - left) / (bottom - top))
        lefts.append(left / max(width - right + left, 1))
    assert 0.075 < min(areas) < 0.1 and 0.9 < max(areas) <= 1 and 0.74 < min(ratios) < max(ratios) < 1.35
    assert abs(np.mean(lefts) - 0.5) < 0.03
