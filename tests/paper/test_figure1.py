"""The spectra of figure 1, against closed forms and adaptive quadrature."""

import csv
import os
import subprocess
import sys

import numpy as np
import pytest
from scipy.integrate import quad

from src import cli
from src.paper import __main__ as paper
from src.paper import figure1
from tests.helpers import processes

ORDERS = 2 * np.arange(figure1.HARMONICS) + 1


def spectrum(name: str) -> np.ndarray:
    return figure1.coefficients(figure1.FUNCTIONS[name][0])


def test_sign_has_the_square_waves_coefficients():
    np.testing.assert_allclose(spectrum("sign"), 4 / (np.pi * ORDERS), rtol=1e-4)


def test_the_sine_combination_has_them_up_to_n_and_none_beyond():
    expected = np.where(np.arange(figure1.HARMONICS) <= figure1.N, 4 / (np.pi * ORDERS), 0)
    np.testing.assert_allclose(spectrum("sine combination"), expected, atol=1e-6)


@pytest.mark.parametrize("name", ["tanh", "SignSwish"])
def test_the_others_against_quadrature(name):
    """Odd, and mirrored at T/4: b_i = 8/T times the integral of f(t) sin((2i+1) omega t) over 0 .. T/4."""
    function, period = figure1.FUNCTIONS[name][0], 2 * np.pi / figure1.OMEGA
    for index in (0, 1, 9, 20):
        order = ORDERS[index] * figure1.OMEGA
        integral = quad(lambda t, order=order: float(function(t)) * np.sin(order * t), 0, period / 4, limit=400)[0]
        np.testing.assert_allclose(spectrum(name)[index], 8 / period * integral, atol=1e-6)


def test_sign_swish_is_the_antiderivative_of_the_estimator():
    t = np.linspace(-3, 3, 1201)
    b = figure1.BETA
    derivative = b * (2 - b * t * np.tanh(b * t / 2)) / (1 + np.cosh(b * t))
    slope = np.gradient(figure1.sign_swish(t), t)
    np.testing.assert_allclose(slope[1:-1], derivative[1:-1], atol=2e-3)


def test_the_command_writes_page_table_and_figure(tmp_path, capsys):
    assert cli.run(paper.main, ["figure1", "--output_dir", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out.count("figure1.") == 3
    with (tmp_path / "out/figure1.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == figure1.HARMONICS
    assert float(rows[0]["sign"]) == pytest.approx(4 / np.pi, rel=1e-6)
    page = (tmp_path / "out/figure1.md").read_text()
    assert "| sine combination |" in page and "(figure1.png)" in page
    assert (tmp_path / "out/figure1.png").stat().st_size > 50_000


def test_figures_need_no_interactive_backend(tmp_path):
    """In a notebook's environment MPLBACKEND names a backend that only the notebook has."""
    environment = {**os.environ, "MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    command = [sys.executable, "-m", "src.paper", "figure1", "--output_dir", str(tmp_path)]
    done = subprocess.run(command, cwd=processes.ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "figure1.png").stat().st_size > 50_000
