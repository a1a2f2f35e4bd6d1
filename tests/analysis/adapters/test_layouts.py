"""Ways in which adapters lie in files: shards, names, several in a folder, checkpoints, pickles."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.numpy import load_file, save_file

from analysis.adapters.architectures import Family, read_family
from analysis.adapters.checkpoints import list_checkpoints, saved_adapters_by_step
from analysis.adapters.copy import copy_adapter
from analysis.adapters.load import Adapter, check_values, load_adapter
from analysis.errors import AdapterError, InputError
from analysis.factors.residual import residual_factors
from analysis.spectra.module_svd import stored_svd
from analysis.spectra.report import adapter_report, report_lines, spectrum_lines
from analysis.spectra.spectrum import module_spectra, update_svd
from grasp.foreign.pickled import readable_adapter
from tests.support.peft_oracle import adapted, base_model, deltas, saved

WEIGHTS = "adapter_model.safetensors"
WriteAdapter = Callable[..., Path]


def shard(folder: Path, *, parts: int = 3) -> None:
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    weight_map = {}
    for part in range(parts):
        name = f"adapter_model-{part + 1:05d}-of-{parts:05d}.safetensors"
        keys = sorted(tensors)[part::parts]
        save_file({key: tensors[key] for key in keys}, folder / name)
        weight_map |= dict.fromkeys(keys, name)
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index))


def renamed(folder: Path, *names: str) -> None:
    """The halves as a model's own state dict names them, with the adapter's name."""
    tensors = load_file(folder / WEIGHTS)
    found = {
        key.replace(".weight", f".{name}.weight"): value
        for name in names
        for key, value in tensors.items()
    }
    save_file(found, folder / WEIGHTS)


def same(one: Adapter, other: Adapter) -> None:
    assert [m.name for m in one.modules] == [m.name for m in other.modules]
    for ours, theirs in zip(one.modules, other.modules, strict=True):
        np.testing.assert_array_equal(ours.lora_A, theirs.lora_A)
        np.testing.assert_array_equal(ours.lora_B, theirs.lora_B)
        assert (ours.scaling, ours.side, ours.layer) == (theirs.scaling, theirs.side, theirs.layer)


def test_shards_are_one_adapter_and_are_put_together_by_a_copy(tmp_path: Path) -> None:
    whole, split = saved(tmp_path / "a", "llama"), saved(tmp_path / "b", "llama")
    shard(split.folder)
    same(load_adapter(split.folder), load_adapter(whole.folder))
    (split.folder / "README.md").write_text("hello")
    (split.folder / "optimizer.pt").write_bytes(b"x")
    copied = copy_adapter(load_adapter(split.folder), tmp_path / "copy")
    assert sorted(file.name for file in copied.parent.iterdir()) == [
        "README.md", "adapter_config.json", WEIGHTS,
    ]  # fmt: skip
    again = PeftModel.from_pretrained(base_model("llama"), copied.parent)
    for name, delta in deltas(again).items():
        np.testing.assert_allclose(delta, whole.deltas[name], atol=1e-6)


def test_a_copy_keeps_bfloat16(tmp_path: Path) -> None:
    one = saved(tmp_path / "a", "llama", dtype="bfloat16")
    shard(one.folder)
    copied = load_file(copy_adapter(load_adapter(one.folder), tmp_path / "copy"))
    assert {value.dtype for value in copied.values()} == {np.dtype(ml_dtypes.bfloat16)}
    same(load_adapter(tmp_path / "copy"), load_adapter(one.folder))


def test_a_name_inside_tensor_names_is_read_and_left_out_of_a_copy(tmp_path: Path) -> None:
    plain, named = saved(tmp_path / "a", "llama"), saved(tmp_path / "b", "llama")
    renamed(named.folder, "persona")
    loaded = load_adapter(named.folder)
    same(loaded, load_adapter(plain.folder))
    assert loaded.key_name == "persona"
    copied = load_file(copy_adapter(loaded, tmp_path / "copy"))
    assert copied.keys() == load_file(plain.folder / WEIGHTS).keys()


def test_of_several_names_in_a_file_one_is_chosen(tmp_path: Path) -> None:
    one = saved(tmp_path / "a", "llama", target_modules=["o_proj"])
    renamed(one.folder, "task", "persona")
    with pytest.raises(AdapterError, match="holds the adapters persona, task in one file; give"):
        load_adapter(one.folder)
    with pytest.raises(AdapterError, match="holds no adapter 'other', but persona, task; give one"):
        load_adapter(one.folder, name="other")
    assert len(load_adapter(one.folder, name="task").modules) == 2


def test_several_adapters_of_a_model_lie_in_subfolders(tmp_path: Path) -> None:
    model = adapted("llama", target_modules=["o_proj"])
    config = model.peft_config["default"]
    model.add_adapter("persona", config)
    model.add_adapter("task", config)
    model.save_pretrained(tmp_path / "all")
    first = load_adapter(tmp_path / "all")
    assert first.others == ("persona", "task")
    assert any("persona, task" in line and "also present" in line for line in report_lines(first))
    same(load_adapter(tmp_path / "all", name="task"), load_adapter(tmp_path / "all" / "task"))
    with pytest.raises(AdapterError, match=r"holds no adapter 'none', but .without a name.; give"):
        load_adapter(tmp_path / "all", name="none")
    model.save_pretrained(tmp_path / "two", selected_adapters=["persona", "task"])
    with pytest.raises(
        AdapterError, match=r"its subfolders are \(persona, task\); give one of them"
    ):
        load_adapter(tmp_path / "two")
    assert load_adapter(tmp_path / "two", name="task").path == tmp_path / "two" / "task"


def test_what_lies_beside_lora_is_reported_and_part_of_no_update(tmp_path: Path) -> None:
    model = adapted(
        "qwen2",
        target_modules=["q_proj", "embed_tokens"],
        modules_to_save=["lm_head"],
        bias="lora_only",
    )
    model.save_pretrained(tmp_path, save_embedding_layers=True)
    report = adapter_report(load_adapter(tmp_path))
    prefix = "base_model.model."
    kinds = {kind: found["tensors"] for kind, found in report["beside"].items()}
    assert kinds == {
        "modules_to_save": [f"{prefix}lm_head.weight"],
        "biases": [f"{prefix}model.layers.{i}.self_attn.q_proj.base_layer.bias" for i in (0, 1)],
        "base_weights": [f"{prefix}model.embed_tokens.base_layer.weight"],
    }
    assert report["beside"]["modules_to_save"]["parameters"] == 56 * 32
    assert report["unused"] == []
    assert report["modules"] == 3
    assert report["sides"] == {"read": 2, "write": 1}


def test_token_rows_and_lora_biases_are_reported(tmp_path: Path) -> None:
    rows = saved(tmp_path / "a", "llama", target_modules=["q_proj"], trainable_token_indices=[3])
    bias = saved(tmp_path / "b", "qwen2", target_modules=["q_proj"], lora_bias=True)
    assert list(load_adapter(rows.folder).beside) == ["token_rows"]
    assert list(load_adapter(bias.folder).beside) == ["lora_biases"]


def test_dora_is_refused_unless_its_low_rank_part_is_asked_for(tmp_path: Path) -> None:
    one = saved(tmp_path, "llama", target_modules=["o_proj"], use_dora=True)
    with pytest.raises(AdapterError, match=r"uses DoRA, whose update depends on .*--low-rank-part"):
        load_adapter(one.folder)
    adapter = load_adapter(one.folder, low_rank_part=True)
    report = adapter_report(adapter)
    assert report["low_rank_part"] is True
    assert list(report["beside"]) == ["dora_magnitudes"]
    assert any("only its low-rank part" in line for line in report_lines(adapter))
    for module in adapter.modules:  # PEFT's get_delta_weight of a DoRA layer is scaling · B A
        found = module.scaling * module.lora_B @ module.lora_A
        np.testing.assert_allclose(found, one.deltas[module.name], rtol=1e-4, atol=1e-5)
    plain = saved(tmp_path / "plain", "llama", target_modules=["o_proj"])
    assert not load_adapter(plain.folder, low_rank_part=True).low_rank_part


def test_checkpoints_come_in_the_order_of_their_steps(tmp_path: Path) -> None:
    model = adapted("llama", target_modules=["o_proj"])
    for step in (900, 1000, 50):
        model.save_pretrained(tmp_path / f"checkpoint-{step}")
    (tmp_path / "checkpoint-70").mkdir()
    (tmp_path / "checkpoint-last").mkdir()
    assert [one.step for one in list_checkpoints(tmp_path)] == [50, 900, 1000]
    with pytest.raises(AdapterError, match=r"\(checkpoint-50, checkpoint-900, checkpoint-1000\)"):
        load_adapter(tmp_path)
    model.save_pretrained(tmp_path)
    assert [one.step for one in list_checkpoints(tmp_path)] == [50, 900, 1000, None]
    assert list_checkpoints(tmp_path)[-1].path == tmp_path
    with pytest.raises(AdapterError, match="has no checkpoints; expected folders checkpoint-100"):
        list_checkpoints(tmp_path / "checkpoint-50")


def test_a_checkpoint_that_is_still_being_written_is_not_counted_as_saved(
    tmp_path: Path, write_adapter: WriteAdapter
) -> None:
    for name in ("checkpoint-80", "checkpoint-40", "checkpoint-x", "other"):
        write_adapter(folder=tmp_path / "checkpoints" / name)
    (tmp_path / "checkpoints" / "checkpoint-9").mkdir()
    (write_adapter(folder=tmp_path / "checkpoint-90") / WEIGHTS).unlink()
    assert [path.name for path in saved_adapters_by_step(tmp_path).values()] == [
        "checkpoint-40",
        "checkpoint-80",
    ]
    assert [one.step for one in list_checkpoints(tmp_path)] == [40, 80, 90]


def test_a_run_of_the_workbench_has_its_checkpoints_beside_its_adapter(tmp_path: Path) -> None:
    model = adapted("llama", target_modules=["o_proj"])
    model.save_pretrained(tmp_path / "checkpoints" / "checkpoint-2")
    model.save_pretrained(tmp_path / "adapter")
    for folder in (tmp_path, tmp_path / "adapter"):
        assert [one.step for one in list_checkpoints(folder)] == [2, None]


# Experts


def test_experts_of_an_old_peft_lie_by_the_width_of_the_stream(tmp_path: Path) -> None:
    """Before 0.19 PEFT laid the halves of (experts, out, in) the other way round."""
    targets = {"target_parameters": ["experts.down_proj"]}
    new = saved(tmp_path / "new", "qwen2-moe", target_modules=["q_proj"], **targets)
    old = saved(tmp_path / "old", "qwen2-moe", target_modules=["q_proj"], **targets)
    tensors = load_file(old.folder / WEIGHTS)
    for layer in (0, 1):
        module = f"base_model.model.model.layers.{layer}.mlp.experts.lora_"
        A, B = (tensors[f"{module}{half}.weight"] for half in "AB")
        # One expert's rows of A and columns of B are contiguous and interleaved.
        tensors[f"{module}A.weight"] = np.ascontiguousarray(
            np.vstack([B[:, e::3].T for e in range(3)])
        )
        turned = np.stack([A[3 * e : 3 * e + 3].T for e in range(3)], axis=2)
        tensors[f"{module}B.weight"] = turned.reshape(len(turned), -1)
    save_file(tensors, old.folder / WEIGHTS)
    edit(old.folder, peft_version="0.18.1")
    same(load_adapter(old.folder), load_adapter(new.folder))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"r": 5, "rank_pattern": {"q_proj": 3}}, "expected a multiple of the rank 5"),
        (
            {"target_parameters": ["experts.down_proj", "experts.gate_up_proj"]},
            "LoRA on 1 parameters of .*experts, but its config does not say which is which",
        ),
        ({"target_parameters": ["experts.strange"]}, "experts.strange, whose layout is unknown"),
        (
            {"target_modules": ["q_proj"], "target_parameters": ["mlp.other"]},
            "weights for .*experts, which is in neither target_modules nor target_parameters",
        ),
    ],
)
def test_experts_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    one = saved(
        tmp_path,
        "mixtral",
        target_modules=["q_proj"],
        target_parameters=["experts.down_proj"],
    )
    edit(one.folder, **changes)
    with pytest.raises(AdapterError, match=message):
        load_adapter(one.folder)


@pytest.mark.parametrize("version", ["0.18.1", None, "x"])
def test_experts_whose_layout_nothing_shows_are_refused(tmp_path: Path, version) -> None:
    one = saved(tmp_path, "qwen2-moe", target_modules=[], target_parameters=["experts.down_proj"])
    load_adapter(one.folder)
    edit(one.folder, peft_version=version)
    with pytest.raises(AdapterError, match=r"does not show whether .*down_proj is transposed"):
        load_adapter(one.folder)


def test_experts_that_fit_no_stream_are_refused(tmp_path: Path) -> None:
    one = saved(
        tmp_path, "mixtral", target_modules=["q_proj"], target_parameters=["experts.down_proj"]
    )
    tensors = load_file(one.folder / WEIGHTS)
    for key in [key for key in tensors if "experts.lora_B" in key]:
        tensors[key] = np.vstack([tensors[key]] * 2)
    save_file(tensors, one.folder / WEIGHTS)
    with pytest.raises(AdapterError, match=r"updates of 64 × 48 for .* stream has 32 dimensions"):
        load_adapter(one.folder)


# Sides by a file


def test_a_file_of_sides_adds_a_family(tmp_path: Path, write_adapter) -> None:
    ones = {"A": np.ones((2, 8), np.float32), "B": np.ones((8, 2), np.float32)}
    tensors = {
        f"base_model.model.net.blocks.{layer}.{name}.lora_{half}.weight": value
        for layer in (0, 1)
        for name in ("mixer.into", "mixer.out", "mixer.twist")
        for half, value in ones.items()
    }
    folder = write_adapter({"target_modules": None}, tensors)
    assert {m.side for m in load_adapter(folder).modules} == {"other"}
    file = tmp_path / "sides.yaml"
    file.write_text("read: [mixer.into]\nwrite: [mixer.out]\ninner: [twist]\n")
    family = read_family(file)
    assert (family.read, family.write, family.inner) == (
        ("mixer.into",),
        ("mixer.out",),
        ("twist",),
    )
    modules = load_adapter(folder, family=family).modules
    assert [(m.layer, m.name.split(".")[-1], m.side) for m in modules] == [
        (layer, *one)
        for layer in (0, 1)
        for one in (("into", "read"), ("twist", "other"), ("out", "write"))
    ]


def test_a_file_of_sides_comes_before_the_table(write_adapter) -> None:
    family = Family("mine", inner=("q_proj",))
    sides = {
        m.name.split(".")[-1]: m.side for m in load_adapter(write_adapter(), family=family).modules
    }
    assert sides == {"q_proj": "other", "o_proj": "write"}


def two_decoders(write_adapter, *, widths: tuple[int, int], layers: tuple[int, int]) -> Path:
    """o_proj of two decoders, and an embedding of the second."""
    tensors = {}
    names = ("backbone_model", "depth_decoder.model")
    for name, width, count in zip(names, widths, layers, strict=True):
        shapes = {"A": (2, width), "B": (width, 2)}
        for layer in range(count):
            for half, shape in shapes.items():
                key = f"base_model.model.{name}.layers.{layer}.self_attn.o_proj.lora_{half}.weight"
                tensors[key] = np.ones(shape, np.float32)
    embedding = "base_model.model.depth_decoder.model.embed_tokens.lora_embedding_"
    tensors |= {
        f"{embedding}A": np.ones((2, 5), np.float32),
        f"{embedding}B": np.ones((widths[1], 2), np.float32),
    }
    return write_adapter({"target_modules": None}, tensors)


@pytest.mark.parametrize(
    ("widths", "layers", "main"),
    [
        ((8, 4), (2, 2), "backbone_model"),
        ((8, 8), (1, 2), "depth_decoder.model"),  # two streams of one width are two all the same
        ((4, 8), (2, 2), "depth_decoder.model"),
    ],
)
def test_factors_are_of_one_decoder_and_the_other_is_named(
    write_adapter, tmp_path: Path, widths, layers, main: str
) -> None:
    folder = two_decoders(write_adapter, widths=widths, layers=layers)
    counts = dict(zip(("backbone_model", "depth_decoder.model"), layers, strict=True))
    other = next(name for name in counts if name != main)
    for chosen, left in ((None, other), (other, main)):
        family = None
        if chosen is not None:
            (tmp_path / "sides.yaml").write_text(f"stack: {chosen}\n")
            family = read_family(tmp_path / "sides.yaml")
        adapter = load_adapter(folder, family=family)
        assert adapter.other_stacks == {left: counts[left]}
        taken = {m.name.split(".layers.")[0] for m in adapter.modules if m.side == "write"}
        kept = {"backbone_model", "depth_decoder.model"} - {left}
        assert {name.removesuffix(".embed_tokens") for name in taken} == kept
        residual_factors(adapter.modules, side="write")
        assert any(f"{left}: {counts[left]} modules" in line for line in report_lines(adapter))
        assert not any(
            left in name for name in adapter_report(adapter)["other"] if "layers" in name
        )
    (tmp_path / "sides.yaml").write_text("stack: decoder\n")
    with pytest.raises(
        AdapterError, match=r"no modules in a decoder 'decoder'; choose among backb"
    ):
        load_adapter(folder, family=read_family(tmp_path / "sides.yaml"))


def test_a_pattern_may_name_every_module(write_adapter) -> None:
    names = [
        f"model.layers.{i}.self_attn.{kind}" for i in range(80) for kind in ("q_proj", "o_proj")
    ]
    pattern = "|".join(f"(?:{name.replace('.', chr(92) + '.')})" for name in names)
    assert len(pattern) > 5000
    assert len(load_adapter(write_adapter({"target_modules": pattern})).modules) == 4
    with pytest.raises(
        AdapterError, match=r"a pattern of 240,\d+ characters in target_modules; expe"
    ):
        load_adapter(write_adapter({"target_modules": f"(?:{'x|' * 120_000}y)"}))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stack: [a]", r"has stack = \['a'\]; expected the path of a decoder"),
        ("read: [a]\nwrites: [b]", "is not a mapping of sides; expected lists of module path"),
        ("[a, b]", "is not a mapping; expected sides of modules"),
        ("", "is not a mapping; expected sides of modules"),
        ("read: q_proj", "has read = 'q_proj'; expected a list of module path endings"),
        ("read: [1]", r"has read = \[1\]; expected a list"),
        ("read: [a.b.c.d]", "of at most 3 segments"),
        ("read: [a]\nwrite: [a]", "lists a more than once"),
        ("read: [", "cannot be read .*; expected sides of modules in YAML"),
    ],
)
def test_files_of_sides_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "sides.yaml").write_text(text)
    with pytest.raises(InputError, match=message):
        read_family(tmp_path / "sides.yaml")


# Pickles


def pickled(folder: Path, content: object | None = None) -> Path:
    if content is None:
        tensors = load_file(folder / WEIGHTS)
        content = {key: torch.as_tensor(value) for key, value in tensors.items()}
    torch.save(content, folder / "adapter_model.bin")
    (folder / WEIGHTS).unlink()
    return folder


def test_a_pickle_is_read_only_where_that_is_allowed(tmp_path: Path, write_adapter) -> None:
    plain = load_adapter(write_adapter(folder=tmp_path / "a"))
    folder = pickled(write_adapter(folder=tmp_path / "b"))
    with readable_adapter(folder, allow_pickle=False) as same_folder:
        assert same_folder == folder
        with pytest.raises(AdapterError, match=r"has only adapter_model.bin, a pickle, which can"):
            load_adapter(same_folder)
    with readable_adapter(folder, allow_pickle=True) as copy:
        same(load_adapter(copy), plain)
    assert not copy.exists()
    assert sorted(file.name for file in folder.iterdir()) == [
        "adapter_config.json", "adapter_model.bin",
    ]  # fmt: skip


class _Runs:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("ran"),)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"x": _Runs()}, "cannot be read as plain tensors .UnpicklingError"),
        ([1, 2], "holds more than named tensors"),
        ({"x": 3}, "holds more than named tensors"),
        ({3: torch.ones(1)}, "holds more than named tensors"),
    ],
)
def test_pickles_refused(tmp_path: Path, write_adapter, monkeypatch, content, message) -> None:
    monkeypatch.chdir(tmp_path)
    folder = pickled(write_adapter(), content)
    with (
        pytest.raises(AdapterError, match=message),
        readable_adapter(folder, allow_pickle=True),
    ):
        pass
    assert not (tmp_path / "ran").exists()


def test_a_damaged_or_linked_pickle_is_refused(tmp_path: Path, write_adapter) -> None:
    folder = pickled(write_adapter())
    file = folder / "adapter_model.bin"
    file.rename(tmp_path / "elsewhere.bin")
    file.symlink_to(tmp_path / "elsewhere.bin")
    with (
        pytest.raises(AdapterError, match=r"links adapter_model.bin to a file outside the folder"),
        readable_adapter(folder, allow_pickle=True),
    ):
        pass
    file.unlink()
    file.write_bytes(b"not a pickle")
    with (
        pytest.raises(AdapterError, match="cannot be read as plain tensors"),
        readable_adapter(folder, allow_pickle=True),
    ):
        pass


# Streaming


def test_opening_reads_no_values_and_a_truncation_later_is_one_sentence(write_adapter) -> None:
    adapter = load_adapter(write_adapter())
    file = adapter.path / WEIGHTS
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(AdapterError, match=r"ended within .*: it was truncated or changed"):
        check_values(adapter)
    file.unlink()
    with pytest.raises(AdapterError, match="cannot be read"):
        check_values(adapter)


def test_a_large_adapter_is_streamed(tmp_path: Path) -> None:
    """Peak memory over the baseline stays within two layers and the results, of forty layers."""
    rng = np.random.default_rng(0)
    tensors = {}
    for layer in range(40):
        for name in ("q_proj", "o_proj"):
            prefix = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            for half, shape in (("A", (16, 8192)), ("B", (8192, 16))):
                values = rng.standard_normal(shape, dtype=np.float32)
                tensors[f"{prefix}.lora_{half}.weight"] = values.astype(ml_dtypes.bfloat16)
    save_file(tensors, tmp_path / WEIGHTS)
    layer_bytes = 4 * 16 * 8192 * 4  # as float32
    config = {
        "peft_type": "LORA",
        "r": 16,
        "lora_alpha": 16,
        "target_modules": ["q_proj", "o_proj"],
    }
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    code = (
        "from analysis.adapters.load import load_adapter\n"
        "from analysis.spectra.module_svd import module_svds\n"
        "from analysis.spectra.spectrum import module_spectra\n"
        "def peak():\n"
        "    with open('/proc/self/status') as lines:\n"
        "        return int(next(line for line in lines if 'VmHWM' in line).split()[1])\n"
        "import numpy as np; np.linalg.qr(np.ones((9000, 32)))\n"
        f"adapter = load_adapter({str(tmp_path)!r})\n"
        "before = peak()\n"
        "module_spectra(adapter)\n"
        "for one in module_svds(adapter.modules): pass\n"
        "print(1024 * (peak() - before))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 2 * layer_bytes
    assert 40 * layer_bytes > 10 * 2 * layer_bytes


def test_stored_svd_is_update_svd_for_any_condition() -> None:
    rng = np.random.default_rng(0)
    for decay in (1.0, 0.5, 0.1, 1e-2, 1e-4):
        A = (rng.standard_normal((6, 40)) * decay ** np.arange(6)[:, None]).astype(np.float32)
        B = rng.standard_normal((30, 6)).astype(np.float32)
        exact, fast = update_svd(A, B, scaling=0.5), stored_svd(A, B, scaling=0.5)
        np.testing.assert_allclose(fast[1], exact[1], rtol=1e-6)
        for side in (0, 2):
            assert fast[side].dtype == np.float32
            np.testing.assert_allclose(fast[side], exact[side], atol=2e-5)
            np.testing.assert_allclose(fast[side].T @ fast[side], np.eye(6), atol=2e-5)
    left, values, right = stored_svd(
        np.ones((2, 9), np.float32), np.zeros((7, 2), np.float32), scaling=1
    )
    assert (left.shape, right.shape, values.tolist()) == ((7, 2), (9, 2), [0, 0])


def test_many_modules_are_shown_by_kind(write_adapter, tensors) -> None:
    many = {
        key.replace(".layers.0.", f".layers.{layer}."): value
        for layer in range(12)
        for key, value in tensors.items()
        if ".layers.0." in key
    }
    adapter = load_adapter(write_adapter(tensors=many))
    spectra = module_spectra(adapter)
    lines = spectrum_lines(spectra, each=False)
    assert len(lines) == 3
    assert lines[1].split()[:3] == ["self_attn.q_proj", "read", "12"]
    assert len(spectrum_lines(spectra, each=True)) == 25
    assert "24 modules in layers 0–11" in report_lines(adapter)[2]


def edit(folder: Path, **changes: Any) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
