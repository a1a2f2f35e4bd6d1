"""Tokens that directions promote and suppress, from the files of a base model's unembedding.

Neither the model nor torch is loaded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from analysis.base_model.files import (
    CONFIG,
    INDEX,
    read_unembedding,
    require_folder,
    unembedding_files,
)
from analysis.base_model.unembedding import Unembedding, top_tokens
from analysis.errors import InputError
from grasp.hub.repository import Pinned, download_snapshot, find_cached, pin_revision

TOKENIZER = "tokenizer.json"
_TOKENIZER_FILES = (TOKENIZER, "tokenizer_config.json", "tokenizer.model", "vocab.*", "merges.txt")

Words = list[list[str]]


@dataclass(frozen=True)
class Lens:
    """An unembedding, a function from token ids to their text, and the number of tokens."""

    unembedding: Unembedding
    decode: Callable[[int], str]
    vocabulary: int

    def tokens(self, directions: NDArray[np.floating], *, n: int = 10) -> tuple[Words, Words]:
        """Texts of the tokens whose logits a step along each direction raises and lowers most.

        Args:
            directions: (k, d_model).
            n: tokens at each end.

        Returns:
            Promoted and suppressed tokens, each with a list of n texts per direction.

        Raises:
            InputError: as `analysis.base_model.unembedding.top_tokens`.
        """
        found = top_tokens(directions, self.unembedding, n=n, vocabulary=self.vocabulary)
        ends = (found.promoted.tolist(), found.suppressed.tolist())
        promoted, suppressed = ([[self.decode(i) for i in row] for row in end] for end in ends)
        return promoted, suppressed


@dataclass(frozen=True)
class LensSource:
    """A base model from whose files a lens is read: a folder, or a Hub id at a revision.

    `named` says that the user gave this model for the lens; files of the unembedding, final norm
    and tokenizer that are not in the Hub's local cache are then downloaded.
    """

    reference: str
    revision: str | None = None
    named: bool = False

    def read(self) -> Lens:
        """Read the lens from files.

        Raises:
            GraspError: files are missing, or cannot be read, as those in a GGUF file.
        """
        require_folder(Path(self.reference))
        if Path(self.reference).is_dir():
            folder = Path(self.reference)
        elif self.named:
            folder = _download(pin_revision(self.reference, self.revision))
        else:
            folder = find_cached(self.reference, self.revision)
        decode, vocabulary = _tokens(folder)
        return Lens(read_unembedding(folder), decode, vocabulary)


def _download(at: Pinned) -> Path:
    """Download the files of a base model on the Hub that a lens needs."""
    folder = download_snapshot(at, [CONFIG, INDEX, *_TOKENIZER_FILES])
    if at.files is None:
        return folder
    index = folder / INDEX if INDEX in at.files else None
    return download_snapshot(at, unembedding_files(sorted(at.files), index))


def _tokens(folder: Path) -> tuple[Callable[[int], str], int]:
    """The function from token ids to their text, and the number of tokens."""
    if not (folder / TOKENIZER).is_file():
        raise InputError(
            f"The base model {folder} has no {TOKENIZER}, so its tokens have no text; "
            "save its tokenizer with save_pretrained."
        )
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
    except Exception as error:  # the library raises nothing narrower
        raise InputError(
            f"{folder / TOKENIZER} cannot be read ({str(error)[:120]}); copy it again."
        ) from None

    def decode(token: int) -> str:
        return str(tokenizer.decode([token], skip_special_tokens=False))

    return decode, 1 + max(tokenizer.get_vocab(with_added_tokens=True).values())
