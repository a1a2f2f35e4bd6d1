"""The figure of the linear world: its curves and numbers, the file, and what it needs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from analysis.errors import InputError
from grasp.bench.linear import curves, figure
from grasp.bench.svg import svg_figure

GRID = np.array([1.0, 2.0, 4.0])


def noisy(monkeypatch: pytest.MonkeyPatch, label: str = "noisy") -> curves.Curve:
    """y = 2 x + 0.1 in theory, and as many worlds with noise of their own around 2 x."""
    monkeypatch.setattr(curves, "WORLDS", 5)

    def simulate(x: float, seed: int) -> float:
        return 2 * x + float(np.random.default_rng(seed).normal())

    return curves.simulate_curve(label, GRID, simulate, lambda x: 2 * x + 0.1, spacing="log")


def test_points_are_means_over_worlds_beside_the_closed_form(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = noisy(monkeypatch)
    noise = np.array([np.random.default_rng(seed).normal() for seed in range(5)])
    np.testing.assert_allclose(found.mean, 2 * GRID + noise.mean())
    np.testing.assert_allclose(found.standard_error, noise.std(ddof=1) / np.sqrt(5))
    np.testing.assert_allclose(found.fine, 2 * np.geomspace(1, 4, 129) + 0.1)
    points = found.points()
    assert points["worst_gap"] == pytest.approx(abs(noise.mean() - 0.1))
    assert points["theory"] == [2.1, 4.1, 8.1]


def test_the_figure_is_the_same_file_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = [noisy(monkeypatch, label) for label in ("one", "another")]
    written = []
    for folder in ("a", "b"):
        path = tmp_path / folder / "linear.svg"
        path.parent.mkdir()
        with svg_figure(path, (4.0, 3.0), ink="#767676") as page:
            figure.draw_panel(page.subplots(), "rotation", drawn)
        written.append(path.read_text(encoding="utf-8"))
    assert written[0] == written[1]
    for text in ("one", "another", "spurious over task strength, β/τ", "b  the nearer factor"):
        assert f">{text}" in written[0]


def test_a_figure_needs_its_folder(tmp_path: Path) -> None:
    with (
        pytest.raises(InputError, match=r"There is no folder .*none for the figure a\.svg"),
        svg_figure(tmp_path / "none" / "a.svg", (4.0, 3.0), ink="black"),
    ):
        pass


def test_without_matplotlib_the_command_says_what_to_install() -> None:
    code = (
        "import sys, runpy; sys.modules['matplotlib'] = None; "
        "runpy.run_module('grasp.bench.linear.figure', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == (
        "Figures need matplotlib; install it with pip install 'grasp-workbench[bench]'.\n"
    )
    assert done.stdout == ""
