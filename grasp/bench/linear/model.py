"""A linear world with a planted task direction and a planted spurious one, and fine-tunes of it.

This is the smallest setting in which the project's two claims can be checked against closed
forms (`grasp.bench.linear.theory`).  It has a base map W₀; inputs that carry a task latent and a
spurious latent, correlated in the fine-tuning data but not off the task; and targets that depend
on both:

    x = a_t z_t + a_s z_s + ν ε,    y = W₀ x + τ t z_t + β s z_s + σ ξ,    corr(z_t, z_s) = ρ.

Only τ t z_t is wanted.  Whatever else the naive fine-tune learns is drift: it writes s.  This is
our own model, not the setting of the theorem in arXiv:2605.27676, of which we had only the
abstract; docs/method/identifiability.md reports the results.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analysis.errors import InputError
from analysis.spectra.spectrum import fix_signs
from analysis.spectra.subspace import random_subspace

FloatArray = NDArray[np.floating]
Float64Array = NDArray[np.float64]


@dataclass(frozen=True)
class LinearWorld:
    """The true parameters of one world.

    `base` is W₀ (d_out, d_in).  `writes` (d_out, 2) has unit columns t and s: the task latent
    should be written to t, the spurious latent should not be written to s.  `cues` (d_in, 2) has
    orthonormal columns a_t and a_s, along which inputs show the latents.  Strengths τ and β
    and `label_noise` σ are standard deviations of outputs, `input_noise` ν of inputs.  Latents
    have variance 1, and `correlation` ρ in the fine-tuning data.
    """

    base: Float64Array
    writes: Float64Array
    cues: Float64Array
    task_strength: float
    spurious_strength: float
    correlation: float
    input_noise: float
    label_noise: float

    @property
    def task(self) -> Float64Array:
        """The write direction t (d_out,)."""
        return self.writes[:, 0]

    @property
    def spurious(self) -> Float64Array:
        """The write direction s (d_out,)."""
        return self.writes[:, 1]


@dataclass(frozen=True)
class Sample:
    """Fine-tuning data: `inputs` (n, d_in), `changes` y − W₀x (n, d_out), `latents` (n, 2)."""

    inputs: Float64Array
    changes: Float64Array
    latents: Float64Array


def plant(
    d_out: int,
    d_in: int,
    *,
    task_strength: float,
    spurious_strength: float,
    correlation: float = 0.0,
    overlap: float = 0.0,
    pretrained: float = 0.0,
    input_noise: float = 0.5,
    label_noise: float = 1.0,
    seed: int,
) -> LinearWorld:
    """Draw a world with Haar random directions.

    Args:
        d_out: dimensions of the output.
        d_in: dimensions of the input.
        task_strength: τ.
        spurious_strength: β.
        correlation: ρ between the latents in the fine-tuning data.
        overlap: tᵀs.
        pretrained: what W₀ writes to s per unit of the spurious cue, in addition to a random
            map with entries of variance 1/d_in.
        input_noise: ν, the blur of the cues and the inputs' deviation in all other directions.
        label_noise: σ.
        seed: of the directions and of W₀.

    Raises:
        InputError: |correlation| or |overlap| is 1 or more, a strength is negative, a noise is
            not positive, or there are fewer than 2 dimensions.
    """
    cosines = {"correlation": correlation, "overlap": overlap}
    _check(d_out, d_in, cosines, {"input": input_noise, "label": label_noise})
    if min(task_strength, spurious_strength) < 0:
        raise InputError(
            f"Got strengths {task_strength} and {spurious_strength}; expected at least 0."
        )
    outputs = random_subspace(d_out, 2, seed=2 * seed)
    cues = random_subspace(d_in, 2, seed=2 * seed + 1)
    spurious = overlap * outputs[:, 0] + np.sqrt(1 - overlap**2) * outputs[:, 1]
    noise = np.random.default_rng([seed, d_out, d_in]).standard_normal((d_out, d_in))
    return LinearWorld(
        base=noise / np.sqrt(d_in) + pretrained * np.outer(spurious, cues[:, 1]),
        writes=np.column_stack([outputs[:, 0], spurious]),
        cues=cues,
        task_strength=task_strength,
        spurious_strength=spurious_strength,
        correlation=correlation,
        input_noise=input_noise,
        label_noise=label_noise,
    )


def sample(world: LinearWorld, n: int, *, seed: int) -> Sample:
    """Draw n rows of fine-tuning data; everything is Gaussian."""
    rng = np.random.default_rng(seed)
    first, second = rng.standard_normal((2, n))
    rho = world.correlation
    latents = np.column_stack([first, rho * first + np.sqrt(1 - rho**2) * second])
    strengths = np.array([world.task_strength, world.spurious_strength])
    d_out, d_in = world.base.shape
    return Sample(
        inputs=latents @ world.cues.T + world.input_noise * rng.standard_normal((n, d_in)),
        changes=(latents * strengths) @ world.writes.T
        + world.label_noise * rng.standard_normal((n, d_out)),
        latents=latents,
    )


def off_task_inputs(
    world: LinearWorld, n: int, *, task_cue_variance: float | None = None, seed: int
) -> Float64Array:
    """Draw n unlabelled inputs (n, d_in) off the task: with the spurious latent only.

    `task_cue_variance` is their variance along a_t: None for ν² (blur alone), 0 if such inputs
    never resemble the task.
    """
    rng = np.random.default_rng(seed)
    inputs = world.input_noise * rng.standard_normal((n, world.base.shape[1]))
    if task_cue_variance is not None:
        scale = np.sqrt(task_cue_variance) / world.input_noise
        inputs += (scale - 1) * np.outer(inputs @ world.cues[:, 0], world.cues[:, 0])
    return np.asarray(inputs + np.outer(rng.standard_normal(n), world.cues[:, 1]))


def fit_least_squares(inputs: FloatArray, changes: FloatArray) -> Float64Array:
    """ΔW (d_out, d_in) that minimises Σ‖change − ΔW x‖²: a naive fine-tune of full rank.

    Raises:
        InputError: the numbers of rows differ, or there are fewer rows than input dimensions.
    """
    if inputs.shape[0] != changes.shape[0]:
        raise InputError(
            f"Got {inputs.shape[0]} inputs for {changes.shape[0]} changes; expected one each."
        )
    if inputs.shape[0] < inputs.shape[1]:
        raise InputError(
            f"Got {inputs.shape[0]} rows in {inputs.shape[1]} dimensions, for which least squares "
            "has no unique solution; draw at least as many rows as dimensions."
        )
    moment = inputs.T @ inputs
    return np.asarray(np.linalg.solve(moment, inputs.T @ changes).T)


def fit_low_rank(
    inputs: FloatArray, changes: FloatArray, *, r: int
) -> tuple[Float64Array, Float64Array]:
    """Adapter halves B (d_out, r), A (r, d_in) of the best update of rank r: a naive LoRA.

    With L the least-squares update and Σ̂ = XᵀX/n, ‖Y − X(BA)ᵀ‖² is n ‖(L − BA) Σ̂^½‖²_F up to a
    constant, so by Eckart and Young BA = U_r U_rᵀ L, where U_r are the leading left singular
    vectors of L Σ̂^½.  The column space of B is thus spanned by the leading principal directions
    of the fitted changes.  There is no other local minimum, so gradient descent finds it too.

    Raises:
        InputError: as `fit_least_squares`, or not 1 ≤ r ≤ min(d_out, d_in).

    Source: Izenman 1975, doi:10.1016/0047-259X(75)90042-1; Baldi & Hornik 1989,
    doi:10.1016/0893-6080(89)90014-2.
    """
    full = fit_least_squares(inputs, changes)
    if not 1 <= r <= min(full.shape):
        raise InputError(
            f"Got rank {r} for an update of shape {full.shape}; expected 1 to {min(full.shape)}."
        )
    B = response_factors(full, inputs, k=r)
    return B, B.T @ full


def fit_protected(
    inputs: FloatArray, changes: FloatArray, *, Q: FloatArray, r: int
) -> tuple[Float64Array, Float64Array]:
    """GRASP's hard form: halves B, A of the best update of rank r with Qᵀ B A = 0.

    Outputs inside and outside the span of Q (d_out, k) are separate regressions, so the solution
    is `fit_low_rank` on the changes without their part in Q.  Outputs in Q remain those of the base
    map: Qᵀ(W₀ + BA)x = QᵀW₀x for every x.

    Raises:
        InputError: as `fit_low_rank`.
    """
    return fit_low_rank(inputs, changes - (changes @ Q) @ Q.T, r=r)


def fit_anchored(
    inputs: FloatArray, changes: FloatArray, *, Q: FloatArray, neutral: FloatArray, weight: float
) -> Float64Array:
    """GRASP's soft form: ΔW (d_out, d_in) that minimises, in mean squares,

        ‖change − ΔW x‖² over the fine-tuning data + weight · ‖Qᵀ ΔW x‖² over neutral inputs.

    Outside Q (d_out, k) it equals `fit_least_squares`; inside,
    QᵀΔW = QᵀĈ (Σ̂ + weight · Σ̂_neutral)⁻¹ with Ĉ = YᵀX/n.  The rank is not limited.

    Raises:
        InputError: as `fit_least_squares`.
    """
    free = fit_least_squares(inputs, changes)
    n = len(inputs)
    moment = inputs.T @ inputs / n + weight * neutral.T @ neutral / len(neutral)
    held = np.linalg.solve(moment, inputs.T @ (changes @ Q) / n).T
    return np.asarray(free + Q @ (held - Q.T @ free))


def leading_factors(update: FloatArray, *, k: int) -> Float64Array:
    """Leading k left singular vectors (d_out, k) of an update, which are its write factors."""
    return fix_signs(np.linalg.svd(update)[0][:, :k])[0]


def response_factors(update: FloatArray, inputs: FloatArray, *, k: int) -> Float64Array:
    """Leading k principal directions (d_out, k) of the changes ΔW x that an update makes.

    They are the left singular vectors of ΔW Σ̂^½, without centring, since inputs have mean zero.
    """
    triangle = np.asarray(np.linalg.qr(inputs, mode="r"), dtype=np.float64)
    return fix_signs(np.linalg.svd(update @ triangle.T)[0][:, :k])[0]


def measure_effects(
    update: FloatArray, directions: FloatArray, *, inputs: FloatArray, neutral: FloatArray
) -> tuple[Float64Array, Float64Array]:
    """On-task and off-task effect (k,) of directions (d_out, k): shares of the mean ‖ΔW x‖²."""
    on, off = (
        np.sum((x @ update.T @ directions) ** 2, axis=0) / np.sum((x @ update.T) ** 2)
        for x in (inputs, neutral)
    )
    return np.asarray(on), np.asarray(off)


def _check(d_out: int, d_in: int, cosines: dict[str, float], noises: dict[str, float]) -> None:
    if min(d_out, d_in) < 2:
        raise InputError(f"Got {d_out} × {d_in} dimensions; expected at least 2 × 2.")
    for name, value in cosines.items():
        if not -1 < value < 1:
            raise InputError(f"Got {name} {value}; expected a number between -1 and 1.")
    for name, value in noises.items():
        if not value > 0:
            raise InputError(f"Got {name} noise {value}; expected a standard deviation above 0.")
