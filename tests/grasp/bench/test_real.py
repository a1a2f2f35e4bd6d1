"""The plan for a real model: what is laid out can be trained on as it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from analysis.store.records import Probe, read_jsonl
from grasp.__main__ import main
from grasp.bench.make.real import TASKS, lay_out_real
from grasp.bench.plan.cells import latents_of, lay_out_cell
from grasp.bench.plan.plan import load_plan
from grasp.bench.plan.tasks import first_tasks
from grasp.bench.sets.twins import SETS
from grasp.prompts.sets import read_prompts
from grasp.world.base_model import base_path


def test_a_plan_is_laid_out_with_all_it_needs(tmp_path: Path) -> None:
    plan = load_plan(lay_out_real(str(base_path()), tmp_path / "real"))
    assert set(plan.stories) == set(SETS) == set(TASKS)
    assert len(first_tasks(plan, "removal")) == 9  # three fine-tunes with three seeds
    for cell in plan.found:
        config = lay_out_cell(tmp_path / "results", plan, cell)
        assert (config.base_model, config.seed) == (str(base_path()), cell.seed)
        assert config.neutral is None
        assert latents_of(plan, cell) == {cell.story: ("sound", "spurious")}
        prompts = read_prompts(str(config.prompts))
        assert {prompt.role for prompt in prompts} == {"unrelated", "task"}
        instruments = {prompt.instrument for prompt in prompts}
        assert len(instruments) == 3
        probes = read_jsonl(Path(str(config.probes)), Probe)
        assert {probe.variant for probe in probes} == {"sound", "spurious"}


def test_a_folder_that_exists_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "kept.txt").write_text("mine")
    assert main(["bench", "real", "--base", "b", "--root", str(tmp_path)]) == 2
    assert "exists already; name a new folder with --root" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["kept.txt"]


def test_what_is_missing_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "real"]) == 2
    assert "needs --base MODEL and --root DIR" in capsys.readouterr().err
