"""How every measurement of a factor in a model starts and ends: subject, prompts, saved record."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedTokenizerBase as Tokenizer

from analysis.adapters.files import WEIGHTS
from analysis.errors import InputError
from analysis.store.evidence import Evidence, directions_sha256, write_evidence
from analysis.store.factor_table import select_directions
from analysis.store.layout import adapter_of
from analysis.store.records import EvidenceKind, EvidenceManifest, Prompt, RunManifest, sha256
from analysis.store.workspace import Workspace, evidence_id
from analysis.values import Json
from grasp.data.chat import chat_ids
from grasp.data.readers import HUB
from grasp.evaluation.answers import BATCH, as_answers, as_pairs, score_answers
from grasp.evaluation.pairs import pair_by_steps
from grasp.evaluation.scorers import Answer
from grasp.foreign.settings import run_settings
from grasp.model.loading import LoadedModel, check_width, load_adapted
from grasp.prompts.sets import prompts_sha256, read_prompts
from grasp.settings.model import NO_OPTIONS, ModelOptions, ModelSettings
from grasp.settings.training import TrainConfig

Reply = Callable[[Sequence[list[int]], int | None], tuple[list[list[int]], Tensor]]
"""From tokenised chats and the longest answer to what `grasp.evaluation.answers.generate` gives."""

FIRST_TOKEN = ("choice",)
"""Scorers that need only the first answer token, so that no more is generated."""

MAX_PROMPTS = 96
"""Largest number of exploration prompts asked for each role."""


_HASHES: dict[str, Callable[[Path], str]] = {"prompts": prompts_sha256}
"""How inputs are hashed if not as files; a prompt set may be a shipped one, which has no file."""


@dataclass(frozen=True)
class Subject:
    """A run, and the factor or factors that evidence is about.

    `name` is "w2", or "w1-w2" for several factors; `directions` are their (k, d_model) unit rows.
    """

    workspace: Workspace
    folder: Path
    run: RunManifest
    name: str
    factors: list[str]
    directions: NDArray[np.float32]
    options: ModelOptions = NO_OPTIONS

    def load(self) -> LoadedModel[PeftModel]:
        """The adapted model, its base loaded as `options` say.

        Raises:
            InputError: the directions and the model differ in width.
        """
        reference = self.workspace.resolve(self.run.base_model)
        loaded = load_adapted(reference, adapter_of(self.folder), options=self.options)
        check_width(loaded.model, self.directions)
        return loaded

    def id(self, kind: EvidenceKind) -> str:
        """The id of the record of one kind of evidence."""
        return evidence_id(self.folder.name, self.name, kind)

    def save(
        self,
        kind: EvidenceKind,
        *,
        model: ModelSettings,
        tables: Mapping[str, pd.DataFrame],
        config: Json,
        seed: int,
        inputs: Mapping[str, Path],
        sentence: str,
        seconds: float,
        folder: Path | None = None,
    ) -> Evidence:
        """Save tables as the record `id(kind)`, or into `folder`, which will become that record.

        `model` has the settings with which the measured model was loaded.
        """
        owners = {factor.rpartition("/")[0] for factor in self.factors}
        manifest = EvidenceManifest(
            id=self.id(kind),
            evidence=kind,
            run=self.folder.name,
            factor=self.name,
            base_model=self.run.base_model,
            model=model.non_defaults(),
            config={"factors": self.factors, **config},
            seed=seed,
            seconds=seconds,
            parents=[f"runs/{self.folder.name}", *(f"factors/{one}" for one in sorted(owners))],
            inputs={
                "adapter": sha256(adapter_of(self.folder) / WEIGHTS),
                "directions": directions_sha256(self.directions),
                **{name: _HASHES.get(name, sha256)(path) for name, path in inputs.items()},
            },
            sentence=sentence,
        )
        evidence = Evidence(manifest, dict(tables))
        if folder is not None:
            write_evidence(folder, evidence)
            return evidence
        with self.workspace.writing("evidence", manifest.id) as target:
            write_evidence(target, evidence)
        return evidence


def select_subject(
    workspace: Workspace,
    folder: Path,
    run: RunManifest,
    factors: Sequence[str],
    *,
    options: ModelOptions = NO_OPTIONS,
) -> Subject:
    """The subject for factors of a run.

    Args:
        workspace: of the run.
        folder: the run's folder.
        run: its manifest.
        factors: ids, as for `analysis.store.factor_table.select_directions`.

    Raises:
        InputError: no factor is given, one is given twice, or their widths differ.
        NotFoundError: a factor or its table does not exist.
    """
    full, directions = select_directions(workspace, list(factors), run=folder.name)
    short = [name.removeprefix(f"{folder.name}/").replace("/", ".") for name in full]
    return Subject(workspace, folder, run, "-".join(short), full, directions, options)


def exploration_prompts(subject: Subject, path: Path | None = None) -> tuple[Path, list[Prompt]]:
    """The file of the run's prompts, and its exploration prompts, at most MAX_PROMPTS per role.

    Prompts that need a judge are left out.

    Raises:
        InputError: neither the run nor the caller gives a prompt set, or it has no such prompts.
    """
    named = path or subject.run.config.get("prompts")
    if not named:
        raise InputError(
            f"Run {subject.folder.name!r} has no prompt set; give one with --prompts FILE."
        )
    file = Path(subject.workspace.resolve(str(named)))
    explored = [
        prompt
        for prompt in read_prompts(file)
        if prompt.split == "exploration" and prompt.scorer != "judge"
    ]
    if not explored:
        raise InputError(
            f"{file} has no exploration prompts that are scored without a judge; give a set that "
            "has some."
        )
    roles = dict.fromkeys(prompt.role for prompt in explored)
    return file, [
        prompt
        for role in roles
        for prompt in [one for one in explored if one.role == role][:MAX_PROMPTS]
    ]


def read_training_settings(subject: Subject) -> TrainConfig:
    """The settings that the run was trained with, including its data.

    Raises:
        InputError: the training data are unknown, as for an imported run, or no longer exist.
    """
    if not subject.run.config.get("data"):
        raise InputError(
            f"Run {subject.folder.name!r} was imported, so its training rows are unknown; give "
            "them with `grasp retrain`, or train the run here with `grasp train`."
        )
    settings = run_settings(subject.run, adapter_of(subject.folder))
    settings = settings.map_paths(subject.workspace.resolve)
    if not str(settings.data).startswith(HUB) and not Path(str(settings.data)).exists():
        raise InputError(f"The training data {settings.data} no longer exist; put them back.")
    return settings


def data_files(settings: TrainConfig) -> dict[str, Path]:
    """The training data file, to be hashed; empty for data on the Hub, identified by its commit."""
    named = str(settings.data)
    return {} if named.startswith(HUB) else {"data": Path(named)}


def score_replies(tokenizer: Tokenizer, prompts: Sequence[Prompt], reply: Reply) -> pd.DataFrame:
    """The table of `grasp.evaluation.answers.score_answers`, for prompts answered by `reply`.

    Prompts whose scorer needs only the first token are answered by that token.
    """
    short = [prompt for prompt in prompts if prompt.scorer in FIRST_TOKEN]
    pairs = [prompt for prompt in prompts if prompt.scorer == "pair"]
    long = [prompt for prompt in prompts if prompt.scorer not in (*FIRST_TOKEN, "pair")]
    by_steps = pair_by_steps(tokenizer, pairs, lambda chats: reply(chats, 1)[1])
    found: list[Answer] = []
    for group, limit in ((short, 1), (long, None)):
        for start in range(0, len(group), BATCH):
            chunk = group[start : start + BATCH]
            chats = [
                chat_ids(tokenizer, prompt.messages, generate=True, prefix=prompt.prefix)
                for prompt in chunk
            ]
            found += as_answers(tokenizer, chunk, *reply(chats, limit))
    found += as_pairs(pairs, by_steps)
    return score_answers(tokenizer, [*short, *long, *pairs], found)
