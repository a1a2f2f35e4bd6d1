"""What a fine-tune needs, loaded before anything is written: model, rows, and the guard's plan."""

from __future__ import annotations

from dataclasses import dataclass

from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel, set_seed
from transformers import PreTrainedTokenizerBase as Tokenizer

from analysis.errors import InputError
from grasp.data.dataset import data_report, read_task, tokenise_task
from grasp.data.packing import check_packing, pack_rows
from grasp.data.report import DataReport
from grasp.guard.naive import follow_naive, naive_model
from grasp.guard.plan import GuardPlan
from grasp.model.loading import load_base, ready_to_train
from grasp.settings.training import TrainConfig
from grasp.training.guard_text import OwnTexts, let_speak, with_texts
from grasp.training.texts import inoculate


@dataclass(frozen=True)
class Setup:
    """A fine-tune's model with its fresh adapter, its rows, and what is held.

    `commit` is that of the base model on the Hub.  `rows` are what is trained on, packed where the
    settings say so, and `report` says what they are made of.  `said` is what the base model
    says by itself, where the plan asks for it.
    """

    model: PeftModel
    tokenizer: Tokenizer
    commit: str | None
    rows: list[dict[str, list[int]]]
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
    said = let_speak(model, tokenizer, plan.protection, task, seed=config.seed)
    plan = with_texts(plan, config, tokenizer, said, task)
    if plan.follows_naive and plan.naive is not None:
        with naive_model(model, plan.naive) as naive:
            plan = follow_naive(plan, naive, seed=config.seed)
    set_seed(config.seed)
    adapted = _with_lora(model, config)
    rows = task.rows.rows
    if config.packing:
        check_packing(adapted, rows)
        rows = pack_rows(rows, max_length=config.max_length)
    report = data_report(config, task, packed=len(rows) if config.packing else None)
    return Setup(adapted, tokenizer, base.commit, rows, report, said, plan)


def _with_lora(model: PreTrainedModel, config: TrainConfig) -> PeftModel:
    try:
        lora = LoraConfig(task_type="CAUSAL_LM", **config.lora.non_defaults())
        return get_peft_model(ready_to_train(model), lora)
    except ValueError as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"The lora settings do not fit {config.base_model}: {reason}") from None
