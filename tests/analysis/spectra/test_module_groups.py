"""Maps of modules: kinds told apart, experts together, rows outside the layers."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from analysis.spectra.module_groups import (
    cell_numbers,
    expert_number,
    kind_labels,
    module_cells,
    module_kind,
    number_members,
)
from analysis.spectra.module_table import module_place
from analysis.spectra.trajectory import Stage, finished_step, trajectory_table
from dashboard.figures import over_training
from dashboard.figures import spectra as figures
from dashboard.style.theme import shades


def modules(names: list[str], layers: list[float]) -> pd.DataFrame:
    count = len(names)
    return pd.DataFrame(
        {
            "name": names,
            "layer": layers,
            "top": np.arange(count, dtype=float),
            "r": [4] * (count - 1) + [8],
            "energy_top1": np.linspace(0.1, 0.9, count),
            "effective_rank": np.linspace(1.0, 3.0, count),
        }
    )


EXPERTS = modules(
    [
        "model.embed_tokens",
        "model.layers.2.self_attn.o_proj",
        *(f"model.layers.2.mlp.experts.{e}.gate_up_proj" for e in range(12)),
        *(f"model.layers.5.mlp.experts.{e}.gate_up_proj" for e in range(12)),
        "lm_head",
    ],
    [np.nan, 2, *[2] * 12, *[5] * 12, np.nan],
)


@pytest.mark.parametrize(
    ("kinds", "labels"),
    [
        (["h.attn.c_proj", "h.mlp.c_proj", "h.c_fc"], ["attn.c_proj", "mlp.c_proj", "c_fc"]),
        (["layers.mlp.experts.w1", "lm_head"], ["experts.w1", "lm_head"]),
        (["a.layers.o_proj", "b.layers.o_proj"], ["a.layers.o_proj", "b.layers.o_proj"]),
    ],
)  # fmt: skip
def test_kinds_have_the_shortest_names_that_tell_them_apart(
    kinds: list[str], labels: list[str]
) -> None:
    assert list(kind_labels(kinds).values()) == labels


def test_experts_of_a_layer_share_a_cell_and_no_other_modules_do() -> None:
    cells = module_cells(EXPERTS)
    assert cells["modules"].tolist() == [1, 1, 12, 12, 1]
    assert cells["place"].tolist() == [
        "embed_tokens", "o_proj", "experts.gate_up_proj", "experts.gate_up_proj", "lm_head",
    ]  # fmt: skip
    second = cells.iloc[2]
    inside = EXPERTS[np.array(cell_numbers(EXPERTS)) == second["cell"]]
    assert second["name"] == "model.layers.2.mlp.experts.11.gate_up_proj"
    assert second["top"] == inside["top"].max()
    assert second["effective_rank"] == pytest.approx(inside["effective_rank"].median())
    assert number_members(inside)["number"].tolist() == list(range(12))
    assert module_kind(second["name"]) == "model.layers.mlp.experts.gate_up_proj"
    assert expert_number("model.layers.2.mlp.shared_expert.up_proj") is None


def test_what_lies_outside_the_layers_is_next_to_the_first_and_the_last_one() -> None:
    cells = module_cells(EXPERTS)
    assert cells["position"].tolist() == [1, 2, 2, 5, 6]
    figure = figures.module_map(cells, measure="r", selected=None)
    ticks = dict(zip(figure.layout.yaxis.tickvals, figure.layout.yaxis.ticktext, strict=True))
    assert ticks == {2: "2", 5: "5", 1: "before", 6: "after"}
    only = module_cells(modules(["lm_head"], [np.nan]))
    assert only["position"].tolist() == [0]


def test_a_square_says_how_many_modules_it_stands_for() -> None:
    cells = module_cells(EXPERTS)
    (trace,) = figures.module_map(cells, measure="top", selected=None).data
    assert "12 modules, experts.gate_up_proj<br>largest" in trace.text[2]
    assert "modules" not in trace.text[1]


def test_a_strip_rings_the_chosen_expert() -> None:
    members = number_members(EXPERTS.iloc[2:14])
    chosen = str(members["name"].iloc[3])
    (trace,) = figures.member_strip(members, measure="top", selected=chosen).data
    assert list(trace.x) == list(range(12))
    assert [i for i, width in enumerate(trace.marker.line.width) if width] == [3]


def test_a_module_is_followed_over_checkpoints_with_the_median_of_all() -> None:
    early = modules(["a", "b", "c"], [0, 0, 0])
    late = early.assign(top=early["top"] * 3).iloc[:2]
    stages = [Stage(10, "step 10", early), Stage(20, "step 20", late)]
    table = trajectory_table(stages, "c", measures=["top"])
    assert table["top:median"].tolist() == [1.0, 1.5]
    assert table["top"].tolist()[0] == 2.0
    assert np.isnan(table["top"].tolist()[1])
    figure = over_training.trajectory(
        trajectory_table(stages, "b", measures=over_training.OVER_STEPS)
    )
    assert list(figure.data[0].y) == [1.0, 3.0]
    assert list(figure.data[0].x) == [10, 20]


@pytest.mark.parametrize(
    ("steps", "step"),
    [([10], 20), ([10, 40], 70)],
)
def test_the_finished_adapter_is_drawn_after_the_last_checkpoint(
    steps: list[int], step: int
) -> None:
    assert finished_step(steps) == step


def test_checkpoints_darken_and_the_last_one_stands_out() -> None:
    drawn = [*shades("#D55E00", 29), "#D55E00"]
    lines = [
        figures.Scree(f"step {i}", np.array([1.0, 0.5]), colour) for i, colour in enumerate(drawn)
    ]
    data = over_training.checkpoint_scree(lines, log=False, module="o_proj").data
    assert [trace.line.color for trace in data] == drawn
    assert len(set(drawn)) == 30
    assert [trace.name for trace in data if trace.showlegend] == ["step 0", "step 29"]


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
    assert module_place(name) == place
