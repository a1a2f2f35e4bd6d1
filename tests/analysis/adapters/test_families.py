"""Every family and option of PEFT: delta weights against PEFT's own, and sides by what they do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from analysis.adapters.load import Adapter, LoraModule, load_adapter
from analysis.factors.residual import residual_factors
from analysis.spectra.module_svd import module_svds
from analysis.spectra.spectrum import module_spectra
from grasp.model.hooks import decoder_layers
from tests.support.peft_oracle import FAMILIES, WIDTH, Saved, saved

POST_NORM = ("gemma2", "gemma3")  # another norm lies between a writing module and the stream
EXPERTS = {"target_parameters": ["experts.gate_up_proj", "experts.down_proj"]}
WITH_EXPERTS = ("mixtral", "qwen2-moe", "qwen3-moe", "gpt-oss", "llama4")
OF_FAMILY: dict[str, dict[str, Any]] = dict.fromkeys(WITH_EXPERTS, EXPERTS)
# PEFT cannot run LoRA on this router, which gives a pair.
OF_FAMILY["llama4"] = {**EXPERTS, "exclude_modules": ["router"]}
OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "rsLoRA": ("llama", {"lora_alpha": 7, "use_rslora": True}),
    "bf16": ("llama", {"dtype": "bfloat16"}),
    "fp16": ("qwen2", {"dtype": "float16"}),
    "r above every dimension": ("llama", {"r": 60}),
    "patterns": (
        "llama",
        {
            "use_rslora": True,
            # Overlapping patterns in alphabetical order, since PEFT sorts them on saving.
            "rank_pattern": {r"^model.layers.1.*": 5, "k_proj": 3, "layers.0.self_attn.q_proj": 2},
            "alpha_pattern": {r".*\.0\.mlp\..*_proj": 11, "[a-z]+_proj": 100},
        },
    ),
    "regex": ("llama", {"target_modules": r".*layers\.1\..*(o_proj|up_proj)"}),
    "one layer": ("llama", {"target_modules": ["o_proj"], "layers_to_transform": 1}),
    "layers of a name": (
        "gpt2",
        {"target_modules": ["c_proj"], "layers_to_transform": [0], "layers_pattern": "h"},
    ),
    "excluded": ("llama", {"exclude_modules": ["q_proj", "layers.1.mlp.up_proj"]}),
    "excluded by a pattern": ("qwen3", {"exclude_modules": r".*\.0\..*"}),
    "saved whole": ("llama", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}),
    "embedding": ("llama", {"target_modules": ["embed_tokens", "o_proj", "lm_head"]}),
    "embedding bf16 rsLoRA": (
        "gpt2",
        {"target_modules": ["wte", "wpe", "c_proj"], "dtype": "bfloat16", "use_rslora": True},
    ),
    "embedding of OPT": ("opt-projected", {"target_modules": ["embed_tokens", "fc2"]}),
    "LoRA bias": ("qwen2", {"target_modules": ["q_proj"], "lora_bias": True}),
    "biases": ("qwen2", {"target_modules": ["q_proj"], "bias": "lora_only"}),
    "token rows": ("llama", {"target_modules": ["q_proj"], "trainable_token_indices": [1, 2]}),
    "experts' down alone": (
        "mixtral",
        {"target_modules": ["o_proj"], "target_parameters": ["experts.down_proj"]},
    ),
    "experts' down named, the rest by PEFT": (
        "mixtral",
        {"target_parameters": ["experts.down_proj"]},
    ),
    "no module but the experts": ("qwen2-moe", {"target_modules": [], **EXPERTS}),
    "experts by their old names": ("mixtral", {"target_modules": ["q_proj", "w1", "w2", "w3"]}),
    "experts with patterns": (
        "qwen3-moe",
        {
            **EXPERTS,
            "target_modules": ["q_proj"],
            "rank_pattern": {"experts.gate_up_proj": 5},
            "alpha_pattern": {"down_proj": 3},
        },
    ),
    "a router's weight": (
        "mixtral",
        {"target_modules": ["o_proj"], "target_parameters": ["gate.weight"]},
    ),
    "GPT-2 bf16 patterns": (
        "gpt2",
        {"dtype": "bfloat16", "rank_pattern": {"c_attn": 2}, "alpha_pattern": {"c_fc": 9}},
    ),
    "replicated layers": (
        "llama",
        {"target_modules": ["o_proj"], "layer_replication": [(0, 2), (1, 2)]},
    ),
}


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Saved]:
    """The adapter of a family, made once."""
    root = tmp_path_factory.mktemp("families")
    return cache(lambda name: saved(root / name, name, **OF_FAMILY.get(name, {})))


def close_to_peft(adapter: Adapter, deltas: dict[str, np.ndarray], *, dtype: str) -> None:
    """Values, singular values and the spans of leading vectors are those of PEFT's ΔW."""
    tolerance = 1e-4 if dtype == "float32" else 1e-3
    assert {module.name for module in adapter.modules} == set(deltas)
    assert adapter.dtype == dtype
    spectra = module_spectra(adapter)
    svds = module_svds(adapter.modules)
    for module, spectrum, svd in zip(adapter.modules, spectra, svds, strict=True):
        delta = deltas[module.name]
        assert module.shape == delta.shape
        left, values, right = np.linalg.svd(delta, full_matrices=False)
        k = min(module.r, *module.shape)
        np.testing.assert_allclose(spectrum.singular_values, values[:k], rtol=tolerance)
        np.testing.assert_allclose(svd.singular_values, values[:k], rtol=tolerance)
        found = (svd.left * svd.singular_values) @ svd.right.T
        np.testing.assert_allclose(found, delta, atol=tolerance * values[0])
        for ours, theirs in ((svd.left, left[:, :k]), (svd.right, right.T[:, :k])):
            cosines = np.linalg.svd(ours.T @ theirs, compute_uv=False)
            np.testing.assert_allclose(cosines, 1.0, atol=tolerance)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_familys_updates_are_pefts(family: str, families: Callable[[str], Saved]) -> None:
    one = families(family)
    adapter = load_adapter(one.folder)
    assert adapter.unused == ()
    assert adapter.beside == {}
    close_to_peft(adapter, one.deltas, dtype="float32")


@pytest.mark.parametrize("option", OPTIONS)
def test_an_options_updates_are_pefts(option: str, tmp_path: Path) -> None:
    family, lora = OPTIONS[option]
    one = saved(tmp_path, family, **lora)
    adapter = load_adapter(one.folder)
    assert adapter.unused == ()
    close_to_peft(adapter, one.deltas, dtype=lora.get("dtype", "float32"))


@pytest.mark.parametrize("family", FAMILIES)
def test_sides_and_layers_fit_the_stream(family: str, families: Callable[[str], Saved]) -> None:
    modules = load_adapter(families(family).folder).modules
    assert {module.side for module in modules} == {"read", "write"}
    for module in modules:
        assert module.shape[0 if module.side == "write" else 1] == WIDTH
        inside = f".{module.layer}." in module.name
        assert inside if module.layer is not None else "project" in module.name
    assert {module.layer for module in modules} - {None} == {0, 1}
    # Attention and MLP both write in every layer.
    for layer in (0, 1):
        writers = [m.name for m in modules if (m.side, m.layer) == ("write", layer)]
        assert len({"attn" in name or "attention" in name for name in writers}) == 2


IDS = torch.arange(1, 13)[None]


@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in POST_NORM])
def test_what_writes_moves_the_stream_within_its_left_vectors(
    family: str, families: Callable[[str], Saved]
) -> None:
    """All other writers of the last layer silenced, the stream after it moves by ΔW x alone."""
    one = families(family)
    modules = load_adapter(one.folder).modules
    writers = [m for m in modules if (m.side, m.layer) == ("write", 1)]
    for name, group in grouped(writers).items():
        with silenced(one.model, writers):
            moved = stream(one.model, only=name) - stream(one.model, only=None)
        basis, _ = np.linalg.qr(np.hstack([m.lora_B for m in group]).astype(np.float64))
        outside = moved - moved @ basis @ basis.T
        assert np.linalg.norm(moved) > 1e-2
        assert np.linalg.norm(outside) < 1e-4 * np.linalg.norm(moved)


@pytest.mark.parametrize(
    "family", [name for name in FAMILIES if name not in ("opt-projected", "llama4")]
)
def test_what_reads_is_given_the_normed_stream(
    family: str, families: Callable[[str], Saved]
) -> None:
    """All writers silenced, the stream is the embedding, and readers see it up to its norm.

    Not for OPT with a projection, nor for the experts of Llama 4, which see weighed copies.
    """
    one = families(family)
    modules = load_adapter(one.folder).modules
    writers = [m for m in modules if m.side == "write"]
    for name, (module, *_) in grouped(modules).items():
        with silenced(one.model, writers):
            given, embedded = input_of(one.model, name), stream(one.model, only=None)
        if given.shape != embedded.shape:
            assert module.side == "write"
            continue
        cosines = [
            np.sum(given * rows, axis=1)
            / np.linalg.norm(given, axis=1)
            / np.linalg.norm(rows, axis=1)
            for rows in (embedded, embedded - embedded.mean(axis=1, keepdims=True))
        ]
        seen = bool(np.all(np.max(cosines, axis=0) > 0.999))
        assert seen == (module.side == "read"), name


def test_an_embedding_writes_the_stream_before_the_layers(tmp_path: Path) -> None:
    one = saved(tmp_path, "llama", target_modules=["embed_tokens", "lm_head", "o_proj"])
    modules = load_adapter(one.folder).modules
    assert [(m.name, m.side, m.layer) for m in modules] == [
        ("model.embed_tokens", "write", None),
        ("model.layers.0.self_attn.o_proj", "write", 0),
        ("model.layers.1.self_attn.o_proj", "write", 1),
        ("lm_head", "read", None),
    ]
    moved = embedding(one.model, on=True) - embedding(one.model, on=False)
    delta = one.deltas["model.embed_tokens"]
    np.testing.assert_allclose(moved, delta[:, IDS[0]].T, atol=1e-4 * np.abs(delta).max())
    for limit, names in ((0, [0, 1]), (1, [0, 1, 2])):
        found = residual_factors(modules, side="write", max_layer=limit)
        stacked = np.hstack([one.deltas[modules[i].name] for i in names])
        values = np.linalg.svd(stacked, compute_uv=False)[: len(found.singular_values)]
        np.testing.assert_allclose(found.singular_values, values, rtol=1e-4)
        assert found.modules == tuple(modules[i].name for i in names)
    assert residual_factors(modules, side="read").modules == ("lm_head",)


@pytest.mark.parametrize(
    ("family", "target"),
    [("gpt2", "wte"), ("gpt2", "wpe"), ("neox", "embed_in"), ("falcon", "word_embeddings")],
)
def test_embeddings_of_every_name_write_before_the_layers(family, target, tmp_path: Path) -> None:
    one = saved(tmp_path, family, target_modules=[target])
    (module,) = load_adapter(one.folder).modules
    assert (module.side, module.layer, module.shape[0]) == ("write", None, WIDTH)
    close_to_peft(load_adapter(one.folder), one.deltas, dtype="float32")


def test_an_embedding_that_is_projected_first_does_not_touch_the_stream(tmp_path: Path) -> None:
    targets = ["embed_tokens", "project_in", "project_out", "fc2", "lm_head"]
    one = saved(tmp_path, "opt-projected", target_modules=targets)
    sides = {m.name.split(".")[-1]: m.side for m in load_adapter(one.folder).modules}
    assert sides["embed_tokens"] == "other"
    assert sides.get("lm_head", "other") == "other"
    assert (sides["project_in"], sides["project_out"], sides["fc2"]) == ("write", "read", "write")


def grouped(modules: list[LoraModule] | tuple[LoraModule, ...]) -> dict[str, list[LoraModule]]:
    """Modules by their path in the model: experts of one parameter are one."""
    found: dict[str, list[LoraModule]] = {}
    for module in modules:
        head, experts, tail = module.name.partition(".experts.")
        name = f"{head}.experts.{tail.split('.')[1]}" if experts else module.name
        found.setdefault(name, []).append(module)
    return found


def layer_of(model: Any, name: str) -> Any:
    """The LoRA layer of a module, or of an expert parameter."""
    base = model.get_base_model()
    head, experts, parameter = name.partition(".experts.")
    layer = base.get_submodule(head + experts.rstrip("."))
    while experts and layer.parameter_name != parameter:
        layer = layer.base_layer
    return layer


@contextmanager
def silenced(model: Any, writers: list[LoraModule]) -> Iterator[None]:
    """Base weights and biases of modules set to zero for a while."""
    kept = []
    for name in grouped(writers):
        layer = layer_of(model, name)
        base = layer.get_base_layer()
        own = getattr(layer, "parameter_name", "weight")
        kept += [
            (parameter, parameter.detach().clone())
            for key, parameter in base.named_parameters(recurse=False)
            if key in (own, "bias", f"{own}_bias")
        ]
    for parameter, _ in kept:
        parameter.data.zero_()
    try:
        yield
    finally:
        for parameter, value in kept:
            parameter.data.copy_(value)


def all_layers(model: Any) -> list[Any]:
    return [layer for layer in model.get_base_model().modules() if hasattr(layer, "scaling")
            and isinstance(layer.scaling, dict)]  # fmt: skip


@torch.no_grad()
def stream(model: Any, *, only: str | None) -> np.ndarray:
    """(tokens, d_model) after the last layer, with LoRA on one module or on none."""
    layers = all_layers(model)
    kept = [dict(layer.scaling) for layer in layers]
    wanted = layer_of(model, only) if only else None
    for layer in layers:
        if layer is not wanted:
            layer.scaling["default"] = 0.0
    out: list[Any] = []
    last = decoder_layers(model)[-1]
    hook = last.register_forward_hook(lambda _module, _args, output: out.append(output))
    try:
        model(input_ids=IDS)
    finally:
        hook.remove()
        for layer, scaling in zip(layers, kept, strict=True):
            layer.scaling.update(scaling)
    hidden = out[0][0] if isinstance(out[0], tuple) else out[0]
    return hidden.reshape(-1, hidden.shape[-1]).double().numpy()


@torch.no_grad()
def input_of(model: Any, name: str) -> np.ndarray:
    """(tokens, d) that a module is given, LoRA off."""
    given: list[Any] = []
    layer = layer_of(model, name)
    if ".experts." in name and name.endswith("down_proj"):
        return np.zeros((0, 0))  # only inside the experts' own forward
    hook = layer.register_forward_pre_hook(lambda _module, args: given.append(args[0]))
    try:
        with model.disable_adapter():
            model(input_ids=IDS)
    finally:
        hook.remove()
    return given[0].reshape(-1, given[0].shape[-1]).double().numpy()


@torch.no_grad()
def embedding(model: Any, *, on: bool) -> np.ndarray:
    layer = model.get_base_model().get_input_embeddings()
    return (layer if on else layer.base_layer)(IDS)[0].double().numpy()
