"""Settings of runs side by side."""

from __future__ import annotations

from analysis.comparison.settings import settings_table
from analysis.store.workspace import Workspace


def test_settings_that_differ(whole: Workspace) -> None:
    runs = [whole.run("code-naive"), whole.run("code-grasp")]
    different = settings_table(runs, only_different=True).set_index("setting")
    assert different.loc["method"].tolist() == ["naive", "grasp"]
    assert different.loc["protection.tolerance"].tolist() == ["", "0.02"]
    assert "config.learning_rate" not in different.index
    everything = settings_table(runs, only_different=False).set_index("setting")
    assert everything.loc["config.lora.r"].tolist() == ["8", "8"]
    assert everything.loc["sha256.data"].tolist() == ["ab" * 32] * 2


def test_one_run_differs_from_nothing(whole: Workspace) -> None:
    assert settings_table([whole.run("code-naive")], only_different=True).empty
