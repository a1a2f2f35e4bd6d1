"""README and docs do what they say: blocks run, settings are valid, and what they name is there.

Shell blocks run in this process, on a tiny model, in a folder where the names that the pages use
for a reader's own files are files of ours.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import shlex
import shutil
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.numpy import save_file

from analysis.adapters.architectures import read_family
from grasp.__main__ import main
from grasp.commands.parser import build_parser
from grasp.prompts.sets import read_prompts
from grasp.settings.judge import load_judge
from grasp.settings.methods import METHODS
from grasp.settings.training import TrainConfig, parse_config
from tests.support import pages, tiny
from tests.support.hub_server import reached
from tests.support.pages import PAGES, ROOT, Block, blocks, name_of

pytestmark = [
    pytest.mark.filterwarnings(tiny.PEFT_WARNING),
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),  # as TRL is imported
]

NOT_RUN = {
    "grasp dashboard --workspace my-workspace": "serves until it is stopped",
    "grasp bench removal --config PLAN.yaml --root bench-results": "takes an hour",
    "grasp bench report --root bench-results --out docs/method/results.md": "needs those runs",
    "python -m grasp.bench.linear.figure": "takes minutes and writes into docs",
    "source .venv/bin/activate": "the environment that the tests run in",
    "pip install -c constraints.txt -e '.[bench]'": "needs the network",
    "grasp model smollm2-135m --out models/smollm2-135m": "needs the network",
    "grasp bench real --base models/smollm2-135m --root real": "needs that model",
    "grasp bench removal --config real/plan.yaml --root real/results": "takes hours",
    "grasp bench report --root real/results --out real/results.md": "needs those hours' runs",
    "pip install 'grasp-workbench[postgresql]'": "needs the network",
    "grasp trust models/theirs": "needs a model with code of its own",
}
"""Lines of shell blocks that are only checked for what they name, and why."""

SMALLER = {"dose": "--points 3 --random 1", "overlap": "--random 1"}
"""Options that a command gets on top, to take seconds."""

LANGUAGES = {"python", "bash", "yaml", "text", ""}

RUNNABLE = [
    page for page in PAGES if {"python", "bash", ""} & {block.language for block in blocks(page)}
]
YAML = [block for page in PAGES for block in blocks(page) if block.language == "yaml"]
_done: set[str] = set()


@pytest.fixture(scope="module")
def naive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny fine-tune in its workspace, and the files that it was made from."""
    root = tmp_path_factory.mktemp("naive")
    settings = tiny.settings(root / "files").model_dump(exclude_defaults=True)
    (root / "files" / "prompts.yaml").write_text(yaml.safe_dump(prompt_set()))
    settings["prompts"] = str(root / "files" / "prompts.yaml")
    (root / "finance.yaml").write_text(yaml.safe_dump(settings))
    where = ["--workspace", str(root / "workspace")]
    assert main(["train", str(root / "finance.yaml"), "--out", "first", *where]) == 0
    return root


@pytest.fixture
def place(naive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The reader's folder, which commands run in: what pages call their own is there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GRASP_WORKSPACE", raising=False)
    run, files = naive / "workspace" / "runs" / "first", naive / "files"
    for name in ("ADAPTER", "path/to/adapter", "runs/naive/adapter"):
        shutil.copytree(run / "adapter", tmp_path / name)
    shutil.copytree(run / "checkpoints", tmp_path / "FOLDER")
    shutil.copytree(files / "base", tmp_path / "path/to/base-model")
    shutil.copy(naive / "finance.yaml", tmp_path)
    shutil.copy(files / "task.jsonl", tmp_path / "data.jsonl")
    shutil.copy(files / "neutral.jsonl", tmp_path)
    (tmp_path / "prompts.yaml").write_text(yaml.safe_dump(prompt_set()))
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump(settings()))
    (tmp_path / "missing.yaml").write_text(yaml.safe_dump(settings()))
    (tmp_path / "factors").mkdir()
    rows = tiny.subspace(3).astype(np.float32)
    save_file({"directions": rows}, tmp_path / "factors" / "factors.safetensors")
    with reached(monkeypatch, tmp_path / "cache") as hub:
        repository = tmp_path / "repository"
        shutil.copytree(run / "adapter", repository)
        shutil.copytree(run / "adapter", repository / "checkpoint-100")
        hub.publish("org/name", repository)
        hub.publish("org/name", repository, revision="v1.0")
        yield tmp_path


def prompt_set() -> dict[str, Any]:
    """Prompts off and on the task, which a tiny model answers in a moment."""
    items = [
        {"id": f"{role}-{n}", "role": role, "paraphrases": [" ".join(tiny.words(4, seed=n))]}
        for role in ("unrelated", "task")
        for n in range(6)
    ]
    pair = tiny.words(2, seed=9)
    return {"name": "small", "version": 1, "scorer": "pair", "pair": pair, "items": items}


def settings() -> dict[str, Any]:
    """What an adapter's folder does not say of `tiny.settings`."""
    return {
        "data": "data.jsonl", "neutral": "neutral.jsonl", "prompts": "prompts.yaml",
        "learning_rate": 1e-2, "lr_scheduler": "linear", "warmup_steps": 0, "weight_decay": 0,
        "batch_size": 4, "gradient_accumulation_steps": 1, "max_length": 64, "max_steps": 6,
    }  # fmt: skip


def own_loop() -> dict[str, Any]:
    """What a reader's own loop has: a model, its data, an optimizer, directions, a naive run."""
    shutil.copytree("path/to/adapter", "finance-naive/adapter")
    model = tiny.adapted(tiny.llama()).train()
    batches = [tiny.batch(9, 7, seed=n) for n in range(3)]
    return {
        "model": model,
        "directions": tiny.subspace(1),
        "batches": batches,
        "dressed": [tiny.batch(8, 6, seed=n) for n in range(3)],
        "tokenizer": tiny.tokenizer(),
        "optimizer": torch.optim.AdamW(model.parameters(), lr=1e-2),
        "loader": [batch | {"labels": batch["input_ids"]} for batch in batches],
    }


@pytest.mark.parametrize("page", RUNNABLE, ids=name_of)
def test_every_block_of_a_page_runs(page: Path, place: Path) -> None:
    """A block that stands in two pages runs once, with those of the first."""
    names = own_loop() if any(block.language == "python" for block in blocks(page)) else {}
    for block in blocks(page):
        if block.language in ("bash", "") and block.text not in _done:
            for line in block.text.splitlines():
                run_line(line, block)
        elif block.language == "python":
            exec(compile(block.text, block.place, "exec"), names)
        _done.add(block.text)


def run_line(line: str, block: Block) -> None:
    """Run a line of a shell block, or check what it names where that would take too long."""
    for words in commands(line):
        call = shlex.join(words)
        if call in {shlex.join(shlex.split(text)) for text in NOT_RUN} or words[0] == "make":
            assert is_there(words), f"{block.place}: {call}"
        else:
            assert words[0] == "grasp", f"{block.place}: a line that no test knows: {call}"
            assert main([*words[1:], *SMALLER.get(words[1], "").split()]) == 0, call


def commands(line: str) -> list[list[str]]:
    """The commands of one line, without its comment."""
    words = shlex.shlex(line, posix=True, punctuation_chars=";")
    words.whitespace_split = True
    words.commenters = "#"
    text = [[]]
    for word in words:
        if word == ";":
            text.append([])
        else:
            text[-1].append(word)
    return [one for one in text if one]


def is_there(words: list[str]) -> bool:
    """Whether what a line names exists: a target, a module, an extra, a command's options."""
    if words[0] == "make":
        makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
        return all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in words[1:])
    if words[0] == "pip":
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        extra = words[-1].rpartition("[")[2].strip("]")
        return extra in project["optional-dependencies"] and (ROOT / "constraints.txt").exists()
    if words[0] == "python":
        return importlib.util.find_spec(words[2]) is not None
    if words[0] == "source":
        makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
        return words[1] == ".venv/bin/activate" and "VENV := .venv" in makefile
    return bool(build_parser().parse_args(words[1:]).command)


def test_the_loop_trains_and_follows_the_penalty(place: Path) -> None:
    names, (loop,) = own_loop(), [b for b in blocks(ROOT / "README.md") if b.language == "python"]
    model, plain = names["model"], tiny.adapted(tiny.llama()).train()
    before = tiny.adapter_weights(model)
    exec(compile(loop.text, loop.place, "exec"), names)
    after = tiny.adapter_weights(model)
    assert all(not torch.equal(before[name], after[name]) for name in before)
    assert names["guard"].last_penalty > 0
    optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-2)
    for batch in names["loader"]:
        plain(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    unheld = tiny.adapter_weights(plain)
    assert max(float((after[n] - unheld[n]).abs().max()) for n in after) > 1e-3


def test_what_is_not_run_is_in_a_page() -> None:
    lines = [
        shlex.join(words)
        for page in PAGES
        for block in blocks(page)
        if block.language in ("bash", "")
        for line in block.text.splitlines()
        for words in commands(line)
    ]
    assert {shlex.join(shlex.split(text)) for text in NOT_RUN} <= set(lines)


def test_every_block_has_a_language_that_is_checked() -> None:
    known = {block.place: block.language for page in PAGES for block in blocks(page)}
    assert len(known) > 20
    assert set(known.values()) <= LANGUAGES


@pytest.mark.parametrize("block", YAML, ids=lambda block: block.place)
def test_settings_in_yaml_are_valid(block: Block, tmp_path: Path) -> None:
    file = tmp_path / "block.yaml"
    file.write_text(block.text, encoding="utf-8")
    data = yaml.safe_load(block.text)
    if {"items", "include"} & data.keys():
        assert read_prompts(file)
    elif {"read", "stack"} & data.keys():
        family = read_family(file)
        assert "mixer.in_proj" in family.read or family.stack
    elif "aligned_below" in data:
        assert load_judge(file).model == data["model"]
    else:
        needed = {"title": "A block", "base_model": "base", "data": "rows.jsonl"}
        assert isinstance(parse_config(needed | data, source=block.place), TrainConfig)


def test_the_judges_settings_in_comments_are_settings() -> None:
    (block,) = (one for one in YAML if "aligned_below" in one.text)
    named = re.findall(r"^# (\w+):|, (\w+):", block.text, re.MULTILINE)
    fields = {first or second for first, second in named}
    from grasp.settings.judge import JudgeSettings

    assert fields - JudgeSettings.model_fields.keys() <= {"coherent", "output", "currency"}
    assert "ask" in fields


def test_the_table_of_methods_has_each_once_with_what_it_needs() -> None:
    text = (ROOT / "docs/reference/configuration.md").read_text(encoding="utf-8")
    table = text.partition("## Methods")[2].partition("`--strength`")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ") and "`" in line]
    named = re.findall(r"`([\w-]+)`(°?\*?)", "\n".join(rows))
    assert sorted(name for name, _ in named) == sorted(METHODS)
    for name, marks in named:
        assert ("°" not in marks) == ("factors" in METHODS[name].needs), name
        assert ("*" in marks) == ("neutral text" in METHODS[name].needs), name


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_what_a_page_names_is_there(page: Path) -> None:
    missing = [span for span in pages.spans(page) if not exists(span)]
    missing += [link for link in pages.links(page) if not leads_somewhere(link, page)]
    assert missing == []


def exists(span: str) -> bool:
    """A path, a dotted name or a command of ours that a code span names; true of all else."""
    if re.fullmatch(r"(analysis|grasp|dashboard|tests|docs|\.ci)/[\w./-]*\w/?", span):
        return (ROOT / span).exists()
    if dotted := re.match(r"(analysis|grasp|dashboard)(\.\w+)+", span):
        return resolves(dotted[0])
    words = span.split()
    if words[0] == "grasp" and words[1:] and words[1].isalpha() and words[1].islower():
        return has_options(words[1], re.findall(r"--[\w-]+", span))
    return True


def resolves(name: str) -> bool:
    """Whether a dotted name is a module, or what one holds."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        if ".".join(parts[:end]) and importlib.util.find_spec(parts[0]) is not None:
            try:
                found: Any = importlib.import_module(".".join(parts[:end]))
            except ModuleNotFoundError:
                continue
            for part in parts[end:]:
                if not hasattr(found, part):
                    return False
                found = getattr(found, part)
            return True
    return False


def has_options(command: str, options: list[str]) -> bool:
    (found,) = (a for a in build_parser()._actions if a.dest == "command")
    parser = dict(found.choices or {}).get(command)  # type: ignore[call-overload]
    return parser is not None and set(options) <= parser._option_string_actions.keys()


def leads_somewhere(link: str, page: Path) -> bool:
    target = link.partition("#")[0]
    return "://" in target or not target or (page.parent / target).exists()
