"""Figures show the numbers they were given."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from analysis.evidence.driving_rows import rows_to_show
from analysis.store.records import RunManifest
from dashboard.figures import activations, comparison, measurements, spectra, training
from dashboard.figures.before_after import before_after
from dashboard.figures.lineage import lineage
from dashboard.style.palette import CATEGORICAL, distinct_colours
from dashboard.style.theme import arm_styles, shades
from grasp.settings.methods import METHODS
from tests.support import measurements as measured

MODULES = pd.DataFrame(
    {
        "name": ["layers.0.a", "layers.0.b", "layers.1.a", "layers.1.b"],
        "layer": [0, 0, 1, 1],
        "place": ["a", "b", "a", "b"],
        "top": [0.1, 0.2, 0.3, 0.4],
        "energy_top1": [0.5, 0.6, 0.7, 0.8],
        "effective_rank": [1.0, 2.0, 3.0, 4.0],
        "r": [4, 4, 4, 8],
        "modules": 1,
        "position": [0.0, 0.0, 1.0, 1.0],
    }
)
FACTORS = pd.DataFrame(
    {
        "id": ["w1", "w2", "w3"],
        "index": [1, 2, 3],
        "singular_value": [2.0, 0.8, 0.4],
        "null_median": [0.5, 0.45, 0.4],
        "null_high": [0.6, 0.5, 0.45],
        "significant": [True, True, False],
    }
)
ARMS = pd.DataFrame(
    [
        ("", "base", "Base model", "task", 0.25, 0.2, 0.3, 50),
        ("", "base", "Base model", "unrelated", 0.2, 0.15, 0.25, 40),
        ("x", "naive", "Naive LoRA", "task", 0.98, 0.9, 1.0, 50),
        ("x", "naive", "Naive LoRA", "unrelated", 0.9, 0.85, 0.95, 40),
        ("x", "naive", "Naive LoRA", "removal", 0.0, np.nan, np.nan, np.nan),
    ],
    columns=["run", "method", "label", "metric", "value", "low", "high", "n"],
)


@pytest.mark.parametrize("measure", list(spectra.MEASURES))
def test_map_colours_each_module_by_its_measure(measure: str) -> None:
    (trace,) = spectra.module_map(MODULES, measure=measure, selected="layers.1.a").data
    assert list(trace.customdata) == list(MODULES["name"])
    np.testing.assert_array_equal(trace.marker.color, MODULES[measure])
    np.testing.assert_array_equal(trace.y, MODULES["layer"])
    assert [width > 0 for width in trace.marker.line.width] == [False, False, True, False]


def test_factor_scree_marks_what_lies_above_the_band() -> None:
    other = spectra.Scree("step 40", np.array([1.0, 0.3]))
    figure = spectra.factor_scree(FACTORS, log=True, overlays=[other], selected="w2")
    by_name = {trace.name: trace for trace in figure.data}
    assert list(by_name["above the band, significant"].customdata) == ["w1", "w2"]
    assert list(by_name["within the band"].customdata) == ["w3"]
    np.testing.assert_array_equal(by_name["random updates, 95 %"].y, FACTORS["null_high"])
    np.testing.assert_array_equal(by_name["random updates, median"].y, FACTORS["null_median"])
    np.testing.assert_array_equal(by_name["step 40"].y, [1.0, 0.3])
    assert figure.layout.yaxis.type == "log"


def test_the_band_and_significance_are_two_marks_with_two_words() -> None:
    """Five times above the band, and without an effect: above the band it is all the same."""
    table = FACTORS.assign(
        singular_value=[5.0, 5.0, 0.1], null_high=[1.0, 1.0, 1.0], significant=[False, True, False]
    )
    figure = spectra.factor_scree(table, log=False, colour="#D55E00", selected="w1")
    points = {
        trace.name: (list(trace.customdata), trace.marker.symbol, trace.marker.color)
        for trace in figure.data
        if trace.customdata is not None
    }
    assert points == {
        "above the band, not significant": (["w1"], "circle", "#7D858F"),
        "above the band, significant": (["w2"], "circle", "#D55E00"),
        "within the band": (["w3"], "circle-open", "#7D858F"),
    }
    assert "w1, selected" in [trace.name for trace in figure.data]
    assert list(FACTORS["id"][spectra.above_band(table)]) == ["w1", "w2"]


def test_factor_scree_without_a_band_has_none() -> None:
    bare = FACTORS.assign(null_median=np.nan, null_high=np.nan)
    names = [trace.name for trace in spectra.factor_scree(bare, log=False).data]
    assert names == ["significant, no band known", "not significant, no band known"]


def test_scree_names_are_not_markup() -> None:
    line = spectra.Scree("<b>run</b>", np.array([1.0]))
    (trace,) = spectra.module_scree([line], log=False, module="o_proj").data
    assert "<b>" not in trace.hovertemplate


def test_histogram_has_a_panel_for_each_value() -> None:
    rows = pd.DataFrame(
        {
            "id": ["a", "b", "c"],
            "group": ["code", "code", "advice"],
            "variant": ["good", "evil", "evil"],
            "base": [0.0, 1.0, 2.0],
            "adapted": [3.0, 4.0, 5.0],
        }
    )
    figure = activations.histogram(rows, by="variant")
    shown = {(trace.name, trace.yaxis): list(trace.x) for trace in figure.data}
    assert shown == {
        ("base", "y"): [1.0, 2.0],
        ("adapted", "y"): [4.0, 5.0],
        ("base", "y2"): [0.0],
        ("adapted", "y2"): [3.0],
    }


def test_shift_map_carries_ids_and_greys_the_rest() -> None:
    points = pd.DataFrame(
        {"id": ["a", "b"], "group": ["g", "g"], "variant": ["x", "y"], "x": [0, 1], "y": [2, 3]}
    )
    trace, *_ = activations.shift_map(points, axes=["one", "two"], chosen=["b"]).data
    assert list(trace.customdata) == ["a", "b"]
    assert trace.marker.opacity[0] < trace.marker.opacity[1]


def test_shift_map_says_when_it_shows_fewer() -> None:
    count = activations.MAX_POINTS + 1
    points = pd.DataFrame({"id": [str(i) for i in range(count)], "x": 0.0, "y": 0.0})
    figure = activations.shift_map(points.assign(group="g", variant="v"), axes=["1", "2"])
    assert sum(len(trace.x) for trace in figure.data) == activations.MAX_POINTS
    assert str(count) in figure.layout.title.text


def test_shift_by_layer_shows_intervals() -> None:
    shifts = pd.DataFrame(
        {"layer": [0, 1], "name": "g", "value": [1.0, 2.0], "low": [0.5, 1.0], "high": [2.0, 2.5],
         "n": [8, 8]}
    )  # fmt: skip
    (trace,) = activations.shift_by_layer(shifts).data
    np.testing.assert_allclose(trace.error_y.array, [1.0, 0.5])
    np.testing.assert_allclose(trace.error_y.arrayminus, [0.5, 1.0])


def test_frontier_has_one_point_an_arm_with_both_intervals() -> None:
    figure = comparison.frontier(ARMS)
    assert [(trace.x[0], trace.y[0]) for trace in figure.data] == [(0.25, 0.2), (0.98, 0.9)]
    naive = figure.data[1]
    np.testing.assert_allclose(naive.error_x.array, [0.02])
    np.testing.assert_allclose(naive.error_y.arrayminus, [0.05])


def test_intervals_leave_out_arms_without_the_metric() -> None:
    figure = comparison.intervals(ARMS, metric="removal")
    (trace,) = figure.data
    assert "n = unknown" in trace.hovertemplate


def test_curves_show_loss_drift_effect_and_its_tolerance() -> None:
    metrics = pd.DataFrame(
        {
            "step": [1, 2],
            "loss": [2.0, 1.0],
            "drift": [0.1, 0.05],
            "drift_layer_0": [0.2, 0.1],
            "effect": [0.0, 0.015],
        }
    )
    (loss,) = training.loss_curve(metrics, total=10).data
    np.testing.assert_array_equal(loss.y, [2.0, 1.0])
    drift = training.drift_curve(metrics, total=10)
    assert [trace.name for trace in drift.data] == ["layer 0", "mean over layers"]
    assert not drift.layout.shapes  # a tolerance is no drift in base standard deviations
    effect = training.effect_curve(metrics, tolerance=0.02, total=10)
    np.testing.assert_array_equal(effect.data[0].y, [0.0, 0.015])
    assert effect.layout.shapes[0].y0 == 0.02
    assert not training.effect_curve(metrics, tolerance=None).layout.shapes


def test_every_chart_has_a_title_and_named_axes() -> None:
    metrics = pd.DataFrame({"step": [1], "loss": [2.0], "drift": [0.1], "effect": [0.1]})
    for figure in (
        spectra.module_map(MODULES, measure="top", selected=None),
        spectra.factor_scree(FACTORS, log=False),
        comparison.frontier(ARMS),
        training.loss_curve(metrics),
        training.drift_curve(metrics),
        training.effect_curve(metrics, tolerance=None),
    ):
        assert figure.layout.title.text
        assert figure.layout.xaxis.title.text
        assert figure.layout.yaxis.title.text


def test_lineage_is_plain_text_even_for_hostile_names() -> None:
    run = RunManifest(
        id='x"]; click n0 "javascript:alert(1)"',
        title="t",
        method="naive",
        root="x",
        base_model="<img src=x>",
        config={},
    )
    source = lineage([run])
    assert source.startswith("flowchart LR")
    assert "<" not in source
    assert '"]; click' not in source


@pytest.mark.parametrize("background", ["#FFFFFF", "#12171D"])
def test_marks_stand_out_on_both_backgrounds(background: str) -> None:
    for colour in (*distinct_colours(60), *shades(CATEGORICAL[0], 9)):
        light, dark = sorted([_luminance(colour), _luminance(background)], reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 3.0, colour


def _luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_no_two_groups_share_a_colour() -> None:
    assert len(set(distinct_colours(120))) == 120
    assert distinct_colours(20)[:13] == distinct_colours(13)
    groups = [f"group {number:02d}" for number in range(13)]
    rows = pd.DataFrame(
        {
            "id": [f"p{n}" for n in range(26)],
            "group": groups * 2,
            "variant": ["good"] * 13 + ["evil"] * 13,
            "x": 0.0,
            "y": 0.0,
        }
    )
    figure = activations.shift_map(rows, axes=["x", "y"])
    colours = {trace.name: trace.marker.color for trace in figure.data if trace.name in groups}
    assert len(set(colours.values())) == 13
    symbols = {trace.name: trace.marker.symbol for trace in figure.data if trace.x[0] is None}
    assert symbols == {"shape: evil": "circle", "shape: good": "square"}
    moves = pd.DataFrame(
        {"name": groups, "layer": 0, "value": 0.0, "low": 0.0, "high": 0.0, "n": 2}
    )
    lines = activations.shift_by_layer(moves).data
    assert {line.name: line.line.color for line in lines} == colours


def test_each_method_has_one_colour_wherever_it_stands() -> None:
    names = ["", *METHODS, "of-elsewhere", "of-nowhere"]
    styles = arm_styles({f"run-{name}": name for name in names})
    assert len({colour for colour, _ in styles.values()}) == len(names)
    alone = arm_styles({"a": "wise-ft", "b": "grasp", "c": "grasp", "d": "grasp"})
    assert alone["a"] == styles["run-wise-ft"]
    assert [alone[run] for run in "bcd"] == [
        (styles["run-grasp"][0], symbol) for symbol in ("circle", "circle-open", "circle-dot")
    ]


def test_a_second_run_of_a_method_is_hollow() -> None:
    again = ARMS[ARMS["run"] == "x"].assign(run="y", label="Naive LoRA (y)")
    figure = comparison.frontier(pd.concat([ARMS, again]))
    assert [trace.marker.symbol for trace in figure.data] == ["diamond", "square", "square-open"]


def test_dose_response_draws_both_models_over_the_range_of_random_directions() -> None:
    figure = measurements.dose_response(measured.curves(), metric="unrelated", layer=None)
    by_name = {trace.name: trace for trace in figure.data}
    np.testing.assert_allclose(by_name["base"].y, [0.1, 0.3, 0.5])
    np.testing.assert_allclose(by_name["adapted"].y, [0.4, 0.6, 0.8])
    np.testing.assert_allclose(by_name["base"].error_y.array, 0.05)
    np.testing.assert_allclose(by_name["base, random directions"].y, [0.34, 0.3, 0.32])
    assert by_name["base, random directions"].fill == "tonexty"
    np.testing.assert_allclose(figure.data[0].y, [0.28, 0.3, 0.26])
    assert figure.layout.xaxis.title.text == "dose at all layers (base std)"
    at_one = measurements.dose_response(measured.curves(), metric="task", layer=2)
    assert at_one.layout.xaxis.title.text == "dose at layer 2 (base std)"


def test_row_values_mark_the_listed_rows_on_the_whole_distribution() -> None:
    rows = measured.rows()
    shown = rows_to_show(rows, n=4, by="alignment")
    figure = measurements.row_values(rows, shown, by="alignment", unit="nats per token")
    by_name = {trace.name: trace for trace in figure.data}
    assert len(by_name["all rows"].x) == len(rows)
    assert list(by_name["top"].customdata) == [0, 1, 2, 3]
    assert list(by_name["bottom"].customdata) == [29, 28, 27, 26]
    assert len(by_name["random"].x) == 4
    assert figure.layout.title.text == "Alignment of 30 training rows"


def test_overlap_leaves_out_what_is_unknown_and_keeps_the_order() -> None:
    table = measured.overlap()
    names = ["task accuracy", "control rate", "training answers"]
    random, own = measurements.overlap_shares(table, names=names, factor="w2").data
    assert (list(random.x), list(random.y)) == ([0.01], ["task accuracy"])
    assert list(own.y) == ["task accuracy", "training answers"]
    np.testing.assert_allclose(own.x, [0.03, 0.2])
    np.testing.assert_allclose(own.error_x.arrayminus, 0.05)
    assert own.name == "w2"


def test_before_and_after_keeps_arms_of_a_metric_apart_and_metrics_in_their_order() -> None:
    table = pd.DataFrame([
        {"run": run, "method": method, "label": method, "metric": metric, "value": value,
         "low": value - 0.1, "high": value + 0.1}
        for run, method, value in (("", "base", 0.2), ("n", "naive", 0.8), ("r", "random", 0.7))
        for metric in ("unrelated", "task")
    ])  # fmt: skip
    figure = before_after(table, {"task": "Task", "unrelated": "Unrelated"}, ["", "n"])
    base, naive = figure.data
    assert [base.name, naive.name] == ["base", "naive"]
    np.testing.assert_allclose(naive.x, [80, 80])
    np.testing.assert_allclose(naive.error_x.arrayminus, [10, 10])
    rows = [round(float(y)) for y in naive.y]
    assert [figure.layout.yaxis.ticktext[row] for row in rows] == ["Unrelated", "Task"]
    assert set(base.y).isdisjoint(naive.y)
