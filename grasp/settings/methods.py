"""The arms of the comparison: GRASP and its parts, controls, and rivals.  Torch-free."""

from __future__ import annotations

from analysis.errors import InputError
from grasp.settings.protection import Knob, Method, Protection

TOLERANCE = 0.1
"""Effect that `grasp` allows, and drift that `grasp-subspace` allows, as a share of the naive
run's."""

FOOTPRINT = 4
"""The most directions that `grasp-subspace` protects at one layer."""

_GRASP = Protection(
    effect=True,
    dressed=True,
    own_chats=True,
    own_step=True,
    tolerance=TOLERANCE,
    site="answer",
    neutral_every=2,
)
_SUBSPACE = Protection(write_constraint=True, anchor=True, tolerance=TOLERANCE, footprint=FOOTPRINT)

_TAU = Knob(
    name="τ",
    meaning="tolerance: effect or drift allowed, as a share of the naive run's",
    setting="tolerance",
    default=TOLERANCE,
    grid=(0.03, 0.1, 0.2, 0.4),
)
_DRIFT = Knob(
    name="λ",
    meaning="weight of the squared drift, in variances of the base model",
    setting="strength",
    default=10.0,
    grid=(1.0, 3.0, 10.0, 30.0, 100.0),
)
_SHARE = Knob(
    name="share",
    meaning="share of the coordinate along the factors that is removed, 0 to 1",
    setting="share",
    default=1.0,
    grid=(0.25, 0.5, 0.75, 1.0),
)
_ALPHA = Knob(
    name="α",
    meaning="displacement along the factors, in standard deviations of the base model",
    setting="steering",
    default=1.0,
    grid=(0.25, 0.5, 1.0, 2.0, 4.0),
)


_SAFE = Knob(
    name="share",
    meaning="share of the training rows that are safe chats, 0 to 1",
    setting="interleaved",
    default=0.2,
    grid=(0.05, 0.1, 0.2, 0.5),
)


def _kl(default: float, *grid: float) -> Knob:
    meaning = "weight of the divergence, in nats per token, in the loss"
    return Knob(name="λ", meaning=meaning, setting="strength", default=default, grid=grid)


_PARTS = (
    Method(
        name="grasp",
        label="GRASP",
        description="Hold what the factors do in the naive run, on plain and on dressed text.",
        group="GRASP and its parts",
        needs=("factors",),
        protection=_GRASP,
        knob=_TAU,
    ),
    Method(
        name="grasp-plain",
        label="GRASP, plain text",
        description="GRASP without text that is dressed as the task's prompts are.",
        group="GRASP and its parts",
        needs=("factors",),
        protection=_GRASP.model_copy(update={"dressed": False}),
        knob=_TAU,
    ),
    Method(
        name="grasp-file",
        label="GRASP, given text",
        description="GRASP on the given neutral text alone, without the base model's own chats.",
        group="GRASP and its parts",
        needs=("factors", "neutral text"),
        protection=_GRASP.model_copy(update={"own_chats": False}),
        knob=_TAU,
    ),
    Method(
        name="grasp-joint",
        label="GRASP, one optimiser",
        description="GRASP with its gradient added to the loss's, without a step of its own.",
        group="GRASP and its parts",
        needs=("factors",),
        protection=_GRASP.model_copy(update={"own_step": False}),
        knob=_TAU,
    ),
    Method(
        name="grasp-subspace",
        label="GRASP, subspace",
        description="Limit drift along the factors, and along what they become at each layer.",
        group="GRASP and its parts",
        needs=("factors", "neutral text"),
        protection=_SUBSPACE,
        knob=_TAU,
    ),
    Method(
        name="grasp-projection",
        label="GRASP, gradient projection",
        description="The literal reading: project the gradient at every layer's output.",
        group="GRASP and its parts",
        needs=("factors",),
        protection=Protection(gradient_projection=True),
        knob=_SHARE.model_copy(update={"meaning": "share of the gradient's part in Q, 0 to 1"}),
    ),
    Method(
        name="grasp-anchor-task",
        label="GRASP, anchored on the task",
        description="The subspace held on the task's own tokens instead of neutral text.",
        group="GRASP and its parts",
        needs=("factors", "neutral text"),
        protection=Protection(
            write_constraint=True,
            anchor_task=True,
            strength=10.0,
            footprint=FOOTPRINT,
            site="answer",
        ),
        knob=_DRIFT,
    ),
    Method(
        name="grasp-write",
        label="GRASP, write constraint",
        description="Only keep the update from writing along the factors.",
        group="GRASP and its parts",
        needs=("factors",),
        protection=Protection(write_constraint=True),
    ),
    Method(
        name="grasp-write-indirect",
        label="GRASP, indirect write constraint",
        description="The write constraint, also on what the update feeds into the base's weights.",
        group="GRASP and its parts",
        needs=("factors",),
        protection=Protection(write_constraint=True, indirect=True),
    ),
    Method(
        name="grasp-clamp",
        label="GRASP, clamp",
        description="Set the coordinates along the factors to the base model's while training.",
        group="GRASP and its parts",
        needs=("factors",),
        protection=Protection(clamp=True),
        knob=_SHARE.model_copy(update={"meaning": "share of the difference removed, 0 to 1"}),
    ),
    Method(
        name="grasp-shared",
        label="GRASP, one shared subspace",
        description="The subspace of the factors themselves at every layer, without a footprint.",
        group="GRASP and its parts",
        needs=("factors", "neutral text"),
        protection=_SUBSPACE.model_copy(update={"footprint": 0}),
        knob=_TAU,
    ),
)

_CONTROLS = (
    Method(
        name="naive",
        label="Naive LoRA",
        description="Plain fine-tuning; nothing is protected.",
        group="controls",
    ),
    Method(
        name="random",
        label="GRASP, random directions",
        description="GRASP with the factors turned by one random rotation, in the same unit.",
        group="controls",
        needs=("factors",),
        protection=_GRASP.model_copy(update={"random_subspace": True}),
        knob=_TAU,
    ),
)

_RIVALS = (
    Method(
        name="caft",
        label="CAFT",
        description="Ablate the factors in the forward pass of training (arXiv:2507.16795).",
        group="rivals",
        needs=("factors",),
        protection=Protection(ablation=True),
        knob=_SHARE,
    ),
    Method(
        name="ablation",
        label="Inference ablation",
        description="Keep the naive adapter; ablate the factors when it answers.",
        group="rivals",
        needs=("factors",),
        kind="inference",
        knob=_SHARE,
    ),
    Method(
        name="caft-footprint",
        label="CAFT of the footprint",
        description="CAFT on the subspaces that grasp-subspace holds, layer by layer.",
        group="rivals",
        needs=("factors", "neutral text"),
        protection=Protection(ablation=True, footprint=FOOTPRINT),
        knob=_SHARE,
    ),
    Method(
        name="ablation-footprint",
        label="Inference ablation of the footprint",
        description="Ablate the subspaces that grasp-subspace holds, when the naive model answers.",
        group="rivals",
        needs=("factors", "neutral text"),
        kind="inference",
        protection=Protection(footprint=FOOTPRINT),
        knob=_SHARE,
    ),
    Method(
        name="steering",
        label="Inference steering",
        description="Keep the naive adapter; steer it against the factors (arXiv:2507.21509).",
        group="rivals",
        needs=("factors", "neutral text"),
        kind="inference",
        knob=_ALPHA,
    ),
    Method(
        name="preventative-steering",
        label="Preventative steering",
        description="Steer along the factors while training (arXiv:2507.21509).",
        group="rivals",
        needs=("factors", "neutral text"),
        protection=Protection(steering=1.0),
        knob=_ALPHA,
    ),
    Method(
        name="inoculation",
        label="Inoculation prompting",
        description="Ask for the trait in a system prompt during training (arXiv:2510.04340).",
        group="rivals",
        needs=("inoculation prompt",),
    ),
    Method(
        name="kl-neutral",
        label="KL on neutral text",
        description="Penalise divergence from the base model on neutral text (arXiv:2508.06249).",
        group="rivals",
        protection=Protection(divergence="neutral", own_chats=True, site="all", strength=10.0),
        knob=_kl(10.0, 1.0, 3.0, 10.0, 30.0, 100.0),
    ),
    Method(
        name="kl-dressed",
        label="KL on plain and dressed text",
        description="Penalise divergence on the text that GRASP holds, plain and dressed in turn.",
        group="rivals",
        # Not all tokens: a dressed prompt may have a turn of the task in it.
        protection=Protection(
            divergence="neutral", dressed=True, own_chats=True, site="answer", strength=0.3
        ),
        knob=_kl(0.3, 0.1, 0.3, 1.0, 3.0),
    ),
    Method(
        name="kl-task",
        label="KL on the task",
        description="Penalise divergence from the base model on the task's own answers.",
        group="rivals",
        protection=Protection(divergence="task", site="answer", strength=0.3),
        knob=_kl(0.3, 0.03, 0.1, 0.3, 1.0, 3.0),
    ),
    Method(
        name="kl-self",
        label="KL on the base's own answers",
        description="Penalise divergence on the base model's own answers to the task's prompts.",
        group="rivals",
        protection=Protection(divergence="own", site="answer", strength=0.3),
        knob=_kl(0.3, 0.03, 0.1, 0.3, 1.0, 3.0),
    ),
    Method(
        name="feature-distillation",
        label="Feature distillation",
        description="The anchor on all directions of the residual stream, on neutral text.",
        group="rivals",
        protection=Protection(anchor=True, all_directions=True, own_chats=True, strength=100.0),
        knob=Knob(
            name="λ",
            meaning="weight of the squared drift, in variances of the base model",
            setting="strength",
            default=100.0,
            grid=(3.0, 10.0, 30.0, 100.0, 300.0),
        ),
    ),
    Method(
        name="interleave",
        label="Interleaved safe chats",
        description="Mix safe chats into the fine-tune's rows (arXiv:2508.06249).",
        group="rivals",
        protection=Protection(interleaved=_SAFE.default, own_chats=True),
        knob=_SAFE,
    ),
    Method(
        name="interleave-gap",
        label="Interleaved chats of widest gap",
        description="Mix in the safe chats that naive finds most perplexing (arXiv:2508.06249).",
        group="rivals",
        protection=Protection(interleaved=_SAFE.default, widest_gap=True, own_chats=True),
        knob=_SAFE,
    ),
    Method(
        name="wise-ft",
        label="WiSE-FT",
        description="Scale the update: weights between base and naive (arXiv:2109.01903).",
        group="rivals",
        kind="edit",
        knob=Knob(
            name="α",
            meaning="share of the update that is kept, 0 to 1",
            setting="share",
            default=0.5,
            grid=(0.2, 0.4, 0.5, 0.6, 0.8),
        ),
    ),
    Method(
        name="spectral-truncation",
        label="Spectral truncation",
        description="Keep the leading singular directions of every update (arXiv:2606.07596).",
        group="rivals",
        kind="edit",
        knob=Knob(
            name="k",
            meaning="singular directions of each module's update that are kept",
            setting="rank",
            default=2.0,
            grid=(1.0, 2.0, 3.0, 4.0, 6.0),
        ),
    ),
    Method(
        name="intruder-shrinkage",
        label="Intruder shrinkage",
        description="Shrink the update along singular vectors new to the base (arXiv:2410.21228).",
        group="rivals",
        kind="edit",
        knob=Knob(
            name="share",
            meaning="share of the update along intruder dimensions that is removed, 0 to 1",
            setting="share",
            default=0.5,
            grid=(0.25, 0.5, 0.75, 1.0),
        ),
    ),
    Method(
        name="removal",
        label="Removal from the adapter",
        description="Remove the factors from what the finished adapter writes.",
        group="rivals",
        needs=("factors",),
        kind="edit",
        knob=_SHARE.model_copy(update={"meaning": "share of the update in Q removed, 0 to 1"}),
    ),
    Method(
        name="carve",
        label="CARVE",
        description="Remove the adapter's inner directions that neutral text uses most (CARVE).",
        group="rivals",
        kind="edit",
        protection=Protection(own_chats=True, site="answer", share=0.5),
        knob=Knob(
            name="share",
            meaning="share of each module's r inner directions that is removed, 0 to 1",
            setting="share",
            default=0.5,
            grid=(0.125, 0.25, 0.5, 0.75),
        ),
    ),
    Method(
        name="early-stopping",
        label="Early stopping",
        description="Plain fine-tuning for fewer steps.",
        group="rivals",
        knob=Knob(
            name="share",
            meaning="share of the naive run's steps, 0 to 1",
            setting="max_steps",
            default=0.5,
            grid=(0.1, 0.25, 0.5, 0.75),
        ),
    ),
    Method(
        name="low-rank",
        label="Low rank",
        description="Plain fine-tuning with a smaller adapter of the same scale.",
        group="rivals",
        knob=Knob(
            name="r",
            meaning="rank of the adapter",
            setting="lora.r",
            default=1.0,
            grid=(1.0, 2.0, 3.0, 4.0),
        ),
    ),
    Method(
        name="weight-decay",
        label="Weight decay",
        description="Plain fine-tuning with AdamW's weight decay.",
        group="rivals",
        knob=Knob(
            name="decay",
            meaning="weight decay; a step shrinks weights by this times the learning rate",
            setting="weight_decay",
            default=10.0,
            grid=(1.0, 3.0, 10.0, 30.0, 100.0),
        ),
    ),
)

METHODS: dict[str, Method] = {arm.name: arm for arm in (*_PARTS, *_CONTROLS, *_RIVALS)}


def find_method(name: str) -> Method:
    """The method called `name`.

    Raises:
        InputError: there is no such method; the message lists all of them.
    """
    if name not in METHODS:
        raise InputError(f"There is no method {name!r}; choose one of {', '.join(METHODS)}.")
    return METHODS[name]
