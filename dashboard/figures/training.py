"""Loss, drift and effect during training."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from dashboard.style.palette import BLUE, GREY, VERMILLION
from dashboard.style.theme import shades, style_figure

_KEEP = "job"


def loss_curve(metrics: pd.DataFrame, *, total: int | None = None) -> go.Figure:
    """Training loss by optimiser step, and the penalty if the method has one."""
    figure = go.Figure()
    for column, name, colour in (("loss", "task loss", BLUE), ("penalty", "penalty", GREY)):
        if column in metrics and metrics[column].notna().any():
            figure.add_trace(_curve(metrics, column, name, colour, dash="solid"))
    style_figure(figure, title="Loss", x="optimiser step", y="loss (nats per token)", height=280)
    return _steps(figure, total)


def drift_curve(metrics: pd.DataFrame, *, total: int | None = None) -> go.Figure:
    """Drift along the protected factors by step: each layer, and the mean."""
    figure = go.Figure()
    layers = [str(name) for name in metrics if str(name).startswith("drift_layer_")]
    # Layers have an order, so they are shades: later ones are bluer.
    shown = shades(BLUE, len(layers))
    for position, column in enumerate(layers):
        layer = column.removeprefix("drift_layer_")
        curve = _curve(metrics, column, f"layer {layer}", shown[position], dash="dot")
        curve.update(line_width=1, visible=True if len(layers) <= 6 else "legendonly")
        figure.add_trace(curve)
    if "drift" in metrics:
        figure.add_trace(_curve(metrics, "drift", "mean over layers", VERMILLION, dash="solid"))
    style_figure(figure, title="Drift", x="optimiser step", y="RMS drift (base std)", height=280)
    figure.update_yaxes(rangemode="tozero")
    return _steps(figure, total)


def effect_curve(
    metrics: pd.DataFrame, *, tolerance: float | None, total: int | None = None
) -> go.Figure:
    """What the factors do, as a share of the naive run's effect, by step; and the tolerance."""
    figure = go.Figure(_curve(metrics, "effect", "effect", VERMILLION, dash="solid"))
    if tolerance is not None:
        figure.add_hline(
            y=tolerance,
            line={"color": GREY, "dash": "dash", "width": 1.5},
            annotation={"text": f"tolerance {tolerance:g}", "xanchor": "right"},
        )
    style_figure(figure, title="Effect", x="optimiser step", y="share of naive's", height=280)
    figure.update_yaxes(rangemode="tozero")
    return _steps(figure, total)


def _curve(metrics: pd.DataFrame, column: str, name: str, colour: str, *, dash: str) -> go.Scatter:
    rows = metrics.dropna(subset=[column])
    return go.Scatter(
        x=rows["step"],
        y=rows[column],
        mode="lines",
        name=name,
        line={"color": colour, "width": 2, "dash": dash},
        hovertemplate=f"{name} at step %{{x}}: %{{y:.4f}}<extra></extra>",
    )


def _steps(figure: go.Figure, total: int | None) -> go.Figure:
    figure.update_layout(uirevision=_KEEP)
    if total:
        figure.update_xaxes(range=[0, total])
    return figure
