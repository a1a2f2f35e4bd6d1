"""What a fine-tune needs, loaded before anything is written: model, rows, and the guard's plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel, set_seed
from transformers import PreTrainedTokenizerBase as Tokenizer

from analysis.errors import InputError
from grasp.data.dataset import data_report, read_task, tokenise_task
from grasp.data.examples import Example
from grasp.data.packing import Row, check_packing, pack_rows
from grasp.data.report import DataReport
from grasp.data.tokenise import training_rows
from grasp.guard.naive import follow_naive, naive_model
from grasp.guard.plan import GuardPlan
from grasp.model.loading import load_base, ready_to_train
from grasp.settings.training import TrainConfig
from grasp.training.guard_text import (
    OwnTexts,
    as_many_as_used,
    let_speak,
    neutral_texts,
    with_texts,
)
from grasp.training.interleaving import interleave, widest_gaps
from grasp.training.texts import inoculate


@dataclass(frozen=True)
class Setup:
    """A fine-tune's model with its fresh adapter, its rows, and what is held.

    `config` are the settings, with as many steps as the task's rows alone take where others are
    mixed in.  `commit` is that of the base model on the Hub.  `rows` are what is trained on, packed
    where the settings say so, and `report` says what the task's are made of.  `said` is what the
    base model says by itself, where the plan asks for it.
    """

    config: TrainConfig
    model: PeftModel
    tokenizer: Tokenizer
    commit: str | None
    rows: list[Row]
    report: DataReport
    said: OwnTexts
    plan: GuardPlan


def set_up(config: TrainConfig, plan: GuardPlan, *, inoculated: bool) -> Setup:
    """Load everything, and give the plan its texts and what it takes from the naive run.

    Args:
        config: settings, with paths as they can be opened.
        plan: without texts.
        inoculated: whether the settings' inoculation prompt goes before each chat.

    Raises:
        GraspError: a file, the model or a setting is not as it should be.
    """
    examples = read_task(config)
    base = load_base(config.base_model, config.model)
    model, tokenizer = base.model, base.tokenizer
    task = tokenise_task(config, tokenizer, examples)
    if inoculated:
        task = task.with_rows(config, tokenizer, inoculate(task.chats(), config.inoculation))
    said = let_speak(model, tokenizer, plan.protection, task, seed=config.seed, keep=plan.keep)
    safe: list[Row] = []
    if not plan.is_empty:
        neutral, held = neutral_texts(config, tokenizer, plan.protection, said, task)
        safe = _safe_rows(model, tokenizer, config, plan, neutral)
        neutral, held = as_many_as_used(
            neutral, held, config, plan.protection, rows=len(task.rows.rows)
        )
        plan = with_texts(plan, config, tokenizer, said, task, neutral=neutral, held=held)
    if plan.follows_naive and plan.naive is not None:
        with naive_model(model, plan.naive) as naive:
            plan = follow_naive(plan, naive, seed=config.seed)
    set_seed(config.seed)
    adapted = _with_lora(model, config)
    if config.packing:
        check_packing(adapted, task.rows.rows)
    rows = _packed(config, task.rows.rows)
    report = data_report(config, tokenizer, task, packed=len(rows) if config.packing else None)
    if safe:
        config, rows = _mixed(config, task.rows.rows, safe, share=plan.protection.interleaved)
    plan = replace(plan, protection=plan.protection.model_copy(update={"interleaved": 0.0}))
    return Setup(config, adapted, tokenizer, base.commit, rows, report, said, plan)


def _safe_rows(
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    config: TrainConfig,
    plan: GuardPlan,
    neutral: Sequence[Example],
) -> list[Row]:
    """The safe rows that a protection mixes in; none where it mixes in nothing."""
    if not plan.protection.interleaved:
        return []
    safe = training_rows(tokenizer, neutral, max_length=config.max_length).rows
    if not plan.protection.widest_gap:
        return safe
    assert plan.naive is not None  # every run that is made again has one
    with naive_model(model, plan.naive) as naive:
        return widest_gaps(naive, tokenizer, safe)


def _mixed(
    config: TrainConfig, task: list[Row], safe: list[Row], *, share: float
) -> tuple[TrainConfig, list[Row]]:
    """The rows of a whole run on one device, and its settings, with the steps of the task alone."""
    sequences = len(_packed(config, task))
    steps = config.total_steps(sequences)
    taken = steps * config.batch_size * config.gradient_accumulation_steps
    count = round(taken * len(task) / sequences)
    rows = interleave(task, safe, share=share, count=count, seed=config.seed)
    length = {"max_steps": steps, "num_train_epochs": None}
    return config.model_copy(update=length), _packed(config, rows)


def _packed(config: TrainConfig, rows: list[Row]) -> list[Row]:
    return pack_rows(rows, max_length=config.max_length) if config.packing else rows


def _with_lora(model: PreTrainedModel, config: TrainConfig) -> PeftModel:
    try:
        lora = LoraConfig(task_type="CAUSAL_LM", **config.lora.non_defaults())
        return get_peft_model(ready_to_train(model), lora)
    except ValueError as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"The lora settings do not fit {config.base_model}: {reason}") from None
