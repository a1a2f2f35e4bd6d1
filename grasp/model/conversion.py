"""A GGUF file made into a folder, as transformers keeps models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from analysis.store.records import code_revision, sha256
from grasp.jobs.progress import Progress, silent
from grasp.model.loading import load_base
from grasp.settings.model import ModelSettings

StoredDtype = Literal["bfloat16", "float16", "float32"]

README = "README.md"
_PACKAGES = ("gguf", "transformers", "tokenizers", "torch")


@dataclass(frozen=True)
class Converted:
    """What was made of a GGUF file: its hash, and how many weights of which dtype."""

    gguf_sha256: str
    parameters: int
    dtype: StoredDtype


def convert_gguf(
    file: Path, folder: Path, *, dtype: StoredDtype, progress: Progress = silent
) -> Converted:
    """Write the model and tokenizer of a GGUF file into an existing folder.

    The folder gets the weights in safetensors format, unpacked and rounded to `dtype`, the config,
    the generation config with every token that ends an answer, and the tokenizer with the file's
    chat template.

    Raises:
        GraspError: as `load_base`.
    """
    progress(0, 10, "Unpacking the weights")
    loaded = load_base(str(file), ModelSettings(dtype=dtype, chat_date=None))
    progress(8, 10, "Writing the folder")
    loaded.model.name_or_path = loaded.model.config.name_or_path = file.name
    loaded.tokenizer.name_or_path = file.name
    loaded.model.save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)
    progress(9, 10, "Hashing the file")
    found = Converted(sha256(file), loaded.model.num_parameters(), dtype)
    progress(10, 10, "Wrote the folder")
    return found


def write_readme(
    folder: Path,
    file: Path,
    made: Converted,
    *,
    title: str,
    licence: str,
    source: Mapping[str, str],
) -> None:
    """Write where a converted model is from, under which licence, and what was done to it.

    Args:
        folder: of the model.
        file: the GGUF file.
        made: as `convert_gguf` returned it.
        title: the model's name.
        licence: its licence, in words or as an SPDX identifier.
        source: further rows, by their heading.
    """
    rows = {
        "Licence": licence,
        **source,
        "File": f"{file.name}, SHA-256 {made.gguf_sha256}",
        "Changes": f"weights unpacked and rounded to {made.dtype}; config and tokenizer rebuilt "
        "from the file's metadata",
        "Made by": f"grasp-workbench {code_revision()}, "
        + ", ".join(f"{name} {version(name)}" for name in _PACKAGES),
    }
    table = [f"| {heading} | {text} |" for heading, text in rows.items()]
    lines = [f"# {title}", "", "| | |", "|---|---|", *table, ""]
    (folder / README).write_text("\n".join(lines), encoding="utf-8")
