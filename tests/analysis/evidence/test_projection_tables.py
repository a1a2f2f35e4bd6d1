"""Projections of recorded probes: moves, extremes, shifts and separation, against loops."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from analysis.errors import SchemaError
from analysis.evidence import projection_tables
from analysis.store.recording import Recording, read_recording
from analysis.store.workspace import Workspace
from tests.support import synthetic


@pytest.fixture
def recording(whole: Workspace) -> Recording:
    return read_recording(whole.folder("recordings", "code-naive"), layer=3)


def test_projections_recover_the_planted_move(recording: Recording) -> None:
    table = projection_tables.probe_projections(recording, synthetic.planted())
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
    table = projection_tables.probe_projections(recording, direction)
    unit = direction / np.linalg.norm(direction)
    base = (recording.base[0].astype(float) @ unit)[decision_tokens(recording)]
    np.testing.assert_allclose(table["base"], (base - base.mean()) / base.std(ddof=1))


def test_examples_are_the_most_extreme(recording: Recording) -> None:
    low, high, limit = projection_tables.extreme_examples(recording, synthetic.planted(), count=3)
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
    points, shares = projection_tables.map_moves(recording, synthetic.planted())
    assert {"id", "x", "y", "move"} <= set(points.columns)
    assert 0 < shares[1] <= shares[0] <= 1


def test_shifts_have_intervals(recording: Recording) -> None:
    table = projection_tables.probe_projections(recording, synthetic.planted())
    shifts = projection_tables.mean_moves([(3, table)], by="group")
    assert list(shifts["name"]) == ["advice", "code", "medicine", "questions"]
    assert (shifts["low"] < shifts["value"]).all()
    assert (shifts["n"] == 10).all()


def test_separation_finds_the_variants(recording: Recording) -> None:
    table = projection_tables.probe_projections(recording, synthetic.planted())
    found = projection_tables.separation_table(table, by="variant").set_index("what")["auc"]
    assert found["evil above the rest, base model"] > 0.95
    assert found["adapted above base"] > 0.6


def test_a_recording_that_does_not_fit_is_refused(recording: Recording) -> None:
    probes = recording.probes.assign(offset=10_000)
    torn = Recording(recording.manifest, probes, recording.base, recording.adapted)
    with pytest.raises(SchemaError, match="Record the run again"):
        projection_tables.probe_projections(torn, synthetic.planted())


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
    low, high, _ = projection_tables.extreme_examples(
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
    low, high = projection_tables.find_strongest_tokens(recording, synthetic.planted(), count=5)
    values = answer_values(recording, recording.adapted)
    best: dict[str, float] = {}
    for row in recording.probes.to_dict("records"):
        said = np.asarray(row["tokens"])[list(row["answer"])]
        for text, value in zip(said, values[row["id"]], strict=True):
            best[text] = max(best.get(text, -np.inf), value)
    assert [text for text, _ in high] == sorted(best, key=lambda one: best[one])[::-1][:5]
    assert [value for _, value in high] == sorted((v for _, v in high), reverse=True)
    assert low[0][1] < 0 < high[0][1]
