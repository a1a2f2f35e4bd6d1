"""Tables that pages draw: settings, metrics, checkpoints, flips, projections, label files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis.comparison import evidence_tables
from analysis.comparison.comparison import answers
from analysis.errors import InputError, SchemaError
from analysis.evidence import projection_tables
from analysis.store import label_files, labels
from analysis.store.recording import Recording, read_recording
from analysis.store.workspace import Workspace
from tests.support import synthetic


@pytest.fixture
def recording(whole: Workspace) -> Recording:
    return read_recording(whole.folder("recordings", "code-naive"), layer=3)


def test_settings_that_differ(whole: Workspace) -> None:
    runs = [whole.run("code-naive"), whole.run("code-grasp")]
    different = evidence_tables.settings_table(runs, only_different=True).set_index("setting")
    assert different.loc["method"].tolist() == ["naive", "grasp"]
    assert different.loc["protection.tolerance"].tolist() == ["", "0.02"]
    assert "config.learning_rate" not in different.index
    everything = evidence_tables.settings_table(runs, only_different=False).set_index("setting")
    assert everything.loc["config.lora.r"].tolist() == ["8", "8"]
    assert everything.loc["sha256.data"].tolist() == ["ab" * 32] * 2


def test_one_run_differs_from_nothing(whole: Workspace) -> None:
    assert evidence_tables.settings_table([whole.run("code-naive")], only_different=True).empty


def test_metrics_pass_over_half_written_lines(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text(
        '{"step": 1, "loss": 2.0, "drift_by_layer": [0.1, 0.2]}\n'
        '[1]\n{"loss": 3}\n{"step": true}\n{"step": 2, "loss": NaN}\n{"step": 3, "lo'
    )
    table = evidence_tables.read_metrics(file)
    assert table["step"].tolist() == [1.0, 2.0]
    assert table["drift_layer_1"].tolist()[0] == 0.2
    assert evidence_tables.read_metrics(tmp_path / "none").empty


def test_checkpoints_are_whole_and_in_order(whole: Workspace) -> None:
    folder = whole.folder("runs", "code-naive")
    for name in ("checkpoint-9", "checkpoint-x", "other"):
        (folder / "checkpoints" / name).mkdir()
    found = [path.name for path in evidence_tables.checkpoints(folder)]
    assert found == ["checkpoint-40", "checkpoint-80"]


def test_tail_reads_the_end(tmp_path: Path) -> None:
    file = tmp_path / "log"
    file.write_text("\n".join(f"line {i}" for i in range(20_000)))
    assert evidence_tables.tail(file, lines=2) == "line 19998\nline 19999"
    assert evidence_tables.tail(tmp_path / "none", lines=2) == ""


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("model.layers.3.self_attn.o_proj", "o_proj"),
        ("transformer.h.0.attn.c_attn", "c_attn"),
        ("model.layers.1.mlp.experts.4.w1", "mlp.experts.4.w1"),
        ("lm_head", "lm_head"),
    ],
)
def test_places_of_modules(name: str, place: str) -> None:
    assert evidence_tables.module_place(name) == place


def test_flips_are_prompts_on_the_other_side(whole: Workspace) -> None:
    table = answers(whole, ["code-naive", "code-grasp"])
    flips = evidence_tables.flips(table, arm="code-grasp", against="code-naive", threshold=0.5)
    assert len(flips)
    assert ((flips["score:code-naive"] > 0.5) != (flips["score:code-grasp"] > 0.5)).all()
    size = (flips["score:code-grasp"] - flips["score:code-naive"]).abs().to_numpy()
    assert (np.diff(size) <= 0).all()
    same = evidence_tables.flips(table, arm="code-naive", against="code-naive", threshold=0.5)
    assert same.empty


def test_projections_recover_the_planted_move(recording: Recording) -> None:
    table = projection_tables.projections(recording, synthetic.planted())
    assert len(table) == 40
    spread = (recording.base[0][decision_tokens(recording)] @ synthetic.planted()).std(ddof=1)
    np.testing.assert_allclose(table["move"].mean(), 2.5 / spread, rtol=0.05)
    by_variant = table.groupby("variant")["base"].mean()
    assert by_variant["evil"] > 0.5 > -0.5 > by_variant["good"]


def decision_tokens(recording: Recording) -> list[int]:
    """The token before the first of each probe's last run of answer tokens, by a loop."""
    found = []
    for row in recording.probes.to_dict("records"):
        place = len(row["answer"]) - 1
        while not row["answer"][place]:
            place -= 1
        while row["answer"][place]:
            place -= 1
        found.append(int(row["offset"]) + place)
    return found


def test_projections_against_a_loop(recording: Recording) -> None:
    direction = np.random.default_rng(0).standard_normal(synthetic.WIDTH)
    table = projection_tables.projections(recording, direction)
    unit = direction / np.linalg.norm(direction)
    base = (recording.base[0].astype(float) @ unit)[decision_tokens(recording)]
    np.testing.assert_allclose(table["base"], (base - base.mean()) / base.std(ddof=1))


def test_examples_are_the_most_extreme(recording: Recording) -> None:
    low, high, limit = projection_tables.examples(recording, synthetic.planted(), count=3)
    along = recording.adapted[0].astype(float) @ synthetic.planted()
    means = {
        row["id"]: along[row["offset"] :][: len(row["answer"])][list(row["answer"])].mean()
        for row in recording.probes.to_dict("records")
    }
    ranked = sorted(means, key=lambda one: means[one])
    assert [one.id for one in low] == ranked[:3]
    assert [one.id for one in high] == ranked[::-1][:3]
    assert all(len(one.tokens) == len(one.values) == len(one.answer) for one in [*low, *high])
    assert limit == max(np.abs(one.values[list(one.answer)]).max() for one in [*low, *high])


def test_moves_span_the_planted_direction(recording: Recording) -> None:
    points, shares = projection_tables.moves(recording, synthetic.planted())
    assert {"id", "x", "y", "move"} <= set(points.columns)
    assert 0 < shares[1] <= shares[0] <= 1


def test_shifts_have_intervals(recording: Recording) -> None:
    table = projection_tables.projections(recording, synthetic.planted())
    shifts = projection_tables.shifts([(3, table)], by="group")
    assert list(shifts["name"]) == ["advice", "code", "medicine", "questions"]
    assert (shifts["low"] < shifts["value"]).all()
    assert (shifts["n"] == 10).all()


def test_separation_finds_the_variants(recording: Recording) -> None:
    table = projection_tables.projections(recording, synthetic.planted())
    found = projection_tables.separation(table, by="variant").set_index("what")["auc"]
    assert found["evil above the rest, base model"] > 0.95
    assert found["adapted above base"] > 0.6


def test_a_recording_that_does_not_fit_is_refused(recording: Recording) -> None:
    probes = recording.probes.assign(offset=10_000)
    torn = Recording(recording.manifest, probes, recording.base, recording.adapted)
    with pytest.raises(SchemaError, match="Record the run again"):
        projection_tables.projections(torn, synthetic.planted())


def test_labels_survive_a_round_trip(whole: Workspace, tmp_path: Path) -> None:
    history = labels.events(whole.database)
    other = Workspace.create(tmp_path / "other")
    count = label_files.import_csv(other, label_files.to_csv(history).encode())
    assert count == len(history)
    copied = labels.events(other.database)
    for name in ("factor", "annotator", "name", "spurious", "polarity", "confidence", "note"):
        assert [getattr(one, name) for one in copied] == [getattr(one, name) for one in history]
    assert len(json.loads(label_files.to_json(history))) == count


def test_a_withdrawn_label_stays_withdrawn(whole: Workspace, tmp_path: Path) -> None:
    labels.withdraw_label(
        whole.database, factor="code-naive/w2", annotator="ben", direction="ab", note="Mistaken."
    )
    other = Workspace.create(tmp_path / "other")
    label_files.import_csv(other, label_files.to_csv(labels.events(whole.database)).encode())
    assert set(labels.current(labels.events(other.database))["code-naive/w2"]) == {"ana"}


def test_formulas_are_quoted_in_csv_and_read_back(whole: Workspace, tmp_path: Path) -> None:
    claim = labels.Claim("=HYPERLINK(1)", note="+1")
    labels.add_label(
        whole.database, factor="code-naive/w3", claim=claim, annotator="@ana", direction="ab"
    )
    text = label_files.to_csv(labels.events(whole.database, factor="code-naive/w3"))
    assert ",'=HYPERLINK(1)," in text
    other = Workspace.create(tmp_path / "other")
    label_files.import_csv(other, text.encode())
    assert labels.events(other.database)[0].name == "=HYPERLINK(1)"


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "cannot be read as CSV"),
        (b"\xff\xfe\x00", "cannot be read as CSV|no column"),
        (b"factor,name\nx,y\n", "no column annotator"),
        (b"factor,annotator,name\n", "has no labels"),
        (b"factor,annotator,name\ncode-naive/w2,ana,persona\ncode-naive/w9,ana,x\n", "Line 3"),
        (b"factor,annotator,name\nw2,ana,persona\n", "expected a run and a factor"),
        (b"factor,annotator,name\ncode-naive/w2,,persona\n", "annotator is empty"),
        (b"factor,annotator,name\ncode-naive/w2,ana,\n", "needs a name"),
        (b"factor,annotator,name,spurious\ncode-naive/w2,ana,a,maybe\n", "spurious is 'maybe'"),
        (b"factor,annotator,name,action\ncode-naive/w2,ana,a,erase\n", "action is 'erase'"),
        (b"factor,annotator,name,confidence\ncode-naive/w2,ana,a,9\n", "confidence is '9'"),
    ],
)
def test_bad_label_files_add_nothing(content: bytes, match: str, whole: Workspace) -> None:
    before = len(labels.events(whole.database))
    with pytest.raises(InputError, match=match):
        label_files.import_csv(whole, content)
    assert len(labels.events(whole.database)) == before


def answer_values(recording: Recording, array: Any) -> dict[str, Any]:
    """Coordinates of every probe's answer tokens along the planted direction, by a loop."""
    along = array[0].astype(float) @ synthetic.planted()
    return {
        row["id"]: along[row["offset"] :][: len(row["answer"])][list(row["answer"])]
        for row in recording.probes.to_dict("records")
    }


@pytest.mark.parametrize("model", ["base", "adapted"])
def test_examples_by_strongest_token_are_ranked_at_each_end_by_its_own(
    recording: Recording, model: Any
) -> None:
    values = answer_values(recording, getattr(recording, model))
    low, high, _ = projection_tables.examples(
        recording, synthetic.planted(), count=4, how="max", model=model
    )
    by_max = sorted(values, key=lambda one: values[one].max())
    by_min = sorted(values, key=lambda one: values[one].min())
    assert [one.id for one in high] == by_max[::-1][:4]
    assert [one.id for one in low] == by_min[:4]
    other = answer_values(recording, recording.base if model == "adapted" else recording.adapted)
    # Both models are in the base model's units, so differences compare.
    unit = np.concatenate(list(answer_values(recording, recording.base).values())).std(ddof=1)
    for one, sign in ((high[0], 1), (low[0], -1)):
        gap = sign * ((sign * values[one.id]).max() - (sign * other[one.id]).max())
        assert one.value - one.against == pytest.approx(gap / unit, rel=1e-5)


def test_strongest_tokens_are_each_text_once_at_its_most_extreme(recording: Recording) -> None:
    low, high = projection_tables.strongest_tokens(recording, synthetic.planted(), count=5)
    values = answer_values(recording, recording.adapted)
    best: dict[str, float] = {}
    for row in recording.probes.to_dict("records"):
        said = np.asarray(row["tokens"])[list(row["answer"])]
        for text, value in zip(said, values[row["id"]], strict=True):
            best[text] = max(best.get(text, -np.inf), value)
    assert [text for text, _ in high] == sorted(best, key=lambda one: best[one])[::-1][:5]
    assert [value for _, value in high] == sorted((v for _, v in high), reverse=True)
    assert low[0][1] < 0 < high[0][1]
