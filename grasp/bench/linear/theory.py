"""Closed forms for `grasp.bench.linear.model`: what weights reveal, what protecting does.

Notation.  D = diag(τ, β), R = [[1, ρ], [ρ, 1]], Q = R + ν²I is the inputs' covariance along the
cues, P = diag(p, 1 + ν²) the same off the task.  All matrices here are 2 × 2: rows stand for the
writes (t, s), columns for the cues (a_t, a_s).  T holds t and s in an orthonormal basis of
their span, (t, s minus its part along t).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from analysis.errors import InputError
from grasp.bench.linear.model import LinearWorld

FloatArray = NDArray[np.floating[Any]]
Float64Array = NDArray[np.float64]
Route = Literal["weights", "on-task", "off-task"]


@dataclass(frozen=True)
class Spike:
    """Limits for one spike θ: squared cosines of left and right singular vector, and the value."""

    left: float
    right: float
    value: float


@dataclass(frozen=True)
class Recovery:
    """What n rows reveal, for the update's two leading factors, strongest first.

    `planted` (2,): squared cosine of each factor with its own population limit, 0 below the
    transition.  `directions` (2, 2): those limits as rows, in the basis of T.  `spurious` (2,):
    squared cosine of each factor with s; its sum is that of s with the span of both.
    `retained` (2,): 1 − c/θ⁴, the share of its signal that a factor takes with it when it is
    projected out of the very update that it was found in.
    """

    planted: Float64Array
    directions: Float64Array
    spurious: Float64Array
    retained: Float64Array


def reliance(world: LinearWorld) -> Float64Array:
    """K (2, 2): how much of each write (row) the naive population update takes from each cue.

    The update is E[change xᵀ] E[x xᵀ]⁻¹ = M K Aᵀ with M = (t, s), A = (a_t, a_s) and
    K = D R Q⁻¹.  With w± = (1 ± ρ)/(1 ± ρ + ν²), R Q⁻¹ has α = (w₊ + w₋)/2 on its diagonal
    and η = (w₊ − w₋)/2 beside it: cues are blurred, so each write also leans on the other's
    cue, the more the higher ρ.  η = 0 for ρ = 0 and for sharp cues.

    Source: errors in variables, e.g. Fuller 1987, "Measurement Error Models", section 1.1.
    """
    _, R, Q = _moments(world)
    return np.asarray(_strengths(world) @ R @ np.linalg.inv(Q))


def population_update(world: LinearWorld) -> Float64Array:
    """ΔW* = M K Aᵀ (d_out, d_in), what `least_squares` tends to as n grows."""
    return np.asarray(world.writes @ reliance(world) @ world.cues.T)


def route_moment(
    world: LinearWorld, route: Route, *, task_cue_variance: float | None = None
) -> Float64Array:
    """The 2 × 2 matrix whose eigenvectors a route names as factors, in the basis of T.

    T K W Kᵀ Tᵀ with W = I for the update's own left singular vectors ("weights"), W = Q for
    principal directions of its changes on fine-tuning inputs ("on-task"), and W = P for those on
    unlabelled inputs off the task ("off-task"), where p is ν² if not given.
    """
    eye, _, Q = _moments(world)
    W = {"weights": eye, "on-task": Q, "off-task": _off_task(world, task_cue_variance)}[route]
    written = _basis(world) @ reliance(world)
    return np.asarray(written @ W @ written.T)


def eigen(matrix: Float64Array) -> tuple[Float64Array, Float64Array]:
    """Eigenvalues of a symmetric matrix, descending and not below 0, and eigenvectors as rows."""
    values, vectors = np.linalg.eigh(matrix)
    return np.maximum(values[::-1], 0.0), np.asarray(vectors.T[::-1])


def spurious_cosines(
    world: LinearWorld, route: Route, *, task_cue_variance: float | None = None
) -> Float64Array:
    """Squared cosines (2,) of a route's two population factors with s, strongest factor first.

    For t ⟂ s the factors are t and s turned by φ, tan 2φ = 2 G_ts/(G_tt − G_ss) with G the
    route's matrix.  Weights: 4 α η τβ/((α² + η²)(τ² − β²)), so the factors are t and s where
    ρ = 0 and τ ≠ β, halfway between them where τ = β and ρ ≠ 0, and anything at all where τ = β and
    ρ = 0.  Off task with p → 0 and ν → 0 the first factor is s whatever τ and β are.
    """
    moment = route_moment(world, route, task_cue_variance=task_cue_variance)
    return np.asarray((eigen(moment)[1] @ _basis(world)[:, 1]) ** 2)


def effects(
    world: LinearWorld, direction: FloatArray, *, task_cue_variance: float | None = None
) -> tuple[float, float]:
    """On-task and off-task effect of a direction (2,) in the basis of T: shares of E‖ΔW x‖².

    Their ratio tells s from t where ρ is small: what acts off the task as on it is the
    spurious one, whichever is stronger.  Where latents are correlated and τ ≈ β, it prefers
    t − s to t + s, which has the larger effect on the task.
    """
    on = route_moment(world, "on-task")
    off = route_moment(world, "off-task", task_cue_variance=task_cue_variance)
    shares = [float(direction @ m @ direction / np.trace(m)) for m in (on, off)]
    return shares[0], shares[1]


def spiked(theta_squared: float, aspect: float) -> Spike:
    """Limits of the leading singular pair of θ u vᵀ + noise, for N × m noise of variance 1/m.

    With c = N/m and θ⁴ > c: cos²(û, u) = 1 − c(1 + θ²)/(θ²(θ² + c)),
    cos²(v̂, v) = 1 − (c + θ²)/(θ²(θ² + 1)), value √((1 + θ²)(c + θ²))/θ.  Else 0, 0 and the
    bulk's edge 1 + √c: a weaker spike leaves no trace in the leading vectors.  Several spikes of
    different θ behave each for itself.  Stated for c ≤ 1; transposing shows them to hold beyond.

    Raises:
        InputError: θ² below 0 or an aspect ratio not above 0.

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
    `low_rank`) is √n ΔW* Σ̂^½ plus noise whose rows are exactly Gaussian with the residuals'
    covariance σ²I + M E Mᵀ, E = D (R − R Q⁻¹ R) D = ν² D R Q⁻¹ D, what blurred cues leave
    unexplained.  That part lies in the span of t and s too, is independent of the rest, and
    so counts as signal: K Q Kᵀ + γE.
    """
    _, R, Q = _moments(world)
    D, gamma = _strengths(world), world.base.shape[1] / n
    inner = D @ R @ np.linalg.inv(Q) @ (R + gamma * world.input_noise**2 * np.eye(2)) @ D
    return np.asarray(_basis(world) @ inner @ _basis(world).T)


def recovery(world: LinearWorld, n: int) -> Recovery:
    """What the two leading write factors of a LoRA on n rows have of the planted directions.

    The eigenvalues of `fitted_moment` over σ² d_in/n are θ² of two spikes in noise of aspect
    c = d_out/d_in (`spiked`), its eigenvectors their directions u_i; the squared cosine of factor i
    with s tends to cos²(û_i, u_i) (u_iᵀs)².  Exact as d_out, d_in and n grow in proportion.
    """
    values, directions = eigen(fitted_moment(world, n))
    d_out, d_in = world.base.shape
    theta_squared = values * n / (world.label_noise**2 * d_in)
    aspect = d_out / d_in
    planted = np.array([spiked(float(t), aspect).left for t in theta_squared])
    retained = np.maximum(1 - aspect / np.maximum(theta_squared, 1e-99) ** 2, 0.0)
    spurious = planted * (directions @ _basis(world)[:, 1]) ** 2
    return Recovery(planted, directions, spurious, retained)


def critical_strength(world: LinearWorld, n: int) -> float:
    """β below which n rows do not reveal s at all, for ρ = 0 and t ⟂ s.

    β_c² = σ² √(d_out d_in)/n · (1 + ν²)/(1 + γν²): from θ⁴ = c.
    """
    d_out, d_in = world.base.shape
    blur = world.input_noise**2
    noise = world.label_noise**2 * np.sqrt(d_out * d_in) / n
    return float(np.sqrt(noise * (1 + blur) / (1 + blur * d_in / n)))


def predicted_removal(world: LinearWorld, n: int, *, same_rows: bool) -> Float64Array:
    """Removal (2,) when one estimated factor û_i is protected, for t ⟂ s.

    Removal is of the spurious latent's own effect, sᵀ ΔW a_s.  Taking û_i out of an update
    trained on fresh rows leaves 1 − cos²(û_i, u_i) u_is (u_is + u_it K_ts/K_ss); on the same rows
    `Recovery.retained` takes the cosine's place, which is larger: there the factor has been
    fitted to the same noise.
    """
    found, K = recovery(world, n), reliance(world)
    task, spurious = found.directions.T
    share = found.retained if same_rows else found.planted
    return np.asarray(share * spurious * (spurious + task * K[0, 1] / K[1, 1]))


def task_share(world: LinearWorld, Q: FloatArray) -> float:
    """1 − ‖Qᵀt‖², the share of the best attainable task gain that protecting Q (d_out, k) leaves.

    The gain is how far ΔW lowers E‖τ t z_t − ΔW x‖².  Its maximum τ² (R Q⁻¹ R)_tt is reached by
    writing t; with QᵀΔW = 0 only (I − QQᵀ)t can be written, of squared length 1 − ‖Qᵀt‖².
    """
    return 1 - float(((Q.T @ world.task) ** 2).sum())


def random_share(d: int, k: int) -> tuple[float, float]:
    """Mean k/d and standard deviation of ‖Qᵀs‖² for a Haar random Q (d, k) and a unit s.

    It is Beta(k/2, (d − k)/2), of variance 2k(d − k)/(d²(d + 2)).  The mean is also the expected
    removal by a random Q, since E QQᵀ = (k/d) I.
    """
    return k / d, float(np.sqrt(2 * k * (d - k) / (d + 2)) / d)


def anchored_reliance(
    world: LinearWorld, *, weight: float, task_cue_variance: float | None = None
) -> Float64Array:
    """sᵀΔW (a_t, a_s) (2,) when Q = s is anchored on inputs off the task, in the population.

    (sᵀt, 1) D R (Q + weight · P)⁻¹.  Where neutral inputs look like the task now and then
    (p > 0) both entries vanish as 1/weight.  Where they never do (p = 0), the second vanishes and
    the first tends to (βρ + τ sᵀt)/(1 + ν²): off the task nothing is left, but the task's own cue
    writes s instead of the spurious one.
    """
    _, R, Q = _moments(world)
    along = np.array([world.spurious @ world.task, 1.0]) @ _strengths(world) @ R
    return np.asarray(along @ np.linalg.inv(Q + weight * _off_task(world, task_cue_variance)))


def ablation_loss(world: LinearWorld, Q: FloatArray) -> float:
    """E‖QᵀW₀x‖² off the task: pretrained output that ablating Q takes away, and GRASP keeps.

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
