"""How a method protects a subspace, and what each arm of the comparison is.  Torch-free.

The arms themselves are listed in `grasp.settings.methods`.
"""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from analysis.errors import InputError
from grasp.settings.training import Settings, TrainConfig, checked

Site = Literal["prompt-end", "answer-start", "answer", "all"]
"""Tokens that anchors, drift and footprint look at: the last before each answer, where its first
token is predicted; those and the answer's first two; those and all tokens of the answers; or every
real token."""

Group = Literal["GRASP and its parts", "controls", "rivals"]
Need = Literal["factors", "neutral text", "inoculation prompt"]


class Protection(Settings):
    """How training keeps a subspace Q from taking up new reliance; see docs/method.md.

    Parts of GRASP, with what they add to the time of a plain step:

    - `gradient_projection`: backward, G ← G − (G Q) Qᵀ at every decoder layer's output; nothing.
    - `write_constraint`: after each optimiser step B ← B − Q (Qᵀ B) on modules that write the
      residual stream; exact under any optimiser; next to nothing.  `indirect`: also on modules
      that feed those; see `grasp.guard.constraint`.
    - `anchor`: penalty on ‖Λ^(−1/2) Qᵀ (h − h⁰)‖² over all layers, on neutral text; one forward
      and backward pass of a neutral batch, since h⁰ is kept.  `strength` is its weight λ, and
      `neutral_share` the share of a neutral batch's rows that each step takes in turn.
    - `anchor_task`: the same on the task's own tokens; one forward pass of the base model in the
      first epoch, and nothing afterwards.
    - `tolerance`: RMS drift τ, in standard deviations of the base model's own coordinates, that
      an anchor may not let through; λ is then a multiplier, 0 while drift is below τ, and
      `strength` does not count.
    - `clamp`: h ← h − Q Qᵀ (h − h⁰) in the forward pass of training; as `anchor_task`.
    - `site`: tokens at which anchors, drift and divergence count.
    - `footprint`: where not 0, Q_ℓ is what the factors become at layer ℓ of the naive fine-tune:
      at most so many directions, measured on the neutral text.
    - `random_subspace`: turn all Q_ℓ by one random rotation of the stream (the control).

    Parts of rivals:

    - `ablation`: h ← h − Q Qᵀ h in the forward pass of training; nothing.
    - `share`: of what `ablation`, `clamp` and `gradient_projection` take away.
    - `steering`: h ← h + α v in the forward pass of training, v as in `grasp.guard.steering`;
      nothing.
    - `divergence`: penalty `strength` · KL(base ‖ adapted), in nats a token, on neutral text (a
      forward pass of both and a backward pass), on the task's tokens (a forward pass of the
      base), or on the base model's own answers to the task's prompts (as on neutral text).
    - `all_directions`: Q is the whole stream, so that the anchor distils the base's activations;
      their d_model numbers are kept for every token of the site.

    Raises:
        ValueError: (pydantic's ValidationError) a setting is unknown or out of range, or two of
            them exclude each other.

    Example:
        >>> protection = grasp.Protection(write_constraint=True, anchor=True, tolerance=0.3)
        >>> protection.model_copy(update={"tolerance": 0.1}).tolerance
        0.1

    Source: this project's reading of arXiv:2605.27676; rivals as `grasp.settings.methods` cites.
    """

    gradient_projection: bool = False
    write_constraint: bool = False
    indirect: bool = False
    anchor: bool = False
    anchor_task: bool = False
    neutral_share: float = Field(1.0, gt=0, le=1)
    neutral_every: int = Field(1, ge=1)
    strength: float = Field(1.0, ge=0)
    tolerance: float | None = Field(None, gt=0)
    clamp: bool = False
    site: Site = "answer-start"
    footprint: int = Field(0, ge=0)
    random_subspace: bool = False
    ablation: bool = False
    share: float = Field(1.0, ge=0, le=1)
    steering: float = Field(0.0, ge=0)
    divergence: Literal["neutral", "task", "own"] | None = None
    all_directions: bool = False

    @property
    def on_task(self) -> bool:
        """Whether a part looks at the forward pass of the task's own loss."""
        return self.anchor_task or self.clamp or self.divergence == "task"

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.indirect and not self.write_constraint:
            raise ValueError("the indirect constraint needs write_constraint too")
        if self.divergence is not None and (self.anchor or self.anchor_task):
            raise ValueError("a divergence and an anchor would share one strength; choose one")
        if self.divergence is not None and self.tolerance is not None:
            raise ValueError("a tolerance is of drift, not of a divergence; give a strength")
        return self


class Knob(Settings):
    """The strength of a method: what it is called, what it means and in which unit.

    `setting` is the field of `Protection` or `TrainConfig` that it sets, or the argument of an
    edit or intervention; `grid` are values to sweep.
    """

    name: str
    meaning: str
    setting: str
    default: float
    grid: tuple[float, ...]


class Method(Settings):
    """An arm of the comparison: its name, one sentence about it, and what it does.

    `kind` "edit" changes a finished adapter, "inference" keeps it and intervenes when it answers.
    """

    name: str
    label: str
    description: str
    group: Group
    needs: tuple[Need, ...] = ()
    kind: Literal["training", "edit", "inference"] = "training"
    protection: Protection | None = None
    knob: Knob | None = None

    @property
    def trains(self) -> bool:
        """Whether it fine-tunes again."""
        return self.kind == "training"

    def value(self, strength: float | None) -> float | None:
        """The knob's value, where `strength` is that or None for the default.

        Raises:
            InputError: a strength was given, but the method has none.
        """
        if self.knob is None:
            if strength is not None:
                raise InputError(f"Method {self.name!r} has no strength; leave it out.")
            return None
        return self.knob.default if strength is None else strength

    def protection_at(self, strength: float | None) -> Protection | None:
        """The protection with the knob at a value, where it is one of the protection's settings."""
        value = self.value(strength)
        if self.protection is None or self.knob is None:
            return self.protection
        if self.knob.setting not in Protection.model_fields:
            return self.protection
        changed = self.protection.model_dump() | {self.knob.setting: value}
        return parse_protection(changed, source=f"method {self.name!r}")

    def config_at(self, config: TrainConfig, strength: float | None) -> TrainConfig:
        """The settings of a fine-tune with the knob at a value, where it is one of them.

        A lower rank keeps `lora_alpha` / r, the scale of the update; fewer steps keep the rest.

        Raises:
            InputError: the value is none that the setting can take.
        """
        value = self.value(strength)
        changed: dict[str, Any] = {}
        if self.knob is not None and value is not None:
            if self.knob.setting == "weight_decay":
                changed = {"weight_decay": value}
            elif self.knob.setting == "max_steps":
                changed = config.shortened(value)
            elif self.knob.setting == "lora.r":
                if config.lora.rank_pattern or config.lora.alpha_pattern:
                    raise InputError(
                        f"Method {self.name!r} sets one rank for all modules, and the run's LoRA "
                        "has ranks or alphas of its own for some; choose another method."
                    )
                alpha = config.lora.lora_alpha * value / config.lora.r
                changed = {"lora": config.lora.model_dump() | {"r": value, "lora_alpha": alpha}}
        return checked(TrainConfig, config.model_dump() | changed, f"method {self.name!r}")


def parse_protection(data: dict[str, Any], *, source: str) -> Protection:
    """Check the settings of a protection; the first that does not fit is named."""
    return checked(Protection, data, source)
