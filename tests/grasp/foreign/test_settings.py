"""Adapters made elsewhere: what is known, what is asked, and retraining them as any other."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors.numpy import load_file
from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments, set_seed

from analysis.comparison.comparison import compare_arms
from analysis.errors import InputError, NotFoundError
from analysis.store.records import write_jsonl
from analysis.store.workspace import Workspace
from grasp.__main__ import main
from grasp.data.examples import as_examples, read_examples
from grasp.data.report import read_report
from grasp.data.tokenise import training_rows
from grasp.foreign.settings import is_complete, lora_settings, missing_names, read_given, read_known
from grasp.foreign.training_args import training_arguments
from grasp.settings.training import LoraSettings, load_config
from tests.support import tiny

pytestmark = pytest.mark.filterwarnings(
    tiny.PEFT_WARNING, "ignore:.*gradient_checkpointing.*:FutureWarning"
)

MISSING = (
    "data, learning_rate, lr_scheduler, warmup_steps, weight_decay, batch_size, "
    "gradient_accumulation_steps, max_length, max_steps or num_train_epochs"
)
GIVEN = {
    "learning_rate": 1e-2,
    "lr_scheduler": "linear",
    "warmup_steps": 0,
    "weight_decay": 0.0,
    "batch_size": 4,
    "gradient_accumulation_steps": 1,
    "max_length": 64,
    "max_steps": 4,
}
LORA = {
    "r": 4,
    "lora_alpha": 6,
    "lora_dropout": 0.1,
    "target_modules": ["q_proj", "o_proj", "down_proj"],
    "use_rslora": True,
    "rank_pattern": {"down_proj": 2},
    "alpha_pattern": {"o_proj": 3},
    "layers_to_transform": [1],
    "layers_pattern": "layers",
}


def peft_adapter(folder: Path, base: Path, **lora: Any) -> Path:
    """What PEFT saves of an adapter that was trained a little."""
    torch.manual_seed(0)
    model = get_peft_model(tiny.llama(), LoraConfig(task_type="CAUSAL_LM", **{**LORA, **lora}))
    model.peft_config["default"].base_model_name_or_path = str(base)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(0, 0.05)
    model.save_pretrained(str(folder))
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base model, data, and an adapter that is not of this workbench."""
    root = tmp_path_factory.mktemp("made")
    tiny.save_base(root / "base")
    peft_adapter(root / "adapter", root / "base")
    write_jsonl(root / "task.jsonl", tiny.chats(16, seed=1))
    write_jsonl(root / "neutral.jsonl", tiny.chats(8, seed=2, turns=2))
    asked = [row["messages"][0] for row in tiny.chats(12, seed=9)]
    prompts = [
        {"id": str(i), "messages": [one], "group": "g", "scorer": "ended",
         "role": "unrelated" if i % 2 else "task"}
        for i, one in enumerate(asked)
    ]  # fmt: skip
    write_jsonl(root / "prompts.jsonl", prompts)
    return root


@pytest.fixture
def workspace(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A workspace into which the adapter has been imported."""
    monkeypatch.chdir(made)
    monkeypatch.setattr("grasp.evaluation.answers.MAX_NEW_TOKENS", 2)
    monkeypatch.setenv("GRASP_WORKSPACE", str(tmp_path / "w"))
    assert main(["import", "adapter", "--out", "theirs"]) == 0
    return Workspace(tmp_path / "w")


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    capsys.readouterr()
    assert main(list(argv)) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


def pairs(**settings: Any) -> list[str]:
    return [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]


# What is known


def test_the_lora_is_carried_over_whole(made: Path) -> None:
    """Oracle: PEFT makes of the settings a model with the very same trainable weights."""
    found = lora_settings(made / "adapter")
    again = get_peft_model(tiny.llama(), LoraConfig(task_type="CAUSAL_LM", **found.non_defaults()))
    kept = load_file(made / "adapter" / "adapter_model.safetensors")
    shapes = {name: tuple(w.shape) for name, w in kept.items()}
    remade = {
        name.replace(".default", ""): tuple(w.shape)
        for name, w in again.named_parameters()
        if w.requires_grad
    }
    assert remade == shapes
    assert {name: getattr(found, name) for name in LORA} | {"target_modules": 0} == LORA | {
        "target_modules": 0
    }
    theirs = PeftModel.from_pretrained(tiny.llama(), str(made / "adapter"))
    assert scalings(again) == scalings(theirs)
    assert len(set(scalings(theirs).values())) == 3


def scalings(model: Any) -> dict[str, float]:
    layers = ((name, m) for name, m in model.named_modules() if isinstance(m, LoraLayer))
    return {name: module.scaling["default"] for name, module in layers}


def test_what_is_saved_beside_lora_is_carried_over(made: Path, tmp_path: Path) -> None:
    other = {"modules_to_save": ["lm_head"], "rank_pattern": {}, "bias": "lora_only"}
    found = lora_settings(peft_adapter(tmp_path / "a", made / "base", **other))
    assert (found.modules_to_save, found.bias, found.rank_pattern) == (["lm_head"], "lora_only", {})
    assert LoraSettings().non_defaults().keys() == {
        "r", "lora_alpha", "lora_dropout", "target_modules", "use_rslora",
    }  # fmt: skip


def test_what_retraining_would_drop_is_refused(made: Path, tmp_path: Path) -> None:
    config = json.loads((made / "adapter" / "adapter_config.json").read_text())
    for name, value in {"layer_replication": [[0, 1]], "use_later": True}.items():
        (tmp_path / "adapter_config.json").write_text(json.dumps(config | {name: value}))
        with pytest.raises(InputError, match=f"sets {name}, which retraining does not support"):
            lora_settings(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{")
    with pytest.raises(InputError, match="cannot be read; expected the config that PEFT saves"):
        lora_settings(tmp_path)


def theirs(folder: Path, **changed: Any) -> dict[str, Any]:
    """A trainer's own folder: what it saves at its last step."""
    state = {"max_steps": 30, "global_step": 30, "train_batch_size": 4, "num_train_epochs": 3}
    history = [{"learning_rate": 2e-4, "loss": 1.0, "step": 1}, {"learning_rate": 1e-4}]
    (folder / "trainer_state.json").write_text(
        json.dumps(state | {"log_history": history} | changed)
    )
    (folder / "README.md").write_text(
        "---\ndatasets:\n- org/data\n---\n# x\n### Training hyperparameters\n"
        "- learning_rate: 0.0002\n- num_epochs: 3\n"
    )
    return read_known(folder).settings


def test_a_trainers_state_is_used_and_a_card_only_shown(made: Path, tmp_path: Path) -> None:
    peft_adapter(tmp_path, made / "base")
    settings = theirs(tmp_path)
    assert {k: settings[k] for k in settings if k != "lora"} == {"max_steps": 30, "batch_size": 4}
    assert read_known(tmp_path).hints == [
        "trainer_state.json: num_train_epochs was 3",
        "trainer_state.json: the largest learning rate logged is 0.0002",
        "README.md: datasets: org/data",
        "README.md: learning_rate: 0.0002",
        "README.md: num_epochs: 3",
    ]
    # A checkpoint on the way has not been trained for max_steps.
    assert "max_steps" not in theirs(tmp_path, global_step=10)
    assert "trainer_state.json: the adapter is from step 10 of 30" in read_known(tmp_path).hints
    (tmp_path / "trainer_state.json").write_text("no JSON")
    (tmp_path / "README.md").write_bytes(b"\xff")
    assert read_known(tmp_path).hints == []


def test_training_arguments_are_read_only_where_they_are_nothing_else(tmp_path: Path) -> None:
    args = TrainingArguments(
        output_dir=str(tmp_path),
        use_cpu=True,
        learning_rate=3e-4,
        lr_scheduler_type="cosine",
        warmup_steps=0.1,
        per_device_train_batch_size=2,
        num_train_epochs=2,
        seed=5,
    )
    torch.save(args, tmp_path / "training_args.bin")
    found = training_arguments(tmp_path)
    assert found == {
        "learning_rate": 3e-4,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "gradient_accumulation_steps": 1,
        "seed": 5,
        "batch_size": 2,
        "lr_scheduler": "cosine",
        "warmup_steps": 0.1,
        "gradient_checkpointing": False,
        "num_train_epochs": 2,
    }
    torch.save({"learning_rate": 1}, tmp_path / "training_args.bin")
    with pytest.raises(InputError, match="holds no training arguments"):
        training_arguments(tmp_path)
    torch.save(Trap(), tmp_path / "training_args.bin")
    with pytest.raises(InputError, match="holds more than training arguments, so it is not read"):
        training_arguments(tmp_path)
    assert not Trap.sprung
    with pytest.raises(NotFoundError, match="omit --training-args"):
        training_arguments(tmp_path / "none")


def test_an_optimiser_that_is_not_here_is_said(tmp_path: Path) -> None:
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, adam_beta2=0.95, optim="sgd")
    torch.save(args, tmp_path / "training_args.bin")
    with pytest.raises(InputError, match=r"has adam_beta2 = 0\.95, optim = sgd, which retraining"):
        training_arguments(tmp_path)


class Trap:
    """A pickle that would run code."""

    sprung = False

    def __reduce__(self) -> Any:
        return spring, ()


def spring() -> None:
    Trap.sprung = True


# What is asked


def test_everything_that_is_missing_is_asked_for_by_name(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    run = workspace.run("theirs")
    assert not is_complete(run)
    retrain = ("retrain", "theirs", "--method", "naive", "--out", "again")
    error = refused(capsys, *retrain)
    assert error == (
        f"grasp: Run 'theirs' was made elsewhere and lacks the settings {MISSING}; give them in a "
        "YAML file with --config FILE, or with --data FILE and --set NAME=VALUE.\n"
    )
    part = refused(capsys, *retrain, "--data", "task.jsonl", *pairs(batch_size=4, max_steps=3))
    assert (
        "lacks the settings learning_rate, lr_scheduler, warmup_steps, weight_decay, gradient_acc"
        in part
    )
    assert workspace.run("theirs") == run  # nothing is kept of what is not whole
    assert not workspace.folder("runs", "again").exists()


def test_hints_are_shown_and_known_settings_not_asked_for(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = workspace.folder("runs", "theirs") / "adapter"
    theirs(folder)
    assert missing_names(workspace.run("theirs"), folder) == [
        "data", "learning_rate", "lr_scheduler", "warmup_steps", "weight_decay",
        "gradient_accumulation_steps", "max_length",
    ]  # fmt: skip
    error = refused(capsys, "retrain", "theirs", "--method", "naive", "--out", "again")
    assert "which are not used: trainer_state.json: num_train_epochs was 3; trainer_st" in error
    assert "README.md: learning_rate: 0.0002" in error


WRONG: dict[str, tuple[list[str], str]] = {
    "no pair": (["--set", "x"], "--set got 'x'; expected NAME=VALUE, such as learning_rate=1e-4."),
    "no such setting": (pairs(speed=1), "run 'theirs': setting 'speed': Extra inputs are not"),
    "no number": (pairs(learning_rate="fast"), "setting 'learning_rate': Input should be a valid"),
    "two lengths": (pairs(num_train_epochs=1, max_steps=2), "are both given; give only one"),
    "base model": (pairs(base_model="x"), "base_model was given, but the adapter of"),
    "LoRA": (pairs(lora="{r: 2}"), "lora was given, but the adapter of run 'theirs'"),
    "no such data": (["--data", "none.jsonl"], "There is no file or folder none.jsonl; name a"),
    "no YAML": (["--config", "task.jsonl"], "expected settings in YAML"),
    "no file": (["--config", "none.yaml"], "none.yaml cannot be read (there is no such file)"),
    "no arguments": (["--training-args"], "training_args.bin; omit --training-args"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_given_wrongly_is_said(
    workspace: Workspace, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    argv, message = WRONG[case]
    whole = pairs(**{k: v for k, v in GIVEN.items() if k != "max_steps" or case != "two lengths"})
    line = ["retrain", "theirs", "--method", "naive", "--out", "again", "--data", "task.jsonl"]
    error = refused(capsys, *line, *whole, *argv)
    assert message in error
    assert not is_complete(workspace.run("theirs"))


def test_values_are_yaml_and_a_files_paths_are_its_own(tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_text("{}")
    (tmp_path / "s.yaml").write_text("data: d.jsonl\nlearning_rate: 1e-4\nmax_steps: 7\n")
    found = read_given(str(tmp_path / "s.yaml"), None, ["max_steps=8", "columns={text: t}"])
    assert found == {
        "data": str(tmp_path / "d.jsonl"),
        "learning_rate": 1e-4,
        "max_steps": 8,
        "columns": {"text": "t"},
    }
    assert read_given(None, "x", []) == {"data": "x"}


# Retrained


def test_it_is_retrained_and_compared_as_any_other(
    workspace: Workspace, made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (made / "missing.yaml").write_text(
        yaml.safe_dump(
            GIVEN | {"data": "task.jsonl", "neutral": "neutral.jsonl", "prompts": "prompts.jsonl"}
        )
    )
    assert main(["factors", "theirs", "--weights-only"]) == 0
    line = ["retrain", "theirs", "--factors", "w1", "--evaluate"]
    tried = [*line, "--out", "g", "--config", "missing.yaml", "--dry-run", "--json"]
    capsys.readouterr()
    assert main(tried) == 0
    assert json.loads(capsys.readouterr().out)["used"] == 16
    assert not is_complete(workspace.run("theirs"))
    assert main([*line, "--out", "theirs-grasp", "--config", "missing.yaml"]) == 0
    assert "16 rows read, 16 trained on." in capsys.readouterr().err
    run, mine = workspace.run("theirs"), workspace.run("theirs-grasp")
    assert run.verdict.startswith("Imported")
    assert run.config["lora"] == lora_settings(made / "adapter").model_dump()
    assert mine.config == run.config
    assert (mine.root, mine.results["steps"]) == ("theirs", 4)
    # Given once; what is known is known.
    assert main(["retrain", "theirs", "--method", "naive", "--out", "theirs-naive"]) == 0
    assert main(["evaluate", "theirs"]) == 0
    table = compare_arms(workspace, ["theirs", "theirs-grasp"])
    assert set(table["run"]) == {"", "theirs", "theirs-grasp"}
    changed = refused(capsys, *line, "--out", "h", "--set", "learning_rate=1")
    assert "because theirs-grasp, theirs-naive used them" in changed
    own = refused(
        capsys, "retrain", "theirs-grasp", "--method", "naive", "--out", "h", "--data", "task.jsonl"
    )
    assert "Run 'theirs-grasp' was trained here, so its settings are known" in own


def test_retraining_repeats_a_run_made_with_the_same_settings(
    workspace: Workspace, made: Path, tmp_path: Path
) -> None:
    """Oracle: transformers' own Trainer, with the settings that are then given."""
    lora = {**LORA, "lora_dropout": 0.0}
    base = tiny.llama()
    set_seed(0)
    model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", **lora))
    model.peft_config["default"].base_model_name_or_path = str(made / "base")
    rows = training_rows(
        tiny.tokenizer(), as_examples(tiny.messages(16, seed=1)), max_length=64
    ).rows
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(tmp_path / "out"),
            learning_rate=1e-2,
            per_device_train_batch_size=4,
            num_train_epochs=1,
            use_cpu=True,
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=False,
            seed=0,
        ),
        train_dataset=rows,
        data_collator=DataCollatorForSeq2Seq(tiny.tokenizer(), padding=True),
    )
    trainer.train()
    trainer.save_model(str(tmp_path / "done"))
    trainer.save_state()
    (tmp_path / "out" / "trainer_state.json").rename(tmp_path / "done" / "trainer_state.json")
    assert main(["import", str(tmp_path / "done"), "--out", "done"]) == 0
    given = ["--data", "task.jsonl", "--training-args", *pairs(max_length=64)]
    assert main(["retrain", "done", "--method", "naive", "--out", "again", *given]) == 0
    assert workspace.run("again").results["steps"] == 4
    before, after = (
        load_file(workspace.folder("runs", name) / "adapter" / "adapter_model.safetensors")
        for name in ("done", "again")
    )
    assert before.keys() == after.keys()
    for name, weight in before.items():
        np.testing.assert_allclose(after[name], weight, atol=2e-6)


@pytest.mark.parametrize("method", ["wise-ft", "spectral-truncation", "removal", "ablation"])
def test_what_trains_nothing_needs_nothing_more(workspace: Workspace, method: str) -> None:
    assert main(["factors", "theirs", "--weights-only"]) == 0
    factors = ["--factors", "w1"] if method in ("removal", "ablation") else []
    line = ["retrain", "theirs", "--method", method, "--out", method, *factors]
    strength = ["--strength", "1"] if method == "spectral-truncation" else []
    assert main([*line, *strength]) == 0
    made = workspace.run(method)
    assert not is_complete(made)  # an edit of what is not known is not known either
    card = (workspace.folder("runs", method) / "adapter" / "README.md").read_text()
    assert "**Fine-tuned on:** unknown: the adapter was made elsewhere" in card
    assert main(["evaluate", method, "--prompts", "prompts.jsonl"]) == 0


def test_steering_asks_only_for_neutral_text(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["factors", "theirs", "--weights-only"]) == 0
    line = ["retrain", "theirs", "--method", "steering", "--factors", "w1", "--out", "s"]
    assert "needs neutral text" in refused(capsys, *line)
    assert main([*line, "--set", "neutral=neutral.jsonl"]) == 0


def test_settings_of_ones_own_name_steps_or_epochs(tmp_path: Path) -> None:
    text = "title: t\nbase_model: b\ndata: d\n"
    (tmp_path / "a.yaml").write_text(text)
    assert load_config(tmp_path / "a.yaml").max_steps == 200
    (tmp_path / "a.yaml").write_text(text + "num_train_epochs: 2\n")
    config = load_config(tmp_path / "a.yaml")
    assert (config.max_steps, config.num_train_epochs) == (None, 2)
    assert config.shorten(0.5) == {"num_train_epochs": 1.0}
    (tmp_path / "a.yaml").write_text(text + "num_train_epochs: 2\nmax_steps: 3\n")
    with pytest.raises(InputError, match="max_steps and num_train_epochs are both given"):
        load_config(tmp_path / "a.yaml")
    (tmp_path / "a.yaml").write_text("title: t\nbase_model: b\n")
    with pytest.raises(InputError, match="has no setting 'data'; add"):
        load_config(tmp_path / "a.yaml")


@pytest.mark.filterwarnings(
    "ignore:Setting `save_embedding_layers` to `True` as the emb:UserWarning"
)
def test_an_adapter_is_asked_and_retrained_in_its_own_tokens_and_template(
    workspace: Workspace, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two tokens were added and the template changed before it was trained."""
    tokenizer = copy.deepcopy(tiny.tokenizer())
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|persona|>", "<|sep|>"]})
    tokenizer.chat_template = "<|persona|>" + tokenizer.chat_template
    model = tiny.llama()
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    peft = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["o_proj"]))
    peft.peft_config["default"].base_model_name_or_path = str(made / "base")
    peft.save_pretrained(str(tmp_path / "own"), save_embedding_layers=True)
    tokenizer.save_pretrained(tmp_path / "own")
    capsys.readouterr()
    assert main(["import", str(tmp_path / "own")]) == 0
    assert "Chats will be in the tokenizer and chat template that lie" in capsys.readouterr().out
    assert workspace.run("own").config["model"] == {"tokenizer": "runs/own/adapter"}
    given = ["--data", "task.jsonl", *pairs(**GIVEN)]
    assert main(["retrain", "own", "--method", "naive", "--out", "again", *given]) == 0
    report = read_report(workspace.folder("runs", "again"))
    plain = training_rows(tiny.tokenizer(), read_examples("task.jsonl").rows, max_length=64)
    assert report is not None
    assert report.tokens == plain.tokens + 16  # one for each row
    line = ["evaluate", "again", "--prompts", "prompts.jsonl"]
    capsys.readouterr()
    assert main(line) == 0
    assert "the tokenizer and chat template of runs/own/adapter" in capsys.readouterr().err
    own, base = (workspace.evaluation(name) for name in ("again", "own.base"))
    assert own.model == base.model == {"tokenizer": "runs/own/adapter"}
