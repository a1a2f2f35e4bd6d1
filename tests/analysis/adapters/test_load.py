"""Loading LoRA folders: names, sides, files, and folders that must be refused."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from analysis.adapters.architectures import module_layer, module_side
from analysis.adapters.load import check_values, load_adapter
from analysis.errors import AdapterError, GraspError
from analysis.spectra.report import report_lines, spectrum_lines
from analysis.spectra.spectrum import module_spectra

Q_A = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
Q_B = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"


@pytest.mark.parametrize(
    ("name", "side", "layer"),
    [
        ("model.layers.12.self_attn.o_proj", "write", 12),
        ("model.language_model.layers.3.mlp.gate_proj", "read", 3),
        ("transformer.h.7.attn.c_attn", "read", 7),
        ("gpt_neox.layers.0.attention.dense", "write", 0),
        ("model.layers.5.block_sparse_moe.experts.10.w2", "write", 5),
        ("model.layers.5.mlp.experts.10.up_proj", "read", 5),
        ("model.layers.4.self_attn.q_b_proj", "other", 4),
        ("model.vision_tower.encoder.layers.2.self_attn.q_proj", "other", 2),
        ("model.layers.1.strange", "other", 1),
        ("lm_head", "read", None),
    ],
)
def test_sides_and_layers_by_name(name: str, side: str, layer: int | None) -> None:
    assert (module_side(name), module_layer(name)) == (side, layer)


def test_modules_come_by_layer_then_place_with_other_kept(write_adapter, tensors) -> None:
    for half, shape in {"A": (2, 5), "B": (7, 2)}.items():
        tensors[f"base_model.model.model.layers.0.odd.lora_{half}.weight"] = np.ones(
            shape, np.float32
        )
    for half, shape in {"A": (2, 8), "B": (7, 2)}.items():
        tensors[f"base_model.model.lm_head.lora_{half}.weight"] = np.ones(shape, np.float32)
    tensors["base_model.model.lm_head.bias"] = np.ones(7, np.float32)

    adapter = load_adapter(write_adapter({"target_modules": None}, tensors))

    assert [(m.layer, m.name.rsplit(".", 1)[-1], m.side) for m in adapter.modules] == [
        (0, "q_proj", "read"),
        (0, "o_proj", "write"),
        (0, "odd", "other"),
        (1, "q_proj", "read"),
        (1, "o_proj", "write"),
        (None, "lm_head", "read"),
    ]
    assert adapter.unused == ("base_model.model.lm_head.bias",)
    assert adapter.base_model == "some/base"
    assert adapter.n_parameters == sum(v.size for k, v in tensors.items() if "lora" in k)


def test_run_folder_is_resolved_to_its_adapter(write_adapter, tmp_path: Path) -> None:
    folder = write_adapter()

    assert load_adapter(tmp_path).path == folder
    assert load_adapter(str(tmp_path)).modules[0].scaling == 2.0


def test_links_of_a_hub_cache_are_followed(write_adapter, tmp_path: Path) -> None:
    folder = write_adapter()
    snapshot, blobs = tmp_path / "cache" / "snapshots" / "abc", tmp_path / "cache" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for file in folder.iterdir():
        file.rename(blobs / file.name)
        (snapshot / file.name).symlink_to(f"../../blobs/{file.name}")

    assert len(load_adapter(snapshot).modules) == 4


CONFIGS = {
    "another method": ({"peft_type": "LOHA"}, "peft_type 'LOHA'; expected \"LORA\""),
    "no method": ({"peft_type": None}, "peft_type None"),
    "DoRA": ({"use_dora": True}, "uses DoRA"),
    "aLoRA": ({"alora_invocation_tokens": [5]}, "uses aLoRA"),
    "a later variant": ({"use_qalora": True}, "sets use_qalora, which is not plain LoRA"),
    "PiSSA": ({"init_lora_weights": "pissa_niter_4"}, "initialised by 'pissa_niter_4'"),
    "rank zero": ({"r": 0}, "r = 0; expected a positive whole number"),
    "rank true": ({"r": True}, "r = True; expected a positive whole number"),
    "rank missing": ({"r": None}, "r = None; expected a positive whole number"),
    "rank not the file's": (
        {"r": 3},
        r"lora_A \(2, 6\) and lora_B \(8, 2\) for .*o_proj; expected the rank 3",
    ),
    "alpha text": ({"lora_alpha": "16"}, "lora_alpha = '16'; expected a finite number"),
    "alpha NaN": ({"lora_alpha": math.nan}, "lora_alpha = nan; expected a finite number"),
    "alpha huge": ({"lora_alpha": 10**400}, "lora_alpha = 1000.*; expected a finite number"),
    "rank pattern list": ({"rank_pattern": [1]}, "rank_pattern = .*expected an object"),
    "rank pattern text": ({"rank_pattern": {"q": "a"}}, "rank_pattern.*expected a positive"),
    "alpha pattern regex": ({"alpha_pattern": {"(": 1}}, r"pattern '\(' in alpha_pattern"),
    "targets number": (
        {"target_modules": 3},
        "target_modules = 3; expected a list of names or a pattern",
    ),
    "targets regex": ({"target_modules": "["}, r"pattern '\[' in target_modules"),
    "targets without end": (
        {"target_modules": r"(\w|\.|[a-z])*(?:Q|Z)"},
        "takes more than 2 s to match .*; write it without nested repetitions",
    ),
    "targets others": (
        {"target_modules": ["v_proj"]},
        "which is not a target module of its config",
    ),
    "base number": ({"base_model_name_or_path": 3}, "base_model_name_or_path = 3"),
    "targets among excluded": (
        {"exclude_modules": ["q_proj"]},
        "weights for .*q_proj, which is not a target module of its config",
    ),
    "targets saved whole": (
        {"modules_to_save": ["o_proj"]},
        "weights for .*o_proj, which is not a target module of its config",
    ),
    "targets of other layers": (
        {"layers_to_transform": [1]},
        r"weights for model.layers.0.*, which is not a target module of its config",
    ),
    "targets of layers of another name": (
        {"layers_to_transform": 0, "layers_pattern": "blocks"},
        "which is not a target module of its config",
    ),
    "layers text": ({"layers_to_transform": ["1"]}, r"layers_to_transform = \['1'\]; expected"),
    "layers pattern regex": ({"layers_pattern": "("}, r"pattern '\(' in layers_pattern"),
    "excluded number": (
        {"exclude_modules": 3},
        "exclude_modules = 3; expected a list of names or a pattern",
    ),
    "excluded regex": ({"exclude_modules": "["}, r"pattern '\[' in exclude_modules"),
    "saved modules number": (
        {"modules_to_save": 3},
        "modules_to_save = 3; expected a name or a list",
    ),
    "parameters number": (
        {"target_parameters": 3},
        "target_parameters = 3; expected a name or a list",
    ),
    "parameters of others": (
        {"target_modules": ["o_proj"], "target_parameters": ["experts.down_proj"]},
        "weights for .*q_proj, which is in neither target_modules nor target_parameters",
    ),
    "parameters of no known layout": (
        {"target_modules": ["o_proj"], "target_parameters": ["q_proj.strange"]},
        "LoRA on the parameter .*q_proj.strange, whose layout is unknown",
    ),
    "rsLoRA text": ({"use_rslora": "yes"}, "use_rslora 'yes'; expected true or false"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_config_refused(case: str, write_adapter) -> None:
    config, message = CONFIGS[case]
    with pytest.raises(AdapterError, match=message) as caught:
        load_adapter(write_adapter(config))
    assert "\n" not in str(caught.value)


TENSORS = {
    "half missing": ({Q_B: None}, "has no lora_B for model.layers.0.self_attn.q_proj"),
    "halves of two ranks": ({Q_B: np.ones((6, 3), np.float32)}, "expected the rank 2"),
    "NaN": ({Q_A: np.full((2, 8), np.nan, np.float32)}, "NaN or infinite values in .*q_proj"),
    "Inf": ({Q_B: np.full((6, 2), np.inf, np.float16)}, "NaN or infinite values in .*q_proj"),
    "above float32": ({Q_A: np.full((2, 8), 1e300)}, "NaN or infinite values in .*q_proj"),
    "whole numbers": ({Q_A: np.ones((2, 8), np.int8)}, "of dtype I8; expected float32"),
    "convolution": ({Q_A: np.ones((2, 8, 1, 1), np.float32)}, "expected a matrix"),
    "ungathered": ({Q_A: np.ones((2, 0), np.float32)}, "is empty; gather the weights"),
    "DoRA magnitude": (
        {"base_model.model.x.lora_magnitude_vector": np.ones(3, np.float32)},
        "holds DoRA magnitudes, so its update depends on the base weights",
    ),
    "embedding without a half": (
        {"base_model.model.x.lora_embedding_A": np.ones((2, 3), np.float32)},
        "has no lora_embedding_B for x",
    ),
    "embedding as a column": (
        {"base_model.model.x.lora_embedding_A": np.ones(3, np.float32)},
        "expected a matrix",
    ),
    "linear and embedding halves": (
        {
            "base_model.model.x.lora_A.weight": np.ones((2, 3), np.float32),
            "base_model.model.x.lora_embedding_B": np.ones((4, 2), np.float32),
        },
        "holds a lora_embedding half and a linear one for x",
    ),
    "two adapters": (
        {Q_A.replace("lora_A", "lora_A.persona"): np.ones((2, 8), np.float32)},
        r"holds the adapters \(without a name\), persona in one file; give the name",
    ),
    "unknown part": ({"base_model.model.x.lora_C": np.ones(3, np.float32)}, "unknown kind"),
    "no prefix": (
        {"layers.0.q_proj.lora_A.weight": np.ones((2, 8), np.float32)},
        "does not begin with base_model.model.",
    ),
}


@pytest.mark.parametrize("case", TENSORS)
def test_tensors_refused(case: str, write_adapter, tensors) -> None:
    changes, message = TENSORS[case]
    for key, value in changes.items():
        if value is None:
            del tensors[key]
        else:
            tensors[key] = value
    with pytest.raises(AdapterError, match=message):
        check_values(load_adapter(write_adapter(tensors=tensors)))


def test_no_lora_weights_refused(write_adapter) -> None:
    folder = write_adapter(tensors={"lm_head.weight": np.ones((2, 2), np.float32)})
    with pytest.raises(AdapterError, match="has no LoRA weights in its safetensors"):
        load_adapter(folder)


def spoil_truncated(folder: Path) -> None:
    file = folder / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-8])


def spoil_text(folder: Path) -> None:
    (folder / "adapter_model.safetensors").write_text("version https://git-lfs")


def spoil_empty(folder: Path) -> None:
    (folder / "adapter_model.safetensors").write_bytes(b"")


def spoil_header(folder: Path) -> None:
    file = folder / "adapter_model.safetensors"
    file.write_bytes((1 << 40).to_bytes(8, "little") + file.read_bytes()[8:])


def spoil_pickle(folder: Path) -> None:
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")


def spoil_no_weights(folder: Path) -> None:
    (folder / "adapter_model.safetensors").unlink()


def spoil_no_config(folder: Path) -> None:
    (folder / "adapter_config.json").unlink()


def spoil_json(folder: Path) -> None:
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", ')


def spoil_nested(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("[" * 200_000)


def spoil_bytes(folder: Path) -> None:
    (folder / "adapter_config.json").write_bytes(b'{"r": "\xff"}')


def spoil_list(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("[1, 2]")


def spoil_long(folder: Path) -> None:
    (folder / "adapter_config.json").write_text(" " * (5 << 20))


def spoil_link(folder: Path) -> None:
    file = folder / "adapter_model.safetensors"
    file.rename(folder.parent / "elsewhere.safetensors")
    file.symlink_to("../elsewhere.safetensors")


def spoil_folder(folder: Path) -> None:
    (folder / "adapter_model.safetensors").unlink()
    (folder / "adapter_model.safetensors").mkdir()


def spoil_both(folder: Path) -> None:
    (folder / "adapter_model.safetensors.index.json").write_text("{}")


def sharded(
    folder: Path, change: Callable[[dict[str, str]], Any] = lambda weight_map: None
) -> None:
    """Splits the file by layer, and lets `change` spoil the index or the files."""
    tensors = load_file(folder / "adapter_model.safetensors")
    (folder / "adapter_model.safetensors").unlink()
    weight_map: dict[str, str] = {}
    for layer in range(2):
        name = f"adapter_model-{layer + 1:05d}-of-00002.safetensors"
        shard = {key: value for key, value in tensors.items() if f".layers.{layer}." in key}
        save_file(shard, folder / name)
        weight_map |= dict.fromkeys(shard, name)
    change(weight_map)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "adapter_model.safetensors.index.json").write_text(json.dumps(index))


def spoil_index_outside(folder: Path) -> None:
    sharded(folder, lambda weight_map: weight_map.update({Q_A: "../elsewhere.safetensors"}))


def spoil_index_absolute(folder: Path) -> None:
    sharded(folder, lambda weight_map: weight_map.update({Q_A: "/etc/passwd.safetensors"}))


def spoil_index_number(folder: Path) -> None:
    sharded(folder, lambda weight_map: weight_map.update({Q_A: 3}))


def spoil_index_empty(folder: Path) -> None:
    sharded(folder, lambda weight_map: weight_map.clear())


def spoil_index_more(folder: Path) -> None:
    sharded(folder, lambda weight_map: weight_map.update({"more": weight_map[Q_A]}))


def spoil_index_less(folder: Path) -> None:
    sharded(folder, lambda weight_map: weight_map.pop(Q_A))


def spoil_shard_missing(folder: Path) -> None:
    sharded(folder)
    (folder / "adapter_model-00002-of-00002.safetensors").unlink()


def spoil_shard_truncated(folder: Path) -> None:
    sharded(folder)
    file = folder / "adapter_model-00002-of-00002.safetensors"
    file.write_bytes(file.read_bytes()[:-4])


def spoil_shard_twice(folder: Path) -> None:
    sharded(folder)
    second = folder / "adapter_model-00002-of-00002.safetensors"
    save_file(load_file(second) | {Q_A: np.ones((2, 8), np.float32)}, second)


def spoil_shard_link(folder: Path) -> None:
    sharded(folder)
    second = folder / "adapter_model-00002-of-00002.safetensors"
    second.rename(folder.parent / "elsewhere.safetensors")
    second.symlink_to("../elsewhere.safetensors")


def spoil_index_json(folder: Path) -> None:
    sharded(folder)
    (folder / "adapter_model.safetensors.index.json").write_text("{")


def spoil_away(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()


def spoil_named(folder: Path) -> None:
    (folder / "persona").mkdir()
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        (folder / file).rename(folder / "persona" / file)


FILES = {
    spoil_truncated: "is truncated or not a safetensors file",
    spoil_text: "header claims .* bytes|is truncated or not a safetensors file",
    spoil_empty: r"header claims 0 bytes \(expected 1 byte to 64 MiB\)",
    spoil_header: r"header claims 1099511627776 bytes \(expected 1 byte to 64 MiB\)",
    spoil_pickle: "has only adapter_model.bin, a pickle",
    spoil_no_weights: "has no file adapter_model.safetensors",
    spoil_no_config: "has no file adapter_config.json",
    spoil_json: "adapter_config.json is not valid JSON",
    spoil_nested: "adapter_config.json is not valid JSON",
    spoil_bytes: "adapter_config.json is not valid JSON",
    spoil_list: "not a JSON object",
    spoil_long: "more than 4 MiB",
    spoil_link: "to a file outside the folder",
    spoil_folder: "has no file adapter_model.safetensors",
    spoil_both: "holds both adapter_model.safetensors and .*index.json; remove",
    spoil_index_outside: r"puts .*q_proj.lora_A.weight into '../elsewhere.safetensors'; expected",
    spoil_index_absolute: "puts .*q_proj.lora_A.weight into '/etc/passwd.safetensors'; expected",
    spoil_index_number: "puts .*q_proj.lora_A.weight into 3; expected the name",
    spoil_index_empty: "index.json without a weight_map",
    spoil_index_more: "has no more in adapter_model-00001-of-00002.safetensors",
    spoil_index_less: "q_proj.lora_A.weight in adapter_model-00001.*index does not put it",
    spoil_index_json: "index.json is not valid JSON",
    spoil_shard_missing: "has no file adapter_model-00002-of-00002.safetensors",
    spoil_shard_truncated: "adapter_model-00002-of-00002.safetensors is truncated or not",
    spoil_shard_twice: "holds .*q_proj.lora_A.weight in .*00001-of.* and in .*00002-of",
    spoil_shard_link: "links adapter_model-00002-of-00002.safetensors to a file outside",
    spoil_away: "is not a folder",
    spoil_named: r"its subfolders are \(persona\)",
}


@pytest.mark.parametrize("spoil", FILES, ids=lambda spoil: spoil.__name__)
def test_files_refused(spoil, write_adapter) -> None:
    folder = write_adapter()
    spoil(folder)
    with pytest.raises(AdapterError, match=FILES[spoil]) as caught:
        load_adapter(folder)
    assert "\n" not in str(caught.value)


def loaded_or_refused(folder: Path) -> str:
    try:
        adapter = load_adapter(folder)
        check_values(adapter)
        return f"{len(adapter.modules)} modules"
    except GraspError as error:
        return str(error)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
keys = st.sampled_from(
    [
        *("r", "lora_alpha", "rank_pattern", "alpha_pattern", "target_modules", "use_rslora"),
        *("init_lora_weights", "peft_type", "revision", "bias", "modules_to_save", "use_dora"),
        *("layers_to_transform", "layers_pattern", "exclude_modules", "target_parameters"),
        *("peft_version", "lora_bias", "trainable_token_indices", "fan_in_fan_out"),
    ]
)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.dictionaries(keys, values, min_size=1, max_size=3))
def test_any_config_loads_or_is_refused_in_one_sentence(changes, write_adapter) -> None:
    outcome = loaded_or_refused(write_adapter(changes))
    assert outcome.endswith(".") or outcome == "4 modules"
    assert "\n" not in outcome


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_damage_to_the_header_loads_or_is_refused(data, write_adapter) -> None:
    folder = write_adapter()
    file = folder / "adapter_model.safetensors"
    content = bytearray(file.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, 400))] = data.draw(st.integers(0, 255))
    file.write_bytes(content)
    outcome = loaded_or_refused(folder)
    assert str(folder) in outcome or outcome.endswith("modules")


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_damage_to_the_config_loads_or_is_refused(data, write_adapter) -> None:
    folder = write_adapter()
    file = folder / "adapter_config.json"
    content = bytearray(file.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        where = data.draw(st.integers(0, len(content) - 1))
        content[where : where + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=2))
    file.write_bytes(content)
    outcome = loaded_or_refused(folder)
    assert "\n" not in outcome
    assert str(folder) in outcome or outcome.endswith("modules")


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    weight_map=st.dictionaries(
        st.sampled_from([Q_A, Q_B, "x"]) | st.text(max_size=4),
        st.sampled_from(
            ["adapter_model-00001-of-00002.safetensors", "..", "../a.safetensors", ".safetensors"]
        )
        | values,
        max_size=4,
    )
    | values,
    keep=st.booleans(),
)
def test_any_index_loads_or_is_refused(weight_map, keep, write_adapter) -> None:
    folder = write_adapter()
    for file in folder.glob("adapter_model-*"):
        file.unlink()
    sharded(folder)
    index = folder / "adapter_model.safetensors.index.json"
    found = json.loads(index.read_text())["weight_map"] if keep else {}
    merged = found | weight_map if isinstance(weight_map, dict) else weight_map
    index.write_text(json.dumps({"weight_map": merged}))
    outcome = loaded_or_refused(folder)
    index.unlink()
    assert "\n" not in outcome
    assert str(folder) in outcome or outcome == "4 modules"


expert_shapes = st.tuples(*[st.integers(1, 7)] * 4)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    down=expert_shapes,
    up=expert_shapes,
    levels=st.sampled_from(["", ".base_layer", ".base_layer.base_layer"]),
    wanted=st.lists(
        st.sampled_from(
            ["experts.down_proj", "experts.gate_up_proj", "down_proj", "experts.weight", "q", ""]
        ),
        max_size=3,
    ),
    version=st.sampled_from(["0.21.2", "0.18.0", None, "x"]),
)
def test_any_experts_load_or_are_refused(down, up, levels, wanted, version, write_adapter) -> None:
    tensors = {}
    for level, (rows, d_in, d_out, columns) in (("", down), (levels, up)):
        module = f"base_model.model.model.layers.0.mlp.experts{level}"
        tensors[f"{module}.lora_A.weight"] = np.ones((rows, d_in), np.float32)
        tensors[f"{module}.lora_B.weight"] = np.ones((d_out, columns), np.float32)
    config = {"target_modules": [], "target_parameters": wanted, "peft_version": version}
    outcome = loaded_or_refused(write_adapter(config, tensors))
    assert "\n" not in outcome
    assert outcome.endswith((".", "modules"))


def test_names_with_line_breaks_and_escapes_stay_on_one_line(write_adapter, tensors) -> None:
    def add(name: str) -> dict[str, np.ndarray]:
        halves = {"A": np.ones((2, 8), np.float32), "B": np.ones((3, 2), np.float32)}
        keys = {f"base_model.model.{name}.lora_{half}.weight": v for half, v in halves.items()}
        return tensors | keys

    config = {"target_modules": None, "base_model_name_or_path": "a\ud800\x1bb"}
    with pytest.raises(
        AdapterError, match=r"holds .*x\\ny.*, a LoRA tensor of an unknown"
    ) as caught:
        load_adapter(write_adapter(config, add("x\ny")))
    assert str(caught.value).isprintable()
    adapter = load_adapter(write_adapter(config, add("x\x1b[2Jy")))
    lines = report_lines(adapter) + spectrum_lines(module_spectra(adapter), each=True)
    assert all(line.isprintable() for line in lines)


def test_config_is_kept_as_read(write_adapter) -> None:
    folder = write_adapter({"task_type": "CAUSAL_LM"})
    assert load_adapter(folder).config == json.loads((folder / "adapter_config.json").read_text())


def test_halves_are_float32_of_what_was_saved(tmp_path: Path, write_adapter, tensors) -> None:
    import ml_dtypes

    for dtype in (np.float16, ml_dtypes.bfloat16, np.float64):
        saved = {key: value.astype(dtype) for key, value in tensors.items()}
        adapter = load_adapter(write_adapter(tensors=saved))
        q_proj = adapter.modules[0]
        assert q_proj.lora_A.dtype == np.float32
        np.testing.assert_array_equal(q_proj.lora_A, saved[Q_A].astype(np.float32))
