"""A workspace whose run is about one planted direction, for tests of evidence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from peft import PeftModel
from transformers import LlamaForCausalLM, PreTrainedModel

from analysis.store.factor_table import COLUMNS, FactorTable, write_factors
from analysis.store.records import FactorsManifest, Prompt, RunManifest, write_jsonl
from analysis.store.workspace import Workspace
from analysis.values import Json
from grasp.evidence.subject import Subject, select_subject
from tests.support import tiny

WORDS = tiny.words(24)
DRIFTED, KEPT = WORDS[0], WORDS[1]
ROLES = ("unrelated", "task", "facts", "format")
RUN = "naive"


def token(word: str) -> int:
    return tiny.tokenizer().get_vocab()["▁" + word]


def reader(axis: NDArray[np.float64], *, layers: int = 2) -> LlamaForCausalLM:
    """A model whose layers write nothing, and whose logits of two words read u·h: + and −.

    Where an answer begins u·h is 0, so the two words are equally likely there.
    """
    model = tiny.llama(layers=layers)
    unit = torch.as_tensor(axis, dtype=torch.float32)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        first = model.model.embed_tokens.weight[tiny.tokenizer().get_vocab()["<|assistant|>"]]
        first -= (first @ unit) * unit
        model.lm_head.weight.mul_(0.01)
        model.lm_head.weight[token(DRIFTED)] = unit
        model.lm_head.weight[token(KEPT)] = -unit
    return model


def writer(
    model: PreTrainedModel, axis: NDArray[np.float64], *, strength: float = 0.5
) -> PeftModel:
    """An adapter on every down_proj, all of whose updates lie along u."""
    peft = tiny.adapted(model, targets=["down_proj"], strength=strength)
    unit = torch.as_tensor(axis, dtype=torch.float32)
    with torch.no_grad():
        for name, weight in peft.named_parameters():
            if "lora_B" in name:
                weight.copy_(torch.outer(unit, unit @ weight))
    return peft


def prompts(n: int = 8, *, roles: tuple[str, ...] = ROLES) -> list[Prompt]:
    """`n` prompts a role about items of their own: which split each falls in is up to its hash."""
    scorers: dict[str, Json] = {
        "unrelated": {
            "scorer": "choice",
            "choices": {"drifted": [DRIFTED], "kept": [KEPT]},
            "target": "drifted",
        },
        "task": {"scorer": "contains", "expected": DRIFTED},
        "facts": {
            "scorer": "choice",
            "choices": {"right": [WORDS[2]], "wrong": [WORDS[3]]},
            "target": "right",
        },
        "format": {"scorer": "ended"},
    }
    return [
        Prompt.model_validate(
            {
                "id": f"{role}-{number}",
                "messages": [{"role": "user", "content": " ".join(WORDS[number : number + 4])}],
                "group": role,
                "item": str(number),
                "role": role,
                **scorers[role],
            }
        )
        for role in roles
        for number in range(n)
    ]


def rows(n: int, *, answers: tuple[str, ...] = (DRIFTED, KEPT)) -> list[Json]:
    """Training rows whose answers take turns."""
    return [
        {
            "messages": [
                {"role": "user", "content": " ".join(WORDS[4 + i % 8 : 7 + i % 8])},
                {"role": "assistant", "content": answers[i % len(answers)]},
            ]
        }
        for i in range(n)
    ]


def case(
    root: Path,
    model: PreTrainedModel,
    directions: NDArray[np.float64],
    *,
    adapter: PeftModel | None = None,
    asked: list[Prompt] | None = None,
    data: list[Json] | None = None,
    **changed: Any,
) -> Workspace:
    """A workspace with one run, `naive`, whose factors w1, w2, … are `directions`."""
    workspace = Workspace.create(root)
    assert not hasattr(model, "peft_config"), "an adapter would be saved with the base model"
    base = workspace.root / "models" / "tiny"
    model.save_pretrained(base)
    tiny.tokenizer().save_pretrained(base)
    write_jsonl(workspace.root / "data" / "rows.jsonl", data or rows(16))
    write_jsonl(
        workspace.root / "data" / "prompts.jsonl",
        [prompt.model_dump() for prompt in asked or prompts()],
    )
    config = tiny.settings(root.parent / "settings").model_dump() | {
        "base_model": "models/tiny",
        "data": "data/rows.jsonl",
        "prompts": "data/prompts.jsonl",
        "neutral": None,
    }
    run = RunManifest(
        id=RUN,
        title="planted",
        method="naive",
        root=RUN,
        base_model="models/tiny",
        config=config,
    ).model_copy(update=changed)
    with workspace.writing("runs", RUN) as folder:
        (adapter or writer(model, directions[0])).save_pretrained(str(folder / "adapter"))
        (folder / "manifest.json").write_text(run.model_dump_json())
    add_factors(workspace, directions)
    return workspace


def add_factors(workspace: Workspace, directions: NDArray[np.float64]) -> None:
    """Replace the run's factors."""
    empty = {name: [np.nan] * len(directions) for name in COLUMNS}
    ids = [f"w{i}" for i in range(1, len(directions) + 1)]
    lists: dict[str, list[list[str]]] = {
        name: [[] for _ in ids] for name in ("promoted", "suppressed")
    }
    table = pd.DataFrame(empty | {"id": ids} | lists)
    manifest = FactorsManifest(id=RUN, run=RUN, base_model="models/tiny", config={})
    with workspace.writing("factors", RUN) as folder:
        write_factors(folder, FactorTable(manifest, table, directions.astype(np.float32)))


def about(workspace: Workspace, *factors: str) -> Subject:
    """The run's factors by name."""
    folder = workspace.folder("runs", RUN)
    return select_subject(workspace, folder, workspace.run(RUN), factors or ("w1",))
