"""Identification from weights alone: planted factors, their order, stability and names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from analysis.adapters.load import Adapter, load_adapter
from analysis.errors import AdapterError
from analysis.factors.routes import (
    READ_FACTORS,
    WRITE_FACTORS,
    load_checkpoints,
    rank_factors,
    weight_factors,
)
from analysis.store.factor_table import COLUMNS

LAYERS, WIDTH, INNER, RANK = 4, 24, 16, 4
WRITTEN = LAYERS * RANK - (LAYERS - 1)  # rank of all updates: one direction is shared by all
WriteAdapter = Callable[..., Path]
NAN = float("nan")


def planted(strength: float, *, seed: int = 0) -> tuple[dict[str, np.ndarray], NDArray[np.float64]]:
    """An adapter whose o_proj modules all write along one direction, and the direction.

    One of the four ranks of each module is the shared one; the rest is noise of its own.
    """
    rng = np.random.default_rng(seed)
    shared = np.random.default_rng(99).standard_normal(WIDTH)
    shared /= np.linalg.norm(shared)
    tensors = {}
    for layer in range(LAYERS):
        for name, (d_out, d_in) in {"o_proj": (WIDTH, INNER), "q_proj": (INNER, WIDTH)}.items():
            path = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            A, B = rng.standard_normal((RANK, d_in)), rng.standard_normal((d_out, RANK))
            if name == "o_proj":
                B[:, 0] = strength * shared
            tensors[f"{path}.lora_A.weight"] = A.astype(np.float32)
            tensors[f"{path}.lora_B.weight"] = B.astype(np.float32)
    return tensors, shared


def adapter(write_adapter: WriteAdapter, tensors: dict[str, np.ndarray], folder: Path) -> Adapter:
    return load_adapter(write_adapter({"r": RANK, "lora_alpha": 8}, tensors, folder))


def dense(tensors: dict[str, np.ndarray], module: str) -> NDArray[np.float64]:
    """Updates side by side; those of reading modules transposed, so that d_model comes first."""
    blocks = []
    for layer in range(LAYERS):
        path = f"base_model.model.model.layers.{layer}.self_attn.{module}"
        A, B = (tensors[f"{path}.lora_{half}.weight"].astype(np.float64) for half in "AB")
        blocks.append(2.0 * B @ A if module == "o_proj" else (2.0 * B @ A).T)
    return np.concatenate(blocks, axis=1)


def test_a_planted_shared_direction_comes_first(
    write_adapter: WriteAdapter, tmp_path: Path
) -> None:
    tensors, shared = planted(12)
    table, directions = weight_factors(adapter(write_adapter, tensors, tmp_path / "a"))
    top = table.iloc[0]
    assert (top["id"], top["side"], top["index"]) == ("w1", "write", 1)
    assert top["significant"]
    assert abs(directions[0] @ shared) > 0.98
    assert top["singular_value"] > 1.2 * top["null_high"] > top["null_median"]
    # Nothing else was planted, and what lies under the band is put last, whatever its score.
    assert table["significant"].sum() <= 2
    assert list(table["significant"]) == sorted(table["significant"], reverse=True)


def test_rows_are_the_svd_of_each_side_and_go_with_their_directions(
    write_adapter: WriteAdapter, tmp_path: Path
) -> None:
    tensors, _ = planted(6)
    table, directions = weight_factors(adapter(write_adapter, tensors, tmp_path / "a"))
    assert list(table.columns) == list(COLUMNS)
    assert sorted(table["id"]) == sorted(
        [f"w{i + 1}" for i in range(min(WRITE_FACTORS, WRITTEN))]
        + [f"r{i + 1}" for i in range(READ_FACTORS)]
    )
    spectra = {
        "w": np.linalg.svd(dense(tensors, "o_proj")),
        "r": np.linalg.svd(dense(tensors, "q_proj")),
    }
    for row, direction in zip(table.itertuples(), directions, strict=True):
        left, sigma, _ = spectra[row.id[0]]
        number = int(row.id[1:]) - 1
        assert abs(direction @ left[:, number]) == pytest.approx(1, abs=1e-6)
        assert row.singular_value == pytest.approx(sigma[number], rel=1e-6)
        assert row.energy == pytest.approx(sigma[number] ** 2 / (sigma**2).sum(), rel=1e-6)
        assert row.score == pytest.approx(row.energy)
        assert np.isnan(row.stability)


def test_ids_say_up_to_which_layer_modules_were_taken(
    write_adapter: WriteAdapter, tmp_path: Path
) -> None:
    loaded = adapter(write_adapter, planted(6)[0], tmp_path / "a")
    table, _ = weight_factors(loaded, max_layer=1)
    assert {name.partition(".")[2] for name in table["id"]} == {"L1"}
    assert set(table["max_layer"]) == {1.0}
    first, _ = weight_factors(loaded)
    assert first["max_layer"].isna().all()
    assert table["singular_value"].max() < first["singular_value"].max()


def test_a_side_that_no_module_has_gives_no_factors(
    write_adapter: WriteAdapter, tmp_path: Path
) -> None:
    tensors = {name: w for name, w in planted(6)[0].items() if "q_proj" in name}
    table, directions = weight_factors(adapter(write_adapter, tensors, tmp_path / "a"))
    assert set(table["side"]) == {"read"}
    assert len(directions) == len(table) == 4


# Checkpoints


def test_checkpoints_are_in_the_order_of_steps_without_the_last(
    tmp_path: Path, write_adapter: WriteAdapter
) -> None:
    for step in (9, 100, 20):
        write_adapter(
            {"base_model_name_or_path": f"b{step}"},
            folder=tmp_path / f"checkpoints/checkpoint-{step}",
        )
    assert [a.base_model for a in load_checkpoints(tmp_path)] == ["b9", "b20"]
    assert load_checkpoints(tmp_path / "none") == []


def test_checkpoints_of_dora_are_read_as_the_run_is(
    tmp_path: Path, write_adapter: WriteAdapter
) -> None:
    for step in (1, 2):
        write_adapter({"use_dora": True}, folder=tmp_path / f"checkpoints/checkpoint-{step}")
    with pytest.raises(AdapterError, match="uses DoRA"):
        load_checkpoints(tmp_path)
    (found,) = load_checkpoints(tmp_path, low_rank_part=True)
    assert found.path.name == "checkpoint-1"


def test_checkpoints_give_the_stability(write_adapter: WriteAdapter, tmp_path: Path) -> None:
    """Oracle: how much of each direction the leading factors of the two checkpoints span."""
    last, shared = planted(6)
    earlier = [planted(3, seed=1)[0], planted(6, seed=2)[0]]
    for step, tensors in zip((2, 4, 6), (*earlier, last), strict=True):
        adapter(write_adapter, tensors, tmp_path / f"checkpoints/checkpoint-{step}")
    table, directions = weight_factors(
        adapter(write_adapter, last, tmp_path / "adapter"), others=load_checkpoints(tmp_path)
    )
    kept = {"write": ("o_proj", min(WRITE_FACTORS, WRITTEN)), "read": ("q_proj", READ_FACTORS)}
    for row, direction in zip(table.itertuples(), directions, strict=True):
        module, k = kept[row.side]
        spans = [np.linalg.svd(dense(tensors, module))[0][:, :k] for tensors in earlier]
        expected = np.mean([np.linalg.norm(span.T @ direction) for span in spans])
        assert row.stability == pytest.approx(expected, rel=1e-6)
        assert row.score == pytest.approx(row.stability * row.energy)
    assert abs(directions[0] @ shared) > 0.9
    assert table["stability"].iloc[0] == table["stability"].max() > 0.9


# Ranking


def ranking(**columns: Any) -> tuple[pd.DataFrame, np.ndarray]:
    """Rows w0, w1, … in the order of `columns`, and axes as their directions, ranked."""
    n = len(next(iter(columns.values())))
    plain = {
        "stability": NAN,
        "off_task": NAN,
        "on_task": NAN,
        "energy": 1 / n,
        "significant": True,
    }
    table = pd.DataFrame({"id": [f"w{i}" for i in range(n)], **plain} | columns)
    return rank_factors(table, np.eye(n))


def test_the_score_is_stability_times_the_off_task_effect_and_the_root_of_its_share() -> None:
    table, directions = ranking(
        stability=[1.0, 0.5, 1.0, 1.0, NAN],
        off_task=[0.3, 0.3, 0.3, 0.0, 0.32],
        on_task=[0.3, 0.3, 0.9, 0.0, 0.0],
        energy=[0.1, 0.9, 0.5, 1.0, 0.2],
    )
    # Shares of off in both: 1/2, 1/2, 1/4, of nothing, and all.
    by_hand = {"w0": 0.3 * 0.5**0.5, "w1": 0.15 * 0.5**0.5, "w2": 0.15, "w3": 0.0, "w4": 0.32}
    order = ["w4", "w0", "w2", "w1", "w3"]
    assert list(table["id"]) == order
    np.testing.assert_allclose(table["score"], [by_hand[name] for name in order])
    np.testing.assert_array_equal(directions, np.eye(5)[[int(name[1]) for name in order]])
    ratio = table.set_index("id")["effect_ratio"]
    np.testing.assert_allclose(ratio[["w0", "w1", "w2"]], [1, 1, 1 / 3])
    assert ratio[["w3", "w4"]].isna().all()


def test_without_effects_the_score_is_stability_times_energy() -> None:
    table, _ = ranking(stability=[0.5, 1.0, NAN], energy=[0.5, 0.2, 0.3])
    assert list(table["id"]) == ["w2", "w0", "w1"]
    np.testing.assert_allclose(table["score"], [0.3, 0.25, 0.2])
    assert table["effect_ratio"].isna().all()


@pytest.mark.parametrize("effects", [{}, {"off_task": [0.9, 0.1, 0.5], "on_task": [0.1] * 3}])
def test_what_lies_on_or_under_the_null_band_comes_last(effects: dict[str, Any]) -> None:
    table, _ = ranking(energy=[0.8, 0.1, 0.1], significant=[False, True, True], **effects)
    assert list(table["id"])[-1] == "w0"
    assert table["score"].iloc[-1] == table["score"].max()


parts = st.floats(0, 1)


@given(
    st.lists(st.tuples(parts, parts, parts, st.booleans()), min_size=1, max_size=8), st.randoms()
)
def test_the_order_does_not_depend_on_that_of_the_rows(rows: list[Any], random: Any) -> None:
    names = ["stability", "off_task", "on_task", "significant"]
    table = pd.DataFrame(rows, columns=names).assign(energy=0.1)
    table["id"] = [f"w{i}" for i in range(len(table))]
    places = list(range(len(table)))
    random.shuffle(places)
    axes = np.eye(len(table))
    first, _ = rank_factors(table, axes)
    again, directions = rank_factors(table.iloc[places].reset_index(drop=True), axes[places])
    assert list(first["significant"]) == list(again["significant"])
    np.testing.assert_array_equal(first["score"], again["score"])
    for row, direction in zip(again.itertuples(), directions, strict=True):
        assert direction[int(row.id[1:])] == 1
    scores = first.groupby("significant")["score"]
    assert scores.apply(lambda group: group.is_monotonic_decreasing).all()
    assert (first["score"] <= first["stability"] * first["off_task"] + 1e-12).all()
