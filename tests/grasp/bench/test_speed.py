"""`grasp bench speed`: every figure, with what it was measured against; no time is judged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

from analysis.adapters.load import load_adapter
from analysis.errors import GraspError, InputError
from grasp.__main__ import main
from grasp.bench.speed.child import watch
from grasp.bench.speed.figure import Figure, Report, value_and_spread
from grasp.bench.speed.measure import SIZES, Sizes, measure_speed
from grasp.bench.speed.model import Size, attach_adapter, random_model, share_weights
from grasp.bench.speed.page import read_speed_report, report_tables, write_speed_page
from grasp.bench.speed.shapes import LLAMA_405B, QWEN_7B, Shape, write_adapter
from grasp.bench.speed.timing import time_in_turn
from grasp.commands.calling import BAD_INPUT, OK
from tests.support import tiny

pytestmark = pytest.mark.filterwarnings(tiny.PEFT_WARNING)

SMALL = Shape("small", layers=2, d_model=24, d_ffn=40, d_kv=8, r=2)
MINIATURE = Size(layers=1, d_model=64, d_ffn=64, vocabulary=300, rows=4, tokens=8, r=2)
MEGABYTE = 1 << 20


@pytest.fixture(scope="module")
def report() -> Report:
    return measure_speed(
        "quick",
        sizes=Sizes(
            shape=SMALL,
            dense=("self_attn.k_proj",),
            streamed=SMALL,
            recorded=MINIATURE,
            prompts=3,
            trained=MINIATURE,
            rounds=1,
            browse=False,
        ),
    )


EXPECTED = {
    "start.help": 0.5,
    "start.spectrum": 1.5,
    "start.dashboard": 3.0,
    "spectra.seconds": 1.5,
    "spectra.qr": 3.0,
    "spectra.dense": 1000.0,
    "spectra.streaming": 2.0,
    "factors.seconds": 5.0,
    "factors.memory": 1.0,
    "training.write": 1.05,
    "training.projection": 1.05,
    "training.task-computed": 1.4,
    "training.task-kept": 1.1,
    "training.neutral-1": 2.1,
    "training.neutral-0.5": 1.55,
    "training.neutral-0.25": 1.275,
    "training.neutral-0.125": 1.1375,
    "training.neutral-rows": 1.275,
    "training.preset": 2.1,
    "training.effect": 2.1,
    "training.monitor": None,
    "recording.rate": 0.9,
    "recording.memory": 1.15,
    "recording.output_hidden_states": None,
}


def test_every_figure_is_there_with_what_it_was_measured_against(report: Report) -> None:
    found = {figure.id: figure for figure in report.figures}
    others = {name for name in found if "nnsight" in name or "transformer-lens" in name}
    assert found.keys() - others == EXPECTED.keys()
    assert len(others) == 2
    for name, target in EXPECTED.items():
        figure = found[name]
        assert figure.target == pytest.approx(target)
        assert len(figure.against) > 5
        if name == "start.dashboard":
            assert figure.missing == "left out"
        else:
            assert np.isfinite(figure.value)
            assert (figure.reached is None) == (target is None)
    assert {"processor", "cores", "memory, GiB"} <= report.machine.keys()
    assert {"torch", "numpy", "grasp"} <= report.versions.keys()


def test_what_lies_behind_a_figure_is_told(report: Report) -> None:
    found = {figure.id: figure.detail for figure in report.figures}
    assert found["spectra.seconds"]["modules"] == 2 * 7
    assert found["spectra.dense"]["timed"] == ["self_attn.k_proj"]
    assert found["start.spectrum"]["imports torch"] is False
    assert found["factors.seconds"]["factors"] == {"write": 8, "read": 4}
    assert found["recording.memory"]["recorded, peak bytes"] > 100 * MEGABYTE


def test_a_batch_every_few_steps_costs_its_share_of_one_in_each(report: Report) -> None:
    found = {figure.id: figure.value for figure in report.figures}
    whole = found["training.neutral-1"] - 1
    for every in (2, 4, 8):
        assert found[f"training.neutral-{1 / every:g}"] - 1 == pytest.approx(whole / every)


def test_the_page_shows_every_figure_and_says_how_it_was_made(
    report: Report, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved, page, notes = (tmp_path / name for name in ("s.json", "p.md", "n.md"))
    saved.write_text(report.model_dump_json(), encoding="utf-8")
    notes.write_text("Seen: nothing.", encoding="utf-8")
    argv = ["bench", "speed", "--figures", str(saved), "--out", str(page), "--notes", str(notes)]
    assert main([*argv, "--json"]) == OK
    assert json.loads(capsys.readouterr().out) == json.loads(saved.read_text())
    text = page.read_text(encoding="utf-8")
    for figure in report.figures:
        assert f"| {figure.what} |" in text
    assert "Seen: nothing." in text
    assert "not measured: left out" in text
    assert f"torch {report.versions['torch']}" in text
    assert main(argv) == OK
    assert all(table.title in capsys.readouterr().out for table in report_tables(report)[:1])


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--figures", "none.json"], "none.json cannot be read"),
        (["--figures", "bad.json"], "bad.json is not a speed report (plan)"),
        (["--root", "x"], "omit --config and --root"),
        (["--out", "x.txt"], "x.txt must end in .md"),
        (
            ["--figures", "whole.json", "--out", "p.md", "--notes", "n"],
            "The notes file n does not exist",
        ),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_is_measured(
    argv: list[str],
    message: str,
    report: Report,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bad.json").write_text("{}", encoding="utf-8")
    Path("whole.json").write_text(report.model_dump_json(), encoding="utf-8")
    assert main(["bench", "speed", *argv]) == BAD_INPUT
    assert message in capsys.readouterr().err


def figure(**changed: Any) -> Figure:
    told = {"id": "a", "group": "start", "what": "A", "against": "B", "unit": "s", "value": 1.0}
    return Figure(**{**told, **changed})


def test_a_target_is_reached_on_its_own_side() -> None:
    assert figure(target=1.0).reached
    assert not figure(target=0.9).reached
    assert figure(target=0.9, sense="at least").reached
    assert not figure(target=1.1, sense="at least").reached
    assert figure().reached is None
    with pytest.raises(ValueError, match="needs either a value or a reason for having none"):
        figure(value=None)
    assert figure(value=None, target=1.0, missing="no browser").reached is None


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=9))
def test_a_figure_is_the_median_of_its_repetitions(values: list[float]) -> None:
    found = value_and_spread(values)
    assert found["value"] == pytest.approx(float(np.median(values)))
    assert found["spread"] == (min(values), max(values))


def test_things_are_timed_in_turn_and_the_turn_changes() -> None:
    done: list[str] = []
    times = time_in_turn({name: lambda n=name: done.append(n) for name in "ab"}, rounds=2)
    assert "".join(done) in ("abbaab", "baabba")
    assert len(times.of("a")) == len(times.ratio("a", "b")) == 2
    assert times.ratio("a", "a") == [1.0, 1.0]


def test_adapters_have_the_shapes_of_their_models_and_the_size_that_is_said(
    tmp_path: Path,
) -> None:
    size = write_adapter(tmp_path, SMALL)
    weights = tmp_path / "adapter_model.safetensors"
    assert sum(tensor.nbytes for tensor in load_file(weights).values()) == size
    adapter = load_adapter(tmp_path)
    assert len(adapter.modules) == 14
    assert {module.shape for module in adapter.modules} == set(SMALL.modules.values())
    singular = np.linalg.svd(np.hstack([m.lora_B for m in adapter.modules if m.side == "write"]))[1]
    assert singular.min() > 0.1 * singular.max()  # no two layers write alike
    assert SMALL.layer_numbers * 2 * SMALL.layers == size
    assert round(QWEN_7B.layer_numbers * 2 * QWEN_7B.layers / MEGABYTE) == 154
    assert (QWEN_7B.layers * 7, LLAMA_405B.layers * 7) == (196, 882)
    assert SIZES["full"].trained.layers * SIZES["full"].trained.d_model ** 2 > 7e6


WORK = """
def allocating(megabytes):
    import numpy
    size = int(megabytes) << 20
    def work():
        kept = numpy.ones(size, dtype=numpy.uint8)
        return {"sum": int(kept[:: 1 << 20].sum()) // (size > 0)}
    return work
"""


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "planted.py").write_text(WORK, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{Path(__file__).resolve().parents[3]}")
    return "planted:allocating"


def test_the_memory_of_a_process_is_what_its_work_took(work: str) -> None:
    small, large = (watch(work, megabytes) for megabytes in ("1", "65"))
    assert large.data == {"sum": 65}
    assert large.growth == pytest.approx(65 * MEGABYTE, rel=0.1)
    assert small.growth < 8 * MEGABYTE


def test_a_process_that_fails_is_told_by_its_last_words(work: str) -> None:
    with pytest.raises(GraspError, match=r"allocating could not start: ValueError.*'many'"):
        watch(work, "many")
    with pytest.raises(GraspError, match=r"allocating failed: ZeroDivisionError"):
        watch(work, "0")
    with pytest.raises(GraspError, match=r"could not start: .*no attribute 'nothing'"):
        watch("planted:nothing")


def test_copies_have_adapters_of_their_own_and_weights_in_common() -> None:
    base = random_model(MINIATURE)
    one, other = attach_adapter(base, MINIATURE), attach_adapter(base, MINIATURE)
    frozen = one.get_base_model().model.layers[0].mlp.up_proj.base_layer.weight
    assert frozen is base.model.layers[0].mlp.up_proj.weight
    trained = [{id(w) for w in model.parameters() if w.requires_grad} for model in (one, other)]
    assert trained[0]
    assert not trained[0] & trained[1]
    assert share_weights(base).model.layers[0] is not base.model.layers[0]


def test_a_report_is_read_as_it_was_written(report: Report, tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_text(report.model_dump_json(), encoding="utf-8")
    assert read_speed_report(path) == report
    path.write_text(report.model_dump_json().replace('"group"', '"grop"'), encoding="utf-8")
    with pytest.raises(InputError, match=r"is not a speed report \(figures"):
        read_speed_report(path)
    write_speed_page(report, tmp_path / "p.md")
    assert "## The machine" in (tmp_path / "p.md").read_text(encoding="utf-8")
