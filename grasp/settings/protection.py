"""How a method protects a subspace, and what an arm of the comparison is.  Torch-free.

The arms themselves are listed in `grasp.settings.methods`.
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from analysis.errors import InputError
from analysis.values import Json
from grasp.settings.training import Settings, TrainConfig, check_settings

Site = Literal["prompt-end", "answer-start", "answer", "all"]
"""The tokens that anchors, drift and footprint look at:

- "prompt-end": the last token before each answer, which predicts the answer's first token;
- "answer-start": that token and the first two of the answer;
- "answer": that token and all tokens of the answer;
- "all": every token but padding.
"""

Group = Literal["GRASP and its parts", "controls", "rivals"]
Need = Literal["factors", "neutral text", "inoculation prompt"]


class Protection(Settings):
    """How training keeps new reliance out of a subspace Q; see docs/method/method.md, "GRASP".

    Parts of GRASP, each with its extra time per training step:

    - `gradient_projection`: backward, G ← G − (G Q) Qᵀ at every decoder layer's output.  No extra
      time.
    - `write_constraint`: after each optimiser step, B ← B − Q (Qᵀ B) on the modules that write to
      the residual stream; exact under any optimiser.  Almost no extra time.  `indirect` extends
      it to the modules that feed those; see `grasp.guard.constraint`.
    - `anchor`: a penalty on ‖Λ^(−1/2) Qᵀ (h − h⁰)‖² over all layers, on neutral text, with weight
      `strength` = λ.  One forward and backward pass of a neutral batch, since h⁰ is cached.  Each
      step takes the next `neutral_share` of the rows of a neutral batch.
    - `anchor_task`: the same penalty on the task's own tokens.  One forward pass of the base model
      per step in the first epoch, none afterwards.
    - `effect`: a penalty on the squared effect of the factors on neutral text, as a share of the
      naive run's own (0 for the base model, 1 for the naive run), with weight `strength` = λ in
      nats; see `grasp.guard.effect`.  Time as for `anchor`.
    - `dressed`: take every second penalty on neutral text that is dressed as the task's own
      prompts are; see `grasp.data.dress`.
    - `own_chats`: neutral text is also the base model's own chats, which show whatever a factor
      does; see `grasp.training.own_chats`.  A loop of your own adds them to its neutral text.
    - `own_step`: follow the penalty's gradient by a step of its own beside the optimiser's, so that
      it does not slow what the loss teaches; see `grasp.guard.own_step`.  Almost no extra time.
    - `tolerance`: the largest drift, and the largest effect, as a share of the naive run's own on
      the same text.  λ is then a multiplier, 0 while they are below it, and `strength` is ignored.
    - `clamp`: h ← h − Q Qᵀ (h − h⁰) in the forward pass of training.  Time as for `anchor_task`.
    - `site`: the tokens at which anchors, drift and divergence are measured.
    - `footprint`: if not 0, Q_ℓ is what the factors become at layer ℓ of the naive fine-tune,
      measured on neutral text, with at most this many directions.
    - `random_subspace`: turn all Q_ℓ by one random rotation of the stream (the control).

    Parts of rivals:

    - `ablation`: h ← h − Q Qᵀ h in the forward pass of training.  No extra time.
    - `share`: the share that `ablation`, `clamp`, `gradient_projection` and carving remove.
    - `steering`: h ← h + α v in the forward pass of training, with v from `grasp.guard.steering`.
      No extra time.
    - `divergence`: a penalty `strength` · KL(base ‖ adapted), in nats per token, on neutral text
      (a forward pass of both models and a backward pass), on the task's tokens (a forward pass of
      the base model, and one more of the adapted where the loss keeps no logits, as in TRL), or on
      the base model's own answers to the task's prompts (as on neutral text).
    - `interleaved`: the share of the training rows that are neutral text in place of the task's;
      `widest_gap` takes those that the naive run finds most perplexing beside the base model.  A
      loop of your own mixes them in itself; see `grasp.training.interleaving`.
    - `all_directions`: Q is the whole residual stream, so the anchor distils the base model's
      activations; d_model numbers are cached for every token of the site.

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
    effect: bool = False
    dressed: bool = False
    own_chats: bool = False
    own_step: bool = False
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
    interleaved: float = Field(0.0, ge=0, lt=1)
    widest_gap: bool = False

    @property
    def on_task(self) -> bool:
        """Whether a part looks at the forward pass of the task's own loss."""
        return self.anchor_task or self.clamp or self.divergence == "task"

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.indirect and not self.write_constraint:
            raise ValueError("indirect needs write_constraint too")
        anchors = self.anchor or self.anchor_task
        if self.divergence is not None and (anchors or self.effect):
            raise ValueError("a divergence and an anchor would share one strength; choose one")
        if self.effect and anchors and self.tolerance is None:
            raise ValueError(
                "drift and effect have no common unit, so they cannot share one strength; give a "
                "tolerance, or hold only one of them"
            )
        if self.divergence is not None and self.tolerance is not None:
            raise ValueError("a tolerance limits drift, not a divergence; give a strength")
        if self.anchor_task and self.tolerance is not None:
            raise ValueError(
                "a tolerance is a share of what the naive run does on neutral text, so it cannot "
                "limit drift on the task's tokens; give a strength"
            )
        if self.dressed and not (self.effect or self.anchor or self.divergence == "neutral"):
            raise ValueError("dressed text is neutral text; switch on a part that is held there")
        if self.widest_gap and not self.interleaved:
            raise ValueError("widest_gap chooses interleaved rows; give interleaved a share too")
        return self


class Knob(Settings):
    """The strength of a method: what it is called, what it means and in which unit.

    `setting` is the field of `Protection` or `TrainConfig` that it sets, or the argument of an
    edit or intervention; `grid` holds the values to sweep.
    """

    name: str
    meaning: str
    setting: str
    default: float
    grid: tuple[float, ...]


class Method(Settings):
    """An arm of the comparison: its name, a one-sentence description, and what it does.

    Kind "edit" changes a finished adapter; "inference" keeps it and intervenes when it answers.
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
        """Whether the method fine-tunes again."""
        return self.kind == "training"

    def value(self, strength: float | None) -> float | None:
        """The value of the knob: `strength`, or the default if that is None.

        Raises:
            InputError: a strength was given, but the method has none.
        """
        if self.knob is None:
            if strength is not None:
                raise InputError(f"Method {self.name!r} has no strength; omit it.")
            return None
        return self.knob.default if strength is None else strength

    def protection_at(self, strength: float | None) -> Protection | None:
        """The protection with the knob set, if the knob is one of its settings."""
        value = self.value(strength)
        if self.protection is None or self.knob is None:
            return self.protection
        if self.knob.setting not in Protection.model_fields:
            return self.protection
        changed = self.protection.model_dump() | {self.knob.setting: value}
        return parse_protection(changed, source=f"method {self.name!r}")

    def config_at(self, config: TrainConfig, strength: float | None) -> TrainConfig:
        """The settings of a fine-tune with the knob set, if the knob is one of them.

        A lower rank keeps the scale of the update, `lora_alpha` / r; fewer steps change nothing
        else.

        Raises:
            InputError: the setting cannot take the value.
        """
        value = self.value(strength)
        changed: Json = {}
        if self.knob is not None and value is not None:
            if self.knob.setting == "weight_decay":
                changed = {"weight_decay": value}
            elif self.knob.setting == "max_steps":
                changed = config.shorten(value)
            elif self.knob.setting == "lora.r":
                if config.lora.rank_pattern or config.lora.alpha_pattern:
                    raise InputError(
                        f"Method {self.name!r} sets one rank for all modules, but the run's LoRA "
                        "gives some modules their own rank or alpha; choose another method."
                    )
                alpha = config.lora.lora_alpha * value / config.lora.r
                changed = {"lora": config.lora.model_dump() | {"r": value, "lora_alpha": alpha}}
        return check_settings(TrainConfig, config.model_dump() | changed, f"method {self.name!r}")


def parse_protection(data: Json, *, source: str) -> Protection:
    """Check the settings of a protection; an error names the first that does not fit."""
    return check_settings(Protection, data, source)
