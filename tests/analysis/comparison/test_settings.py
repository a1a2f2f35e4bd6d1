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


def test_what_is_not_set_and_what_is_lacking_are_no_difference(whole: Workspace) -> None:
    run = whole.run("code-naive")
    one = run.model_copy(update={"config": run.config | {"packing": None, "warmup_steps": 0.0}})
    other = run.model_copy(update={"id": "other", "config": run.config | {"warmup_steps": 0}})
    assert settings_table([one, other], only_different=True).empty
    table = settings_table([one, other], only_different=False)
    assert not table["setting"].duplicated().any()
    # What the manifest says itself is not listed a second time.
    assert not {"config.seed", "config.title", "config.base_model"} & set(table["setting"])
    assert "null" not in table.to_numpy()
