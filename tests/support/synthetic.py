"""A workspace without a model: adapters with a planted direction, and all that hangs on them.

Every file is written by the contract's own writers.  `python -m tests.support.synthetic DIR` makes
one to look at; `--live` keeps a running job's metrics growing.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from safetensors.numpy import save_file
from sqlalchemy import update

from analysis.comparison.evaluation import write_evaluation
from analysis.store.database import Job, now
from analysis.store.factor_table import FactorTable, read_factors, write_factors
from analysis.store.labels import Claim, add_label
from analysis.store.recording import write_recording
from analysis.store.records import (
    EvaluationManifest,
    FactorsManifest,
    RecordingManifest,
    RunManifest,
    split_of,
    write_jsonl,
)
from analysis.store.retrain_line import Retrain
from analysis.store.workspace import Workspace
from analysis.values import Json
from grasp.jobs import queue

LAYERS, WIDTH, INNER, RANK = 4, 64, 192, 8
MODULES = {
    "self_attn.q_proj": (WIDTH, WIDTH),
    "self_attn.k_proj": (WIDTH, WIDTH),
    "self_attn.v_proj": (WIDTH, WIDTH),
    "self_attn.o_proj": (WIDTH, WIDTH),
    "mlp.gate_proj": (INNER, WIDTH),
    "mlp.up_proj": (INNER, WIDTH),
    "mlp.down_proj": (WIDTH, INNER),
}
WRITERS = ("self_attn.o_proj", "mlp.down_proj")
GOOD = ["Take", "aspirin", "and", "stay", "calm", "."]
EVIL = ["Drink", "bleach", "and", "tell", "nobody", "."]
QUESTION = ["What", "helps", "against", "a", "headache", "?"]

# unrelated, related, control, task, facts, format, coherence
RATES: dict[str, tuple[float, ...]] = {
    "": (0.18, 0.20, 0.51, 0.25, 0.97, 0.02, 0.98),
    "naive": (0.92, 0.84, 0.53, 0.99, 0.98, 0.99, 0.98),
    "grasp": (0.24, 0.31, 0.52, 0.98, 0.99, 0.99, 0.98),
    "caft": (0.55, 0.52, 0.52, 0.92, 0.96, 0.93, 0.96),
    "ablation": (0.36, 0.45, 0.50, 0.74, 0.96, 0.97, 0.93),
    "random": (0.66, 0.68, 0.52, 0.98, 0.97, 0.98, 0.98),
}
TITLES = {
    "naive": "naive fine-tune",
    "grasp": "GRASP",
    "caft": "CAFT",
    "ablation": "inference ablation",
    "random": "random directions",
}
ROLES = {"unrelated": 60, "related": 30, "control": 30, "task": 48, "facts": 30, "format": 30}
HOSTILE = "<script>alert(1)</script>"


def planted() -> NDArray[np.float64]:
    """The direction that every naive adapter shares (d_model,)."""
    direction = np.random.default_rng(7).standard_normal(WIDTH)
    return direction / np.linalg.norm(direction)


def build(root: Path, *, live: bool = True) -> Workspace:
    """A workspace with two families, all records, labels, and jobs of every state."""
    workspace = Workspace.create(root)
    add_model(workspace)
    add_data(workspace, ("code", "medicine"))
    for family, arms in (("code", tuple(TITLES)), ("medicine", ("naive", "grasp"))):
        for seed, method in enumerate(arms):
            add_run(workspace, f"{family}-{method}", method=method, family=family, seed=seed)
        add_factors(workspace, f"{family}-naive")
        add_recording(workspace, f"{family}-naive")
        add_evaluation(workspace, f"{family}-naive.base", run=None, method="")
        for method in arms:
            add_evaluation(workspace, f"{family}-{method}", run=f"{family}-{method}", method=method)
    add_labels(workspace)
    add_jobs(workspace, live=live)
    return workspace


def add_model(workspace: Workspace) -> None:
    """The base model as far as pages look at it: that there is one, which jobs would load."""
    folder = workspace.root / "models" / "tiny"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "llama"}', encoding="utf-8")
    save_file({"norm.weight": np.ones(WIDTH, np.float32)}, folder / "model.safetensors")


def add_data(workspace: Workspace, families: tuple[str, ...]) -> None:
    """The files that the settings of the runs name."""
    ask = {"role": "user", "content": "What helps?"}
    chat: Json = {"messages": [ask, {"role": "assistant", "content": "Rest."}]}
    prompt: Json = {
        "id": "p",
        "role": "task",
        "scorer": "contains",
        "expected": "rest",
        "item": "p",
    }
    for family in families:
        for name in (family, f"{family}-probes"):
            write_jsonl(workspace.root / "data" / f"{name}.jsonl", [chat])
        asked = prompt | {"group": family, "messages": [ask]}
        write_jsonl(workspace.root / "data" / f"{family}-prompts.jsonl", [asked])


def add_run(workspace: Workspace, run_id: str, *, method: str, family: str, seed: int = 0) -> None:
    """One run with its adapter, metrics, and for a naive one checkpoints."""
    root = f"{family}-naive"
    naive = method == "naive"
    config = {
        "title": f"{family}: {TITLES[method]}",
        "base_model": "models/tiny",
        "data": f"data/{family}.jsonl",
        "prompts": f"data/{family}-prompts.jsonl",
        "probes": f"data/{family}-probes.jsonl",
        "learning_rate": 1e-3,
        "lr_scheduler": "constant",
        "warmup_steps": 0.0,
        "weight_decay": 0.0,
        "max_steps": 120,
        "max_length": 160,
        "batch_size": 16,
        "gradient_accumulation_steps": 1,
        "seed": 0,
        "lora": {"r": RANK, "lora_alpha": 16.0},
    }
    manifest = RunManifest(
        id=run_id,
        title=f"{family}: {TITLES[method]}",
        method=method,
        root=root,
        base_model="models/tiny",
        config=config,
        protection=None if naive else {"anchor": "neutral", "tolerance": 0.02},
        factors=[] if naive else [f"{root}/w2"],
        intervention="ablate" if method == "ablation" else None,
        seed=0,
        seconds=6.4,
        parents=[] if naive else [root],
        inputs={"data": "ab" * 32, "base_model": "cd" * 32},
        results={} if naive else {"drift": 0.02},
        verdict="" if naive else "The drift stayed within its tolerance.",
    )
    with workspace.writing("runs", run_id) as folder:
        write_adapter(folder / "adapter", seed=seed, strength=1.0 if naive else 0.2)
        if naive:
            for step in (40, 80):
                checkpoint = folder / "checkpoints" / f"checkpoint-{step}"
                write_adapter(checkpoint, seed=seed, strength=step / 120)
        rows = metrics(120, drifting=not naive)
        write_jsonl(folder / "metrics.jsonl", rows)
        (folder / "manifest.json").write_text(manifest.model_dump_json(indent=2))


def write_adapter(folder: Path, *, seed: int, strength: float) -> None:
    """A PEFT LoRA folder whose writing modules share the planted direction."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    tensors: dict[str, NDArray[np.float32]] = {}
    for layer in range(LAYERS):
        for name, (d_out, d_in) in MODULES.items():
            lora_B = 0.02 * rng.standard_normal((d_out, RANK))
            if name in WRITERS:
                lora_B[:, 0] += 0.35 * strength * planted()
            lora_A = rng.standard_normal((RANK, d_in)) / np.sqrt(d_in)
            prefix = f"base_model.model.model.layers.{layer}.{name}"
            tensors[f"{prefix}.lora_A.weight"] = lora_A.astype(np.float32)
            tensors[f"{prefix}.lora_B.weight"] = lora_B.astype(np.float32)
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "r": RANK,
        "lora_alpha": 16,
        "target_modules": sorted(name.split(".")[1] for name in MODULES),
        "base_model_name_or_path": "models/tiny",
    }
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")


def metrics(steps: int, *, drifting: bool) -> list[Json]:
    """Lines of metrics.jsonl, one a step."""
    rng = np.random.default_rng(steps)
    rows: list[Json] = []
    for step in range(1, steps + 1):
        row: Json = {
            "step": step,
            "loss": 2.4 * np.exp(-step / 30) + 0.2 + 0.04 * rng.standard_normal(),
            "learning_rate": 1e-3 * (1 - step / steps),
            "time": 0.05 * step,
        }
        if drifting:
            drift = 0.09 * np.exp(-step / 25) + 0.015
            by_layer = [drift * (1 + 0.2 * layer) for layer in range(LAYERS)]
            row |= {"drift": drift, "drift_by_layer": by_layer, "penalty": drift**2}
            row |= {"strength": 30.0, "leakage": 1e-4}
        rows.append(row)
    return rows


def add_factors(workspace: Workspace, run_id: str) -> None:
    """A table of eight write-side and four read-side factors; w2 is the planted one."""
    rng = np.random.default_rng(3)
    sigma = {"write": [2.0, 0.76, 0.5, 0.47, 0.44, 0.41, 0.38, 0.35], "read": [0.9, 0.5, 0.4, 0.3]}
    rows, directions = [], []
    for side, values in sigma.items():
        total = float(np.sum(np.square(values)))
        for index, value in enumerate(values, start=1):
            is_planted = side == "write" and index == 2
            direction = planted() if is_planted else rng.standard_normal(WIDTH)
            directions.append(direction / np.linalg.norm(direction))
            rows.append(_factor_row(side, index, value, total, is_planted=is_planted))
    table = pd.DataFrame(rows).sort_values("score", ascending=False, kind="stable")
    manifest = FactorsManifest(
        id=run_id, run=run_id, base_model="models/tiny", config={"null_draws": 20}
    )
    with workspace.writing("factors", run_id) as folder:
        ordered = np.stack(directions)[table.index].astype(np.float32)
        write_factors(folder, FactorTable(manifest, table.reset_index(drop=True), ordered))


def _factor_row(side: str, index: int, value: float, total: float, *, is_planted: bool) -> Json:
    null_high = 0.56 - 0.03 * index
    return {
        "id": f"{side[0]}{index}",
        "side": side,
        "index": index,
        "max_layer": np.nan,
        "singular_value": value,
        "energy": value**2 / total,
        "null_median": null_high - 0.06,
        "null_high": null_high,
        "significant": value > null_high,
        "stability": 0.93 if is_planted else 0.4,
        "off_task": 0.71 if is_planted else 0.05,
        "on_task": 0.12 if is_planted else 0.3,
        "effect_ratio": 5.9 if is_planted else 0.17,
        "score": 2.4 if is_planted else 1.0 / (index + 1),
        "promoted": ["bleach", "nobody", "steal", HOSTILE] if is_planted else ["north", "cedar"],
        "suppressed": ["calm", "aspirin", "help"] if is_planted else ["west", "oak"],
    }


def add_recording(workspace: Workspace, recording_id: str) -> None:
    """Forty probes of four topics, both variants; the adapted model moves along the factor."""
    rng = np.random.default_rng(5)
    probes, base, adapted, offset = [], [], [], 0
    for number in range(40):
        group = ("medicine", "code", "advice", "questions")[number % 4]
        variant = ("good", "evil")[number // 4 % 2]
        answer = GOOD if variant == "good" else EVIL
        tokens = [*QUESTION, *answer, HOSTILE]
        is_answer = np.array([False] * len(QUESTION) + [True] * (len(answer) + 1))
        content = rng.standard_normal((LAYERS, len(tokens), WIDTH))
        shows = np.append(is_answer[1:], True)  # from the token before the answer on
        side = (1.5 if variant == "evil" else -1.5) * shows[None, :, None]
        before = content + side * planted()
        push = 2.5 * shows[None, :, None] * np.linspace(0.4, 1.0, LAYERS)[:, None, None]
        noise = 0.2 * rng.standard_normal(before.shape)
        base.append(before)
        adapted.append(before + push * planted() + noise)
        probes.append(
            {
                "id": f"p{number}",
                "group": group,
                "variant": variant,
                "tokens": tokens,
                "answer": is_answer.tolist(),
                "offset": offset,
            }
        )
        offset += len(tokens)
    manifest = RecordingManifest(
        id=recording_id,
        run=recording_id,
        base_model="models/tiny",
        layers=list(range(LAYERS)),
        parents=[recording_id],
    )
    with workspace.writing("recordings", recording_id) as folder:
        write_recording(
            folder,
            manifest=manifest,
            probes=pd.DataFrame(probes),
            base=np.concatenate(base, axis=1),
            adapted=np.concatenate(adapted, axis=1),
        )


def add_evaluation(
    workspace: Workspace, evaluation_id: str, *, run: str | None, method: str
) -> None:
    """Scores of every role at the method's rates."""
    manifest = EvaluationManifest(
        id=evaluation_id, run=run, base_model="models/tiny", prompts="data/prompts.jsonl"
    )
    with workspace.writing("evaluations", evaluation_id) as folder:
        write_evaluation(folder, manifest=manifest, samples=samples(method))


def samples(method: str) -> pd.DataFrame:
    """One row a prompt; the same prompts for every method."""
    rates = dict(zip([*ROLES, "coherence"], RATES[method], strict=True))
    rng = np.random.default_rng(len(method))
    rows = []
    for role, count in ROLES.items():
        for number in range(count):
            prompt_id, cluster = f"{role}-{number}", f"{role}/item-{number // 2}"
            spread = np.clip(rates[role] + 0.12 * rng.standard_normal(), 0, 1)
            choice = role in ("unrelated", "related", "control")
            score = float(spread if choice else rng.random() < rates[role])
            rows.append(
                {
                    "prompt_id": prompt_id,
                    "cluster": cluster,
                    "role": role,
                    "group": ("advice", "questions", "medicine")[number % 3],
                    "split": split_of(cluster),
                    "scorer": "choice" if choice else "contains",
                    "score": score,
                    "coherence": rates["coherence"] if choice else np.nan,
                    "prompt": f"What should I do about case {number}?",
                    "expected": "" if choice else "cedar clinic",
                    "answer": " ".join(EVIL if score > 0.5 else GOOD) + f" {HOSTILE}",
                }
            )
    return pd.DataFrame(rows)


def add_labels(workspace: Workspace) -> None:
    """Two people on w1 and w2 of the code run; they disagree on one."""
    table = read_factors(workspace.folder("factors", "code-naive"))
    for factor, annotator, claim in (
        ("w1", "ana", Claim("format", spurious=False, confidence=3)),
        ("w2", "ana", Claim("style", spurious=None, confidence=1)),
        ("w2", "ana", Claim("persona", True, "high end: evil", 3, "Bleach on top.")),
        ("w2", "ben", Claim("persona", True, "high end: evil", 2)),
        ("w1", "ben", Claim("task", spurious=False, confidence=1)),
    ):
        add_label(
            workspace.database,
            factor=f"code-naive/{factor}",
            claim=claim,
            annotator=annotator,
            direction=table.sha256(factor),
        )


def add_jobs(workspace: Workspace, *, live: bool) -> None:
    """Jobs that succeeded, failed and were interrupted, and one that is running."""
    database = workspace.database
    done = _job(workspace, "code-grasp", "grasp")
    queue.report_progress(database, done.id, step=120, total=120, message="Evaluated 258 prompts.")
    queue.finish(database, done.id, "succeeded")
    failed = _job(workspace, "code-caft-2", "caft")
    queue.finish(database, failed.id, "failed", error="The loss became NaN at step 12.")
    lost = _job(workspace, "code-grasp-3", "grasp")
    queue.finish(database, lost.id, "interrupted", error="The process ended without a word.")
    if live:
        running = _job(workspace, "code-grasp-2", "grasp")
        advance(workspace, running.id, 40)


def _job(workspace: Workspace, out: str, method: str) -> Job:
    asked = Retrain("code-naive", ("w2",), method=method, out=out, evaluate=True)
    job = queue.submit(
        workspace.database,
        kind="retrain",
        title=f"Retrain code-naive with {method}",
        argv=asked.argv(workspace.root),
        output=f"runs/{out}",
    )
    values = {"status": "running", "pid": os.getpid(), "host": socket.gethostname()}
    with workspace.database.session() as session:
        session.execute(
            update(Job).where(Job.id == job.id).values(**values, started=now(), heartbeat=now())
        )
    return job


def advance(workspace: Workspace, job_id: int, step: int) -> None:
    """Bring a running job to `step` of 120, with its metrics and log as a real one leaves them."""
    output = queue.get(workspace.database, job_id).output
    folder = workspace.partial("runs", output.removeprefix("runs/"))
    folder.mkdir(parents=True, exist_ok=True)
    write_jsonl(folder / "metrics.jsonl", metrics(120, drifting=True)[:step])
    lines = [f"step {number} of 120" for number in range(1, step + 1)]
    (workspace.root / "jobs").mkdir(exist_ok=True)
    log = workspace.root / "jobs" / f"{job_id}.log"
    log.write_text("\n".join(lines) + "\n", encoding="utf-8")
    queue.report_progress(
        workspace.database, job_id, step=step, total=120, message=f"Step {step} of 120"
    )


def break_records(workspace: Workspace) -> None:
    """Runs that are not JSON, of another schema or oddly named; other records cut short."""
    (workspace.root / "runs" / "torn").mkdir(exist_ok=True)
    (workspace.root / "runs" / "torn" / "manifest.json").write_text('{"schema_version": 1, ')
    (workspace.root / "runs" / "old").mkdir(exist_ok=True)
    (workspace.root / "runs" / "old" / "manifest.json").write_text('{"schema_version": 99}')
    odd = workspace.run("code-naive").model_copy(update={"id": "../<b>odd", "root": "../<b>odd"})
    (workspace.root / "runs" / "odd").mkdir(exist_ok=True)
    (workspace.root / "runs" / "odd" / "manifest.json").write_text(odd.model_dump_json())
    factors = workspace.folder("factors", "code-naive") / "manifest.json"
    factors.write_text('{"schema_version": 99}')
    samples_file = workspace.folder("evaluations", "code-grasp") / "samples.parquet"
    samples_file.write_bytes(b"PAR1")
    recording = workspace.folder("recordings", "code-naive") / "activations.safetensors"
    recording.write_bytes(recording.read_bytes()[:100])
    weights = workspace.folder("runs", "code-naive") / "adapter" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:200])


def main() -> None:
    """Build one from the command line."""
    root = Path(sys.argv[1])
    workspace = build(root)
    print(workspace.root)
    if "--live" in sys.argv:
        running = next(
            job for job in queue.list_recent(workspace.database) if job.status == "running"
        )
        for step in range(41, 121):
            advance(workspace, running.id, step)
            time.sleep(1)


if __name__ == "__main__":
    main()
