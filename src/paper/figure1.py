"""Figure 1 of the paper: sign and three approximations, in space and in frequency; no training.

Each function is taken over one period T = 2 pi / omega of the square wave, odd about 0 and mirrored at T/4, as the
square wave is. So it is a series of sines at the odd harmonics, sum_i b_i sin((2i+1) omega t), and the error of an
approximation is the difference of the coefficients: sign has b_i = 4 / (pi (2i+1)) (Eq. 6), the sine combination has
the same up to i = n and 0 beyond (Eq. 8), the others differ everywhere.
"""

import csv
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ..binary.fourier import partial_sum
from ..files import write_text
from .plots import new_figure, save

OMEGA, N = 0.1, 9  # as at the start of the default recipe
BETA = 5.0  # of SignSwish in BNN+
HARMONICS = 40  # number of odd harmonics shown
SAMPLES = 1 << 16  # in a period; sampling changes a coefficient by less than 1e-4


def sign_swish(t: np.ndarray) -> np.ndarray:
    """2 sigmoid(b t) (1 + b t (1 - sigmoid(b t))) - 1 (Darabi et al., BNN+, 2018)."""
    u = np.clip(BETA * t, -60, 60)
    sigmoid = 1 / (1 + np.exp(-u))
    return 2 * sigmoid * (1 + u * (1 - sigmoid)) - 1


FUNCTIONS: dict[str, tuple[Callable[[np.ndarray], np.ndarray], str]] = {
    "sign": (lambda t: np.where(t > 0, 1.0, -1.0), "black"),
    "sine combination": (lambda t: partial_sum(t, N, OMEGA), "tab:blue"),
    "tanh": (np.tanh, "tab:green"),
    "SignSwish": (sign_swish, "tab:orange"),
}


def coefficients(function: Callable[[np.ndarray], np.ndarray], count: int = HARMONICS) -> np.ndarray:
    """Return b_0 .. b_(count-1), the amplitudes of sin((2i+1) omega t), float64, by the trapezoidal rule."""
    phase = (np.arange(SAMPLES) + 0.5) * (2 * np.pi / SAMPLES)  # omega t; no sample at the jumps
    folded = np.arcsin(np.sin(phase)) / OMEGA  # t, mirrored at T/4
    orders = 2 * np.arange(count) + 1
    return 2 / SAMPLES * (function(folded) @ np.sin(np.outer(phase, orders)))


def write(output: Path) -> list[Path]:
    """Write figure1.md, figure1.csv and figure1.png; return their paths."""
    spectra = {name: coefficients(function) for name, (function, _) in FUNCTIONS.items()}
    files = [output / f"figure1.{suffix}" for suffix in ("md", "csv", "png")]
    write_text(files[0], _markdown(spectra))
    write_text(files[1], _csv(spectra))
    _draw(spectra, files[2])
    return files


def _draw(spectra: dict[str, np.ndarray], path: Path) -> None:
    figure = new_figure(14, 4)
    space, frequency, difference = figure.subplots(1, 3)
    t = np.linspace(-4, 4, 2001)
    orders = 2 * np.arange(HARMONICS) + 1
    for name, (function, color) in FUNCTIONS.items():
        space.plot(t, function(t), color=color, label=name)
        frequency.semilogy(orders, np.maximum(np.abs(spectra[name]), 1e-7), ".-", color=color, label=name)
        if name != "sign":
            lost = np.maximum(np.abs(spectra[name] - spectra["sign"]), 1e-7)
            difference.semilogy(orders, lost, ".-", color=color, label=f"{name} - sign")
    titles = (
        (space, f"In space ($\\omega$ = {OMEGA}, n = {N})", "t", "lower right"),
        (frequency, "Amplitudes of the harmonics", "harmonic, in units of $\\omega$", "upper right"),
        (difference, "Their difference to sign's", "harmonic, in units of $\\omega$", "lower right"),
    )
    for panel, title, label, legend in titles:
        panel.set_title(title)
        panel.set_xlabel(label)
        panel.grid(alpha=0.3)
        panel.legend(fontsize=8, loc=legend)
    for panel in (frequency, difference):
        panel.set_ylim(5e-8, 30)
    figure.suptitle("Figure 1: sign and its approximations (values below 1e-7 are drawn there)", fontsize=10)
    save(figure, path)


def _markdown(spectra: dict[str, np.ndarray]) -> str:
    within = slice(0, N + 1)
    rows = "\n".join(
        f"| {name} | {_largest(spectra[name][within], spectra['sign'][within])} "
        f"| {_largest(spectra[name][N + 1 :], spectra['sign'][N + 1 :])} |"
        for name in FUNCTIONS
        if name != "sign"
    )
    return f"""# Figure 1: sign and its approximations, in space and in frequency

One period of the square wave, omega = {OMEGA}; the sine combination has n = {N}, SignSwish beta = {BETA:g}.
No training. The largest difference to sign's amplitudes:

| approximation | up to harmonic {2 * N + 1} | beyond, up to {2 * HARMONICS - 1} |
| --- | --- | --- |
{rows}

The paper: the sine combination keeps sign's low frequencies exactly and drops the rest; tanh and SignSwish differ at
every frequency.

![Figure 1](figure1.png)

    python -m src.paper figure1
"""


def _largest(found: np.ndarray, wanted: np.ndarray) -> str:
    return f"{np.abs(found - wanted).max():.1e}"


def _csv(spectra: dict[str, np.ndarray]) -> str:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["harmonic", *spectra])
    for index in range(HARMONICS):
        writer.writerow([2 * index + 1, *(f"{spectrum[index]:.8g}" for spectrum in spectra.values())])
    return text.getvalue()
