"""Synthetic adapters in the shapes of real models, in PEFT's file format."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np

from analysis.adapters.files import CONFIG, WEIGHTS

_APART = 97
"""Places by which each layer's numbers are shifted against those of the previous layer."""

_UPDATE = 1e-2
"""Standard deviation of lora_B; it does not affect the time."""


@dataclass(frozen=True)
class Shape:
    """A decoder-only model, with an adapter of rank `r` on the seven linear modules of a layer."""

    name: str
    layers: int
    d_model: int
    d_ffn: int
    d_kv: int
    r: int

    @property
    def modules(self) -> dict[str, tuple[int, int]]:
        """(d_out, d_in) by the module's path in its layer."""
        d, ffn, kv = self.d_model, self.d_ffn, self.d_kv
        return {
            "self_attn.q_proj": (d, d),
            "self_attn.k_proj": (kv, d),
            "self_attn.v_proj": (kv, d),
            "self_attn.o_proj": (d, d),
            "mlp.gate_proj": (ffn, d),
            "mlp.up_proj": (ffn, d),
            "mlp.down_proj": (d, ffn),
        }

    @property
    def layer_numbers(self) -> int:
        """How many numbers the LoRA halves of one layer have."""
        return sum(self.r * (d_out + d_in) for d_out, d_in in self.modules.values())


QWEN_7B = Shape("Qwen2.5-7B", layers=28, d_model=3584, d_ffn=18944, d_kv=512, r=32)
LLAMA_405B = Shape("Llama-3.1-405B", layers=126, d_model=16384, d_ffn=53248, d_kv=1024, r=16)


def write_adapter(folder: Path, shape: Shape) -> int:
    """Write the adapter in bfloat16, tensor by tensor; return its size in bytes.

    All layers use the same random numbers in different order, which is random enough here.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": shape.name,
        "r": shape.r,
        "lora_alpha": 2 * shape.r,
        "target_modules": sorted({name.rpartition(".")[2] for name in shape.modules}),
    }
    (folder / CONFIG).write_text(json.dumps(config), encoding="utf-8")
    halves = _halves(shape)
    header: dict[str, object] = {}
    place = 0
    names = [(layer, name) for layer in range(shape.layers) for name in halves]
    for layer, name in names:
        values = halves[name]
        header[f"base_model.model.model.layers.{layer}.{name}.weight"] = {
            "dtype": "BF16",
            "shape": list(values.shape),
            "data_offsets": [place, place + values.nbytes],
        }
        place += values.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with (folder / WEIGHTS).open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for layer, name in names:
            longer = int(halves[name].shape[0] < halves[name].shape[1])
            file.write(np.roll(halves[name], _APART * layer, axis=longer).tobytes())
    return place


def _halves(shape: Shape) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    found = {}
    for name, (d_out, d_in) in shape.modules.items():
        lora_A = rng.standard_normal((shape.r, d_in), dtype=np.float32) / np.sqrt(d_in)
        lora_B = _UPDATE * rng.standard_normal((d_out, shape.r), dtype=np.float32)
        found[f"{name}.lora_A"] = lora_A.astype(ml_dtypes.bfloat16)
        found[f"{name}.lora_B"] = lora_B.astype(ml_dtypes.bfloat16)
    return found
