"""Draw sign, its Fourier partial sums and their derivatives (Eq. 6-10 of the paper).

python -m src.paper.sine_module docs/sine_module.png
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from .. import cli, runtime

OMEGA = 0.1
TERMS = ((9, "tab:blue"), (18, "tab:orange"))  # n_s and 2 n_s: start and end of the default schedule


def draw(path: Path) -> None:
    """Write the figure as a PNG: the functions, and their derivatives near 0 and over more than a period."""
    import numpy as np

    from ..binary.fourier import partial_sum, partial_sum_derivative
    from .plots import new_figure, save

    figure = new_figure(13, 3.8)
    space, near, far = figure.subplots(1, 3)
    t = np.linspace(-4, 4, 2001)
    wide = np.linspace(-40, 40, 8001)
    space.step(t, np.where(t > 0, 1, -1), color="black", label="sign(t)")
    near.plot(t, np.abs(t) <= 1, color="black", label="clipped straight-through")
    for n, color in TERMS:
        space.plot(t, partial_sum(t, n, OMEGA), color=color, label=f"$s_n(t)$, n = {n}")
        near.plot(t, partial_sum_derivative(t, n, OMEGA), color=color, label=f"$s_n'(t)$, n = {n}")
        far.plot(wide, partial_sum_derivative(wide, n, OMEGA), color=color, linewidth=0.9, label=f"n = {n}")
    half_period = np.pi / OMEGA
    for edge in (-half_period, half_period):
        far.axvline(edge, color="gray", linestyle=":")
    titles = (
        f"sign and its partial sums, $\\omega$ = {OMEGA}",
        "Gradients near 0",
        "The same farther out: negative at $|t| = \\pi/\\omega$",
    )
    for panel, title in zip((space, near, far), titles, strict=True):
        panel.set_title(title)
        panel.set_xlabel("t")
        panel.grid(alpha=0.3)
        panel.legend(loc="lower right" if panel is space else "upper right", fontsize=8)
    save(figure, path)


def main(argv: Sequence[str]) -> int:
    parser = cli.Parser(prog="python -m src.paper.sine_module", description=__doc__)
    parser.add_argument("output", type=cli.path, help="the PNG to write")
    path = Path(parser.parse_args(argv).output)
    os.environ["MPLBACKEND"] = "agg"  # a notebook's backend may be missing here, and then matplotlib refuses to start
    runtime.prepare_environment()
    draw(path)
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main))
