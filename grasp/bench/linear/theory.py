"""Closed forms for `grasp.bench.linear.model`: what weights reveal, and what protecting does.

Notation.  D = diag(τ, β), R = [[1, ρ], [ρ, 1]], Q = R + ν²I is the inputs' covariance along the
cues, P = diag(p, 1 + ν²) the same off the task.  All these matrices are 2 × 2: rows stand for the
writes (t, s), columns for the cues (a_t, a_s).  The columns of T are t and s in an orthonormal
basis of their span: t, and s without its part along t.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from analysis.errors import InputError
from grasp.bench.linear.model import LinearWorld

FloatArray = NDArray[np.floating]
Float64Array = NDArray[np.float64]
Route = Literal["weights", "on-task", "off-task"]


@dataclass(frozen=True)
class Spike:
    """Limits for one spike θ: squared cosines of both singular vectors, and the singular value."""

    left: float
    right: float
    value: float


@dataclass(frozen=True)
class Recovery:
    """What n rows reveal about the update's two leading factors, strongest first.

    `planted` (2,): squared cosine of each factor with its own population limit, 0 below the
    transition.  `directions` (2, 2): these limits as rows, in the basis of T.  `spurious` (2,):
    squared cosine of each factor with s; the sum is that of s with the span of both.
    `retained` (2,): 1 − c/θ⁴, the share of its signal that disappears when a factor is projected
    out of the same update in which it was found.
    """

    planted: Float64Array
    directions: Float64Array
    spurious: Float64Array
    retained: Float64Array


def reliance(world: LinearWorld) -> Float64Array:
    """K (2, 2): how much the naive population update writes to t and s (rows) from each cue.

    The update is E[change xᵀ] E[x xᵀ]⁻¹ = M K Aᵀ with M = (t, s), A = (a_t, a_s) and
    K = D R Q⁻¹.  With w± = (1 ± ρ)/(1 ± ρ + ν²), R Q⁻¹ has α = (w₊ + w₋)/2 on its diagonal
    and η = (w₊ − w₋)/2 off it: because cues are blurred, each write also relies on the other
    cue, more so for larger ρ.  η = 0 for ρ = 0 and for sharp cues.

    Source: errors in variables, e.g. Fuller 1987, "Measurement Error Models", section 1.1.
    """
    _, R, Q = _moments(world)
    return np.asarray(_strengths(world) @ R @ np.linalg.inv(Q))


def population_update(world: LinearWorld) -> Float64Array:
    """ΔW* = M K Aᵀ (d_out, d_in), the limit of `least_squares` as n grows."""
    return np.asarray(world.writes @ reliance(world) @ world.cues.T)


def route_moment(
    world: LinearWorld, route: Route, *, task_cue_variance: float | None = None
) -> Float64Array:
    """The 2 × 2 matrix whose eigenvectors are the factors of a route, in the basis of T.

    It is T K W Kᵀ Tᵀ.  W = I gives the left singular vectors of the update ("weights"), W = Q
    the principal directions of its changes on fine-tuning inputs ("on-task"), and W = P those on
    unlabelled inputs off the task ("off-task"), with p = ν² if `task_cue_variance` is None.
    """
    eye, _, Q = _moments(world)
    W = {"weights": eye, "on-task": Q, "off-task": _off_task(world, task_cue_variance)}[route]
    written = _basis(world) @ reliance(world)
    return np.asarray(written @ W @ written.T)


def eigen(matrix: Float64Array) -> tuple[Float64Array, Float64Array]:
    """Eigenvalues of a symmetric matrix, descending and at least 0, and eigenvectors as rows."""
    values, vectors = np.linalg.eigh(matrix)
    return np.maximum(values[::-1], 0.0), np.asarray(vectors.T[::-1])


def spurious_cosines(
    world: LinearWorld, route: Route, *, task_cue_variance: float | None = None
) -> Float64Array:
    """Squared cosines (2,) of a route's two population factors with s, strongest factor first.

    For t ⟂ s the factors are t and s rotated by φ, tan 2φ = 2 G_ts/(G_tt − G_ss) with G the
    route's matrix.  For weights this is 4 α η τβ/((α² + η²)(τ² − β²)), so the factors are t and s
    if ρ = 0 and τ ≠ β, halfway between them if ρ ≠ 0 and τ = β, and undetermined if ρ = 0 and
    τ = β.  Off the task, with p → 0 and ν → 0, the first factor is s for all τ and β.
    """
    moment = route_moment(world, route, task_cue_variance=task_cue_variance)
    return np.asarray((eigen(moment)[1] @ _basis(world)[:, 1]) ** 2)


def expected_effects(
    world: LinearWorld, direction: FloatArray, *, task_cue_variance: float | None = None
) -> tuple[float, float]:
    """On-task and off-task effect of a direction (2,) in the basis of T: shares of E‖ΔW x‖².

    For small ρ their ratio tells s from t: the direction that also acts off the task is the
    spurious one, whichever is stronger.  If the latents are correlated and τ ≈ β, the ratio
    prefers t − s to t + s, since t + s has the larger effect on the task.
    """
    on = route_moment(world, "on-task")
    off = route_moment(world, "off-task", task_cue_variance=task_cue_variance)
    shares = [float(direction @ m @ direction / np.trace(m)) for m in (on, off)]
    return shares[0], shares[1]


def spike_limits(theta_squared: float, aspect: float) -> Spike:
    """Limits of the leading singular pair of θ u vᵀ + noise, for N × m noise of variance 1/m.

    With c = N/m and θ⁴ > c: cos²(û, u) = 1 − c(1 + θ²)/(θ²(θ² + c)),
    cos²(v̂, v) = 1 − (c + θ²)/(θ²(θ² + 1)), value √((1 + θ²)(c + θ²))/θ.  Otherwise 0, 0 and the
    edge of the bulk, 1 + √c: a weaker spike leaves no trace in the leading vectors.  Several
    spikes of different θ do not affect each other.  The source states this for c ≤ 1; transposing
    extends it to c > 1.

    Args:
        theta_squared: θ².
        aspect: c.

    Raises:
        InputError: θ² is negative, or c is not positive.

    Source: Benaych-Georges & Nadakuditi 2012, doi:10.1016/j.jmva.2012.04.019, section 3.1.
    """
    if theta_squared < 0 or aspect <= 0:
        raise InputError(f"Got θ² = {theta_squared}, c = {aspect}; expected θ² ≥ 0 and c > 0.")
    q, c = theta_squared, aspect
    if q**2 <= c:
        return Spike(0.0, 0.0, 1 + np.sqrt(c))
    value = float(np.sqrt((1 + q) * (c + q) / q))
    return Spike(1 - c * (1 + q) / (q * (q + c)), 1 - (c + q) / (q * (q + 1)), value)


def fitted_moment(world: LinearWorld, n: int) -> Float64Array:
    """Energy of the signal in the fitted changes per row, (2, 2) in the basis of T.

    S = T D R Q⁻¹ (R + γν² I) D Tᵀ, γ = d_in/n.  Derivation: given the inputs, √n L Σ̂^½ (see
    `low_rank`) is √n ΔW* Σ̂^½ plus noise whose columns are exactly Gaussian with the covariance
    of the residuals, σ²I + M E Mᵀ.  Here E = D (R − R Q⁻¹ R) D = ν² D R Q⁻¹ D is what blurred
    cues leave unexplained.  It also lies in the span of t and s and is independent of the rest,
    so it counts as signal: K Q Kᵀ + γE.
    """
    _, R, Q = _moments(world)
    D, gamma = _strengths(world), world.base.shape[1] / n
    inner = D @ R @ np.linalg.inv(Q) @ (R + gamma * world.input_noise**2 * np.eye(2)) @ D
    return np.asarray(_basis(world) @ inner @ _basis(world).T)


def recovery(world: LinearWorld, n: int) -> Recovery:
    """How much of the planted directions the two leading write factors of a LoRA contain.

    The LoRA is trained on n rows.  The eigenvalues of `fitted_moment` over σ² d_in/n are the θ²
    of two spikes in noise of aspect ratio c = d_out/d_in (see `spike_limits`), and its
    eigenvectors are their directions u_i.  The squared cosine of factor i with s tends to
    cos²(û_i, u_i) (u_iᵀs)², exactly so as d_out, d_in and n grow in proportion.
    """
    values, directions = eigen(fitted_moment(world, n))
    d_out, d_in = world.base.shape
    theta_squared = values * n / (world.label_noise**2 * d_in)
    aspect = d_out / d_in
    planted = np.array([spike_limits(float(t), aspect).left for t in theta_squared])
    retained = np.maximum(1 - aspect / np.maximum(theta_squared, 1e-99) ** 2, 0.0)
    spurious = planted * (directions @ _basis(world)[:, 1]) ** 2
    return Recovery(planted, directions, spurious, retained)


def critical_strength(world: LinearWorld, n: int) -> float:
    """The β below which n rows do not reveal s at all, for ρ = 0 and t ⟂ s.

    β_c² = σ² √(d_out d_in)/n · (1 + ν²)/(1 + γν²), from θ⁴ = c.
    """
    d_out, d_in = world.base.shape
    blur = world.input_noise**2
    noise = world.label_noise**2 * np.sqrt(d_out * d_in) / n
    return float(np.sqrt(noise * (1 + blur) / (1 + blur * d_in / n)))


def predicted_removal(world: LinearWorld, n: int, *, same_rows: bool) -> Float64Array:
    """Removal (2,) when one of the two estimated factors û_i is protected, for t ⟂ s.

    Removal refers to the spurious latent's own effect, sᵀ ΔW a_s.  Protecting û_i in an update
    trained on fresh rows removes cos²(û_i, u_i) u_is (u_is + u_it K_ts/K_ss).  On the same rows
    `Recovery.retained`, which is larger, replaces the cosine, because the factor was fitted to
    the same noise.
    """
    found, K = recovery(world, n), reliance(world)
    task, spurious = found.directions.T
    share = found.retained if same_rows else found.planted
    return np.asarray(share * spurious * (spurious + task * K[0, 1] / K[1, 1]))


def task_share(world: LinearWorld, Q: FloatArray) -> float:
    """1 − ‖Qᵀt‖², the share of the largest task gain that remains when Q (d_out, k) is protected.

    The gain is the reduction of E‖τ t z_t − ΔW x‖² by ΔW.  Its maximum τ² (R Q⁻¹ R)_tt is reached
    by writing t; with QᵀΔW = 0 only (I − QQᵀ)t, of squared length 1 − ‖Qᵀt‖², can be written.
    """
    return 1 - float(((Q.T @ world.task) ** 2).sum())


def random_share(d: int, k: int) -> tuple[float, float]:
    """Mean k/d and standard deviation of ‖Qᵀs‖² for a Haar random Q (d, k) and a unit vector s.

    The distribution is Beta(k/2, (d − k)/2), with variance 2k(d − k)/(d²(d + 2)).  The mean is
    also the expected removal by a random Q, since E QQᵀ = (k/d) I.
    """
    return k / d, float(np.sqrt(2 * k * (d - k) / (d + 2)) / d)


def anchored_reliance(
    world: LinearWorld, *, weight: float, task_cue_variance: float | None = None
) -> Float64Array:
    """sᵀΔW (a_t, a_s) (2,) when s is anchored on inputs off the task, in the population.

    It is (sᵀt, 1) D R (Q + weight · P)⁻¹.  If neutral inputs sometimes resemble the task (p > 0),
    both entries vanish as 1/weight.  If they never do (p = 0), the second vanishes and the first
    tends to (βρ + τ sᵀt)/(1 + ν²): nothing is left off the task, but the task's cue now writes s
    in place of the spurious cue.
    """
    _, R, Q = _moments(world)
    along = np.array([world.spurious @ world.task, 1.0]) @ _strengths(world) @ R
    return np.asarray(along @ np.linalg.inv(Q + weight * _off_task(world, task_cue_variance)))


def ablation_loss(world: LinearWorld, Q: FloatArray) -> float:
    """E‖QᵀW₀x‖² off the task: pretrained output that ablating Q removes and GRASP keeps.

    tr(QᵀW₀ Σ W₀ᵀQ) with Σ = ν²I + a_s a_sᵀ.
    """
    along = Q.T @ world.base
    blur = world.input_noise**2 * (along**2).sum()
    return float(blur + ((along @ world.cues[:, 1]) ** 2).sum())


def _moments(world: LinearWorld) -> tuple[Float64Array, Float64Array, Float64Array]:
    R = np.array([[1.0, world.correlation], [world.correlation, 1.0]])
    return np.eye(2), R, R + world.input_noise**2 * np.eye(2)


def _off_task(world: LinearWorld, task_cue_variance: float | None) -> Float64Array:
    blur = world.input_noise**2
    return np.diag([blur if task_cue_variance is None else task_cue_variance, 1 + blur])


def _strengths(world: LinearWorld) -> Float64Array:
    return np.diag([world.task_strength, world.spurious_strength])


def _basis(world: LinearWorld) -> Float64Array:
    overlap = float(world.task @ world.spurious)
    return np.array([[1.0, overlap], [0.0, np.sqrt(1 - overlap**2)]])
