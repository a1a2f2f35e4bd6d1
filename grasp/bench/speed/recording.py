"""Recording all layers, compared with the bare forward pass and with other libraries."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import AutoTokenizer
from transformers import PreTrainedTokenizerBase as Tokenizer

from analysis.store.recording import activation_file
from analysis.values import Json
from grasp.bench.speed.child import Work, watch
from grasp.bench.speed.figure import Figure, value_and_spread
from grasp.bench.speed.model import Size, attach_adapter, random_model, share_weights
from grasp.bench.speed.timing import Action, time_in_turn
from grasp.data.tokenise import pad_sequences
from grasp.evidence.record import BATCH, record_streams
from grasp.model.forward import Batch
from grasp.world.shipped import shipped_world
from grasp.world.tokens import build_tokenizer

RATE, MEMORY = 0.9, 1.15

Kept = list[list[Tensor]]
"""For each batch, the kept activations of every layer: (real tokens, d_model), half precision."""

Pass = Callable[[Batch, Tensor], list[Tensor]]
"""From a batch and the mask of its real tokens to the kept activations of every layer."""

_RECORDED, _BARE, _BARE_BASE = "recorded", "bare", "bare base"
_FORWARD = "`model(input_ids)` on the same batches, nothing kept"


class _Subject:
    """A base model, a tokenizer for padding, and prompts of many lengths."""

    def __init__(self, size: Size, prompts: int) -> None:
        self.base = random_model(size)
        self.size = size
        self.tokenizer: Tokenizer = build_tokenizer(shipped_world())
        rng = np.random.default_rng(0)
        lengths = rng.integers(size.tokens // 4, size.tokens + 1, prompts)
        self.sequences = [rng.integers(8, size.vocabulary, n).tolist() for n in lengths]
        self.tokens = int(lengths.sum())

    @property
    def layers(self) -> list[int]:
        """All layers of the model."""
        return list(range(self.size.layers))

    def batches(self) -> Iterator[Batch]:
        """Batches as a recording forms them, longest prompts first."""
        order = sorted(self.sequences, key=len, reverse=True)
        for start in range(0, len(order), BATCH):
            yield pad_sequences(self.tokenizer, order[start : start + BATCH])

    def record(self, model: PeftModel, folder: Path) -> None:
        """Record base and adapted model to disk."""
        with activation_file(
            folder, shape=(len(self.layers), self.tokens, self.size.d_model)
        ) as file:
            record_streams(model, self.tokenizer, self.sequences, file.put, layers=self.layers)

    @torch.inference_mode()
    def bare(self, model: nn.Module) -> None:
        """Run the plain forward pass of every batch."""
        for batch in self.batches():
            model(**batch, use_cache=False)

    def bare_both(self, model: PeftModel) -> None:
        """Run the plain forward passes of base and adapted model, as a recording does."""
        self.bare(model)
        with model.disable_adapter():
            self.bare(model)

    @torch.inference_mode()
    def kept(self, run: Pass) -> Kept:
        """What another way of recording keeps of every batch."""
        found = []
        for batch in self.batches():
            real = batch["attention_mask"].bool()
            found.append([hidden.half() for hidden in run(batch, real)])
        return found


def recording_figures(size: Size, *, prompts: int, rounds: int) -> list[Figure]:
    """Tokens per second and peak memory of recording both models, and the rates of others."""
    subject = _Subject(size, prompts)
    with TemporaryDirectory() as place, _passes(subject) as (passes, missing):
        model = attach_adapter(subject.base, size).eval()
        actions: dict[str, Action] = {
            _RECORDED: lambda: subject.record(model, Path(place)),
            _BARE: lambda: subject.bare_both(model),
            _BARE_BASE: lambda: subject.bare(subject.base),
            **{name: partial(subject.kept, run) for name, run in passes.items()},
        }
        times = time_in_turn(actions, rounds=rounds)
    told = {
        "prompts": prompts,
        "tokens": subject.tokens,
        "layers": size.layers,
        "d_model": size.d_model,
        "bare forward, tokens/s": 2 * subject.tokens / median(times.of(_BARE)),
    }
    rate = Figure(
        id="recording.rate",
        group="recording",
        what="Recording all layers of base and adapted model, to disk: tokens per second",
        against=_FORWARD,
        unit="×",
        sense="at least",
        target=RATE,
        **value_and_spread(times.ratio(_BARE, _RECORDED)),
        detail=told
        | {
            "why": "the unembedding does not run",
            "by processor time, ×": median(times.processor_ratio(_BARE, _RECORDED)),
        },
    )
    others = [
        _other(name, **value_and_spread(times.ratio(_BARE_BASE, name)), detail=told)
        for name in passes
    ]
    unmeasured = [_other(name, missing=why) for name, why in missing.items()]
    return [rate, _memory(size, prompts), *others, *unmeasured]


def _other(name: str, **found: Any) -> Figure:
    """The figure of another way to record."""
    return Figure(
        id=f"recording.{name}",
        group="recording",
        what=f"{name}, all layers of the base model kept in memory: tokens per second",
        against=_FORWARD,
        unit="×",
        **found,
    )


def _memory(size: Size, prompts: int) -> Figure:
    """Peak memory; each in its own process, since a process's peak never goes down."""
    described = json.dumps({"size": asdict(size), "prompts": prompts})
    found = {what: watch(f"{__name__}:run_alone", what, described) for what in (_RECORDED, _BARE)}
    peaks = {what: one.peak for what, one in found.items()}
    return Figure(
        id="recording.memory",
        group="recording",
        what="Recording all layers of base and adapted model, to disk: peak resident memory",
        against=_FORWARD,
        unit="×",
        target=MEMORY,
        value=peaks[_RECORDED] / peaks[_BARE],
        detail={
            **{f"{what}, peak bytes": peak for what, peak in peaks.items()},
            **{f"{what}, bytes when ready": one.before for what, one in found.items()},
        },
    )


def run_alone(what: str, described: str) -> Work:
    """Recording, or the bare passes, as the work of a separate process."""
    told = json.loads(described)
    size = Size(**told["size"])
    subject = _Subject(size, told["prompts"])
    model = attach_adapter(subject.base, size).eval()

    def work() -> Json:
        if what == _BARE:
            subject.bare_both(model)
        else:
            with TemporaryDirectory() as place:
                subject.record(model, Path(place))
        return {}

    return work


@contextmanager
def _passes(subject: _Subject) -> Iterator[tuple[dict[str, Pass], dict[str, str]]]:
    """The other ways of recording that are installed, and for the rest why they are missing."""
    found: dict[str, Pass] = {"output_hidden_states": _hidden_states(subject.base)}
    missing: dict[str, str] = {}
    for name, make in (("nnsight", _nnsight), ("transformer-lens", _transformer_lens)):
        try:
            label = f"{name} {version(name)}"
        except PackageNotFoundError:
            missing[name] = "not installed; `pip install grasp-workbench[bench]` brings it"
            continue
        found[label] = make(subject)
    yield found, missing


def _hidden_states(model: nn.Module) -> Pass:
    def run(batch: Batch, real: Tensor) -> list[Tensor]:
        states = model(**batch, use_cache=False, output_hidden_states=True).hidden_states
        return [hidden[real] for hidden in states[1:]]

    return run


def _nnsight(subject: _Subject) -> Pass:
    import nnsight

    traced = nnsight.NNsight(share_weights(subject.base))

    def run(batch: Batch, real: Tensor) -> list[Tensor]:
        with traced.trace(**batch, use_cache=False):
            saved = nnsight.save([layer.output for layer in traced.model.layers])
        return [hidden[real] for hidden in saved]

    return run


def _transformer_lens(subject: _Subject) -> Pass:
    from transformer_lens.model_bridge import TransformerBridge

    model = share_weights(subject.base)
    with TemporaryDirectory() as place:
        model.config.architectures = [type(model).__name__]
        model.config.save_pretrained(place)
        subject.tokenizer.save_pretrained(place)
        bridge = TransformerBridge.boot_transformers(
            place,
            hf_model=model,
            tokenizer=AutoTokenizer.from_pretrained(place),
            device="cpu",
        )

    def run(batch: Batch, real: Tensor) -> list[Tensor]:
        _, cache = bridge.run_with_cache(
            batch["input_ids"],
            attention_mask=batch["attention_mask"],
            names_filter=lambda name: name.endswith("hook_resid_post"),
        )
        layers: Sequence[int] = subject.layers
        return [cache[f"blocks.{layer}.hook_resid_post"][real] for layer in layers]

    return run
