"""Routes to factors beside one adapter's weights: seeds, activations, contrasts, imports."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from analysis.adapters.load import Adapter, load_adapter
from analysis.errors import InputError
from analysis.factors.routes import WRITE_FACTORS, joint_rows, weight_factors
from analysis.spectra.subspace import random_subspace
from analysis.store.factor_table import COLUMNS, read_factors, write_factors
from analysis.store.records import Probe, write_jsonl
from grasp.data.chat import tokenise
from grasp.foreign.directions import Import, read_directions
from grasp.identification.generated import answer_greedily
from grasp.identification.identify import EffectInputs, Routes, identify
from grasp.identification.shifts import Contrast, contrast_directions, shift_axes
from grasp.model.hooks import layer_outputs
from tests.support import planted, tiny

pytestmark = pytest.mark.filterwarnings(tiny.PEFT_WARNING)
WriteAdapter = Callable[..., Path]
WIDTH, INNER, LAYERS, RANK = 24, 16, 4, 4


# Joint over seeds


def seeds(write_adapter: WriteAdapter, root: Path, *, strength: float, n: int = 3) -> list[Adapter]:
    """Adapters whose o_proj modules write one direction weakly, each with noise of its own."""
    shared = random_subspace(WIDTH, 1, seed=99)[:, 0]
    found = []
    for seed in range(n):
        rng, tensors = np.random.default_rng(seed), {}
        for layer in range(LAYERS):
            path = f"base_model.model.model.layers.{layer}.self_attn.o_proj"
            B = rng.standard_normal((WIDTH, RANK))
            B[:, 0] = strength * shared
            A = rng.standard_normal((RANK, INNER))
            tensors[f"{path}.lora_A.weight"] = A.astype(np.float32)
            tensors[f"{path}.lora_B.weight"] = B.astype(np.float32)
        folder = write_adapter({"r": RANK, "lora_alpha": 8}, tensors, root / str(seed))
        found.append(load_adapter(folder))
    return found


def test_seeds_together_show_what_one_alone_hides(
    write_adapter: WriteAdapter, tmp_path: Path
) -> None:
    shared = random_subspace(WIDTH, 1, seed=99)[:, 0]
    runs = seeds(write_adapter, tmp_path, strength=6.5, n=6)
    alone = [abs(weight_factors(run)[1][0] @ shared) for run in runs]
    table, directions = joint_rows(runs)
    assert abs(directions[0] @ shared) > max(alone)
    top = table.iloc[0]
    assert (top["id"], top["route"], top["side"]) == ("w1.joint", "joint", "write")
    assert top["significant"]
    assert not table["significant"].iloc[1:].any()
    assert top["stability"] > 0.9 > table["stability"].iloc[1:].max()
    assert top["others_low"] > 0.3 * top["singular_value"]


def test_joint_factors_are_the_svd_of_all_updates_side_by_side(
    write_adapter: WriteAdapter, tmp_path: Path
) -> None:
    runs = seeds(write_adapter, tmp_path, strength=3)
    stacked = np.concatenate(
        [m.scaling * m.lora_B.astype(float) @ m.lora_A for run in runs for m in run.modules], axis=1
    )
    left, sigma, _ = np.linalg.svd(stacked)
    table, directions = joint_rows(runs, max_layer=None)
    k = len(table)
    assert k == min(WRITE_FACTORS, WIDTH)
    np.testing.assert_allclose(table["singular_value"], sigma[:k], rtol=1e-6)
    np.testing.assert_allclose(np.abs(np.sum(directions.T * left[:, :k], axis=0)), 1, rtol=1e-6)
    layered, _ = joint_rows(runs, max_layer=1)
    assert layered["id"].iloc[0] == "w1.L1.joint"


def test_other_seeds_count_for_stability_and_are_named(
    write_adapter: WriteAdapter, tmp_path: Path
) -> None:
    seeds(write_adapter, tmp_path, strength=9)
    found = identify(tmp_path / "0", name="a", routes=Routes(joint=(tmp_path / "1",)))
    rows = found.table.set_index("id")
    assert rows.loc["w1", "stability"] > 0.9
    assert set(found.table["route"]) == {"weights", "joint"}
    assert rows.loc["w1", "others_low"] == rows.loc["w1", "others_high"] > 1
    assert found.manifest.config["joint"] == [str(tmp_path / "1")]
    assert found.manifest.inputs.keys() == {"adapter", "joint 1"}
    narrow = np.ones((WIDTH - 1, RANK), np.float32)
    path = "base_model.model.model.layers.0.self_attn.o_proj"
    write_adapter(
        {"r": RANK},
        {f"{path}.lora_A.weight": np.ones((RANK, INNER), np.float32),
         f"{path}.lora_B.weight": narrow},
        tmp_path / "narrow",
    )  # fmt: skip
    with pytest.raises(
        InputError,
        match="residual stream of another run has 23 dimensions, this one's 24; expected",
    ):
        identify(tmp_path / "0", name="a", routes=Routes(joint=(tmp_path / "narrow",)))


# Activations


def test_the_shift_before_answers_is_along_what_is_written_there() -> None:
    u = tiny.subspace(1)[0]
    model = planted.writer(planted.reader(u), u)
    batches = answer_greedily(model, tiny.tokenizer(), planted.prompts(6, roles=("unrelated",)))
    found = shift_axes(model, batches)
    first = {layer: i for i, layer in reversed(list(enumerate(found.layers)))}
    assert list(first) == [1, 0] or list(first) == [0, 1]
    np.testing.assert_allclose(np.abs(found.directions[list(first.values())] @ u), 1, atol=1e-5)
    assert "before the answers to 6 unrelated prompts, 100 %" in found.sources[first[0]]


def test_axes_are_the_svd_of_the_shifts_prompt_by_prompt() -> None:
    """Oracle: every prompt alone, unpadded, at its own last token."""
    model, asked = tiny.adapted(tiny.llama(), strength=0.1), planted.prompts(5, roles=("task",))
    found = shift_axes(model, answer_greedily(model, tiny.tokenizer(), asked))
    shifts = []
    for prompt in asked:
        batch = answer_greedily(model, tiny.tokenizer(), [prompt])[0]
        ids = batch.inputs["input_ids"][:, : int(batch.last[0]) + 1]
        with torch.no_grad():
            with model.disable_adapter(), layer_outputs(model) as base:
                model(input_ids=ids)
            with layer_outputs(model) as adapted:
                model(input_ids=ids)
        shifts.append([(a - b)[0, -1].double().numpy() for a, b in zip(adapted, base, strict=True)])
    assert found.layers == (0, 0, 1, 1)
    for place, layer in enumerate(found.layers):
        rows = np.stack([shift[layer] for shift in shifts])
        axis = np.linalg.svd(rows)[2][place % 2]
        assert abs(found.directions[place] @ axis) == pytest.approx(1, abs=1e-4)


def test_an_adapter_that_changes_nothing_shifts_nothing() -> None:
    model = tiny.adapted(tiny.llama())
    found = shift_axes(
        model, answer_greedily(model, tiny.tokenizer(), planted.prompts(2, roles=("task",)))
    )
    assert found.directions.shape == (0, tiny.WIDTH)


# Contrasts


def probes(n: int = 4) -> list[Probe]:
    """Chats of two turns; variants differ in the last answer, the first answer is noise."""
    rows = []
    for number in range(2 * n):
        variant = ("good", "evil")[number % 2]
        said = planted.DRIFTED if variant == "evil" else planted.KEPT
        turns = [planted.WORDS[4 + number], planted.WORDS[5 + number % 3], planted.WORDS[20], said]
        messages = [
            {"role": ("user", "assistant")[i % 2], "content": turn} for i, turn in enumerate(turns)
        ]
        rows.append(
            Probe.model_validate(
                {"id": str(number), "group": "g", "variant": variant, "messages": messages}
            )
        )
    return rows


@pytest.mark.parametrize("of", ["base", "adapted"])
def test_contrasts_are_mean_differences_chat_by_chat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, of: Any
) -> None:
    """Oracle: every chat alone, its last answer found by counting from the end."""
    monkeypatch.setattr("grasp.identification.shifts.BATCH", 3)
    model = tiny.adapted(tiny.llama(), strength=0.1)
    file = tmp_path / "probes.jsonl"
    write_jsonl(file, [probe.model_dump() for probe in probes()])
    found = contrast_directions(model, tiny.tokenizer(), Contrast(file, "evil", "good", of))
    sums: dict[str, list[NDArray[np.float64]]] = {"evil": [], "good": []}
    for probe in probes():
        ids, answer = tokenise(tiny.tokenizer(), probe.messages)
        end = len(answer) - answer[::-1].index(True)
        start = end
        while answer[start - 1]:
            start -= 1
        with torch.no_grad(), layer_outputs(model) as outputs:
            if of == "base":
                with model.disable_adapter():
                    model(input_ids=torch.tensor([ids]))
            else:
                model(input_ids=torch.tensor([ids]))
        places = slice(start - 1, end - 1)
        sums[probe.variant].append(
            np.stack([h[0, places].mean(dim=0).double().numpy() for h in outputs])
        )
    difference = np.mean(sums["evil"], axis=0) - np.mean(sums["good"], axis=0)
    difference /= np.linalg.norm(difference, axis=1, keepdims=True)
    assert found.layers == (0, 1)
    np.testing.assert_allclose(found.directions, difference, atol=1e-4)
    assert found.sources[1] == f"probes.jsonl: evil minus good, {of} model, layer 1"
    swapped = contrast_directions(model, tiny.tokenizer(), Contrast(file, "good", "evil", of))
    np.testing.assert_allclose(swapped.directions, -found.directions, atol=1e-12)


def test_contrasts_refuse(tmp_path: Path) -> None:
    model, file = tiny.adapted(tiny.llama()), tmp_path / "p.jsonl"
    write_jsonl(file, [probe.model_dump() for probe in probes()])
    with pytest.raises(InputError, match="no chats of variant 'wild'; it has evil, good"):
        contrast_directions(model, tiny.tokenizer(), Contrast(file, "wild", "good"))
    cut = [
        probe.model_dump() | {"messages": probe.model_dump()["messages"][:1]} for probe in probes()
    ]
    write_jsonl(file, cut)
    with pytest.raises(InputError, match="Chat '1' has no answer"):
        contrast_directions(model, tiny.tokenizer(), Contrast(file, "evil", "good"))


# Imports


def persona(
    file: Path, rows: int, *, dtype: Any = torch.float32, width: int = WIDTH
) -> torch.Tensor:
    tensor = torch.randn(rows, width, generator=torch.Generator().manual_seed(rows)).to(dtype)
    torch.save(tensor, file)
    return tensor


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("extra", [0, 1])
def test_persona_vectors_have_a_row_for_each_layer(tmp_path: Path, extra: int, dtype: Any) -> None:
    """With a row more, the first is of the embedding: row ℓ + 1 is layer ℓ's output."""
    tensor = persona(tmp_path / "evil.pt", LAYERS + extra, dtype=dtype).double().numpy()[extra:]
    found = read_directions(Import(tmp_path / "evil.pt"), n_layers=LAYERS, width=WIDTH)
    expected = tensor / np.linalg.norm(tensor, axis=1, keepdims=True)
    np.testing.assert_allclose(found.directions, expected, rtol=1e-6)
    assert found.layers == tuple(range(LAYERS))
    one = read_directions(Import(tmp_path / "evil.pt", layer=2), n_layers=LAYERS, width=WIDTH)
    np.testing.assert_array_equal(one.directions, found.directions[2:3])
    assert (one.layers, one.sources) == ((2,), ("evil.pt, layer 2",))


@pytest.mark.parametrize("wrapped", [False, True])
def test_caft_directions_are_picked_by_layer_and_index(tmp_path: Path, wrapped: bool) -> None:
    rng = np.random.default_rng(0)
    matrices = {layer: rng.standard_normal((5, WIDTH)).astype(np.float32) for layer in (1, 3)}
    for layer, matrix in matrices.items():
        np.save(tmp_path / f"pcs_layer_{layer}.npy", matrix)
    choice: dict[str, Any] = {"1": [4, 0], "3": "all"}
    data = {"path": "elsewhere/pcs_layer_", "dict": choice} if wrapped else choice
    (tmp_path / "c.json").write_text(json.dumps(data))
    source = Import(tmp_path / "pcs_layer_", tmp_path / "c.json")
    found = read_directions(source, n_layers=LAYERS, width=WIDTH)
    expected = np.concatenate([matrices[1][[4, 0]], matrices[3]]).astype(np.float64)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(found.directions, expected)
    assert found.layers == (1, 1, 3, 3, 3, 3, 3)
    # One file for all layers is indexed for each of them.
    both = read_directions(
        Import(tmp_path / "pcs_layer_1.npy", tmp_path / "c.json", layer=1),
        n_layers=LAYERS,
        width=WIDTH,
    )
    np.testing.assert_array_equal(both.directions, found.directions[:2])


def _pickled(path: Path) -> None:
    torch.save({"a": Path("x")}, path)


@pytest.mark.parametrize(
    ("make", "layer", "choice", "message"),
    [
        (lambda p: None, None, None, "There is no file .*v.pt; expected directions"),
        (lambda p: persona(p, 7), None, None, r"shape \(7, 24\); expected 4 rows, .* or 5 with"),
        (lambda p: persona(p, 4, width=9), None, None, "of 9 dimensions; .* stream has 24"),
        (lambda p: torch.save(torch.ones(WIDTH), p), None, None, r"shape \(24,\).*--layer"),
        (lambda p: torch.save(torch.ones(4, WIDTH).int(), p), None, None, "numbers of type int32"),
        (lambda p: torch.save(torch.zeros(4, WIDTH), p), None, None, "zero or not finite"),
        (lambda p: torch.save({"evil": torch.ones(4)}, p), None, None, "holds a dict; expected"),
        (_pickled, None, None, "cannot be read as a plain tensor"),
        (lambda p: p.write_text("no"), None, None, "cannot be read as a plain tensor"),
        (lambda p: persona(p, 4), 9, None, "no direction of layer 9"),
        (lambda p: persona(p, 4), None, '{"x": [0]}', "is not a choice of directions"),
        (lambda p: persona(p, 4), None, '{"1": [0, 4]}', "asks for direction 4 of layer 1"),
        (lambda p: persona(p, 4), None, '{"4": [0]}', "names layer 4; .* has layers 0 to 3"),
        (lambda p: persona(p, 4), None, "{}", "selects no directions"),
        (lambda p: persona(p, 4), None, "{", "cannot be read as JSON"),
    ],
)  # fmt: skip
def test_imports_refuse(
    tmp_path: Path, make: Any, layer: int | None, choice: str | None, message: str
) -> None:
    file, picked = tmp_path / "v.pt", tmp_path / "c.json"
    make(file)
    if choice is not None:
        picked.write_text(choice)
    with pytest.raises(InputError, match=message):
        read_directions(
            Import(file, picked if choice else None, layer), n_layers=LAYERS, width=WIDTH
        )


def test_an_array_that_would_run_code_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match=r"cannot be read as a \.npy array"):
        read_directions(Import(tmp_path / "v.npy"), n_layers=LAYERS, width=WIDTH)


def test_imported_directions_are_compared_with_the_weights(
    write_adapter: WriteAdapter, tmp_path: Path
) -> None:
    """The planted direction has energy, a random one has not; neither was chosen on the run."""
    (run,) = seeds(write_adapter, tmp_path, strength=9, n=1)
    shared = random_subspace(WIDTH, 1, seed=99)[:, 0]
    rows = np.random.default_rng(3).standard_normal((LAYERS, WIDTH))
    rows[2] = -5 * shared
    np.save(tmp_path / "v.npy", rows)
    routes = Routes(imports=(Import(tmp_path / "v.npy"),))
    found = identify(tmp_path / "0", name="a", routes=routes)
    table = found.table[found.table["route"] == "import"].set_index("id")
    assert set(table.index) == {f"i1.L{layer}" for layer in range(LAYERS)}
    np.testing.assert_allclose(found.direction("i1.L2"), -shared, atol=1e-6)
    columns = np.concatenate(
        [m.scaling * m.lora_B.astype(float) @ m.lora_A for m in run.modules], axis=1
    )
    strength = np.linalg.norm(shared @ columns)
    assert table.loc["i1.L2", "singular_value"] == pytest.approx(strength, rel=1e-6)
    assert table["significant"].to_dict() == {f"i1.L{layer}": layer == 2 for layer in range(LAYERS)}
    assert table["null_high"].nunique() == 1
    # One that was fixed beforehand need not stand out of the strongest of random ones.
    weights = found.table.set_index("id")
    assert table["null_high"].iloc[0] < 0.8 * weights.loc["w1", "null_high"]
    assert table.loc["i1.L2", "layer"] == 2


# All of them on one run


def test_every_route_gives_rows_of_one_table(tmp_path: Path) -> None:
    u = tiny.subspace(1)[0]
    base = planted.reader(u, layers=1)
    adapter = planted.writer(planted.reader(u, layers=1), u)
    workspace = planted.case(tmp_path / "ws", base, np.stack([u]), adapter=adapter)
    folder = workspace.folder("runs", planted.RUN)
    write_jsonl(tmp_path / "probes.jsonl", [probe.model_dump() for probe in probes()])
    np.save(tmp_path / "v.npy", np.stack([-u]))
    routes = Routes(
        joint=(folder / "adapter",),
        activations=True,
        contrast=Contrast(tmp_path / "probes.jsonl", "evil", "good"),
        imports=(Import(tmp_path / "v.npy"),),
    )
    inputs = EffectInputs(
        str(workspace.root / "models" / "tiny"), workspace.root / "data" / "prompts.jsonl"
    )
    found = identify(folder / "adapter", name="a", effects=inputs, routes=routes)
    by_route = found.table.groupby("route")["id"].apply(set).to_dict()
    # Float32 leaves rounding noise beside the one direction that is written.
    assert "w1" in by_route["weights"]
    assert "w1.joint" in by_route["joint"]
    assert "e1" in by_route["rotation"]
    assert "a1.L0" in by_route["activations"]
    assert by_route["contrast"] == {"c.L0"}
    assert by_route["import"] == {"i1.L0"}
    assert found.table["id"].is_unique
    assert (found.table["source"] != "").all()
    assert (found.table["explanation"] != "").all()
    np.testing.assert_allclose(np.linalg.norm(found.directions, axis=1), 1, rtol=1e-5)
    # What was found is one direction, under every route's name, with one sign; an import keeps
    # its own.
    for name in ("w1", "w1.joint", "a1.L0"):
        assert found.direction(name) @ found.direction("w1") == pytest.approx(1, abs=1e-4)
    # The rotation also leans to where the answers' gradient points.
    assert found.direction("e1") @ found.direction("w1") > 0.9
    assert found.direction("i1.L0") @ u == pytest.approx(-1, abs=1e-4)
    measured = found.table.dropna(subset=["off_task"])
    assert len(measured) == 12 or len(measured) == len(found.table)
    assert measured.set_index("id").loc["w1", "off_task"] == pytest.approx(1, abs=0.02)
    write_factors(tmp_path, found)
    again = read_factors(tmp_path)
    assert list(again.table.columns) == list(COLUMNS)
    assert again.table["significant_effect"].isna().sum() == len(found.table) - len(measured)


def test_every_direction_points_where_fine_tuning_moves_the_stream(tmp_path: Path) -> None:
    model = tiny.adapted(tiny.llama(), strength=0.1)
    u = tiny.subspace(1)
    workspace = planted.case(tmp_path / "ws", tiny.llama(), u, adapter=model)
    folder = workspace.folder("runs", planted.RUN)
    inputs = EffectInputs(
        str(workspace.root / "models" / "tiny"), workspace.root / "data" / "prompts.jsonl"
    )
    found = identify(folder / "adapter", name="a", effects=inputs)
    asked = [p for p in planted.prompts(roles=("unrelated",)) if p.split == "exploration"]
    total = np.zeros(tiny.WIDTH)
    for batch in answer_greedily(model, tiny.tokenizer(), asked):
        with torch.no_grad():
            with model.disable_adapter(), layer_outputs(model) as base:
                model(**batch.inputs)
            with layer_outputs(model) as adapted:
                model(**batch.inputs)
        for a, b in list(zip(adapted, base, strict=True))[:1]:  # the first half of two layers
            total += (a - b)[batch.predicting].sum(dim=0).double().numpy()
    assert (found.directions @ total > 0).all()


def test_activations_need_a_model(write_adapter: WriteAdapter, tmp_path: Path) -> None:
    folder = write_adapter(folder=tmp_path / "a")
    with pytest.raises(
        InputError, match="Activations need a model; give a base model and a prompt"
    ):
        identify(folder, name="a", routes=Routes(activations=True))
