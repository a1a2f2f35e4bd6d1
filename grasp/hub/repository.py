"""The Hugging Face Hub: names on the command line, pinned to a commit.

The Hub is asked for a commit once, without retries; if it cannot be reached, the local cache is
used.  Torch-free.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from analysis.adapters.files import CONFIG, INDEX, PICKLE, SHARDS, WEIGHTS
from analysis.adapters.place import TOKENIZER_FILES
from analysis.errors import InputError, NotFoundError

TIMEOUT = 5.0
"""Seconds to wait for the Hub to name a commit."""

_NAME = r"(?!.*(?:--|\.\.))[A-Za-z0-9_](?:[\w.-]{0,94}[A-Za-z0-9_])?"
_WORD = re.compile(
    rf"(?P<repository>{_NAME}/{_NAME})(?P<subfolder>(?:/[\w.-]+)*)"
    r"(?:@(?P<revision>[\w][\w./-]*))?",
    re.ASCII,
)


@dataclass(frozen=True)
class HubName:
    """`org/name`, with an optional subfolder and revision."""

    repository: str
    subfolder: str = ""
    revision: str | None = None

    def __str__(self) -> str:
        place = "/".join(part for part in (self.repository, self.subfolder) if part)
        return f"{place}@{self.revision}" if self.revision else place


@dataclass(frozen=True)
class Pinned:
    """A repository at the commit that a revision names.

    `files` lists its files; None if the Hub was not reached.
    """

    repository: str
    revision: str
    commit: str
    files: frozenset[str] | None


def hub_name(word: str) -> HubName | None:
    """Parse `org/name[/subfolder][@revision]`; None for any other text."""
    found = _WORD.fullmatch(word)
    if found is None or ".." in found["subfolder"].split("/"):
        return None
    return HubName(found["repository"], found["subfolder"].strip("/"), found["revision"])


def pin_revision(repository: str, revision: str | None) -> Pinned:
    """The current commit of a branch, tag or commit of a repository.

    Raises:
        NotFoundError: there is no such repository or revision, access is denied, or the Hub cannot
            be reached and the local cache does not have it.
    """
    from huggingface_hub import HfApi, errors
    from huggingface_hub import constants as hub

    named = f"{repository}@{revision}" if revision else repository
    try:
        info = HfApi(endpoint=hub.ENDPOINT).model_info(
            repository, revision=revision, timeout=TIMEOUT
        )
    except errors.GatedRepoError:
        raise NotFoundError(
            f"The Hub repository {named} is gated; accept its terms on its page, then log in with "
            "`hf auth login` or set HF_TOKEN."
        ) from None
    except errors.RevisionNotFoundError:
        raise NotFoundError(
            f"The Hub repository {repository} has no revision {revision!r}; give one of its "
            "branches, tags or commits."
        ) from None
    except errors.RepositoryNotFoundError:
        raise NotFoundError(
            f"The Hub has no repository {repository}, or it is private; check its name, or log in "
            "with `hf auth login`."
        ) from None
    except Exception as error:  # an error of the HTTP library, or of huggingface_hub when offline
        return _from_cache(repository, revision, error)
    assert info.sha is not None
    files = frozenset(sibling.rfilename for sibling in info.siblings or ())
    return Pinned(repository, revision or "main", info.sha, files)


def fetch_adapter(name: HubName, *, pickle: bool = False) -> tuple[Path, dict[str, str]]:
    """The folder of an adapter in the local cache, downloaded if it is not there yet.

    Only files of the adapter are downloaded: its config, its tokenizer if it has one of its own,
    and its safetensors or, if it has no other weights and `pickle` allows it, the pickle.

    Returns:
        The folder, and its origin: `repository`, `revision` (the commit), `asked` (the name as it
        was given) and, if one was given, `subfolder`.

    Raises:
        NotFoundError: as `pin_revision`.
        InputError: the repository has no adapter that can be read.
    """
    at = pin_revision(name.repository, name.revision)
    prefix = f"{name.subfolder}/" if name.subfolder else ""
    wanted = [CONFIG, WEIGHTS, INDEX, SHARDS, *TOKENIZER_FILES]
    if at.files is not None:
        check_adapter(name, at.files, prefix, pickle=pickle)
    if pickle and (at.files is None or f"{prefix}{WEIGHTS}" not in at.files):
        wanted.append(PICKLE)
    snapshot = download_snapshot(at, [prefix + one for one in wanted])
    folder = snapshot / name.subfolder
    if not (folder / CONFIG).is_file():
        raise InputError(
            f"The local cache has no {CONFIG} of {name}, and the Hub cannot be reached; "
            "try again later."
        )
    source = {"repository": at.repository, "revision": snapshot.name, "asked": str(name)}
    return folder, source | ({"subfolder": name.subfolder} if name.subfolder else {})


def download_snapshot(at: Pinned, patterns: Sequence[str]) -> Path:
    """The folder of a repository's snapshot with the matching files; cached files are reused.

    The folder's name is the commit.  The cache remembers which commit the revision names.

    Raises:
        NotFoundError: a file could not be downloaded.
    """
    from huggingface_hub import constants as hub
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(
            at.repository,
            revision=at.commit if at.files is None else at.revision,
            allow_patterns=list(patterns),
            local_files_only=at.files is None,
            endpoint=hub.ENDPOINT,
        )
    except Exception as error:  # an error of the HTTP library, or a missing or incomplete cache
        reason = str(error).strip().splitlines()[0]
        raise NotFoundError(
            f"{at.repository} could not be downloaded from the Hub: {reason} Try again; files "
            "already downloaded are kept."
        ) from None
    return Path(folder)


def check_adapter(name: HubName, files: Collection[str], prefix: str, *, pickle: bool) -> None:
    """Refuse a repository, or a subfolder of one, that has no adapter of its own."""
    if f"{prefix}{CONFIG}" not in files:
        others = sorted(
            file.removesuffix(f"/{CONFIG}")
            for file in files
            if file.startswith(prefix) and file.endswith(f"/{CONFIG}")
        )
        at = f"@{name.revision}" if name.revision else ""
        if others:
            named = ", ".join(f"{name.repository}/{one}{at}" for one in others)
            raise InputError(f"{name} has no adapter itself, but its subfolders do; give {named}.")
        raise InputError(
            f"{name} holds no {CONFIG}, so it is not a PEFT adapter; give a repository "
            "that PEFT's save_pretrained wrote."
        )
    weights = any(f"{prefix}{one}" in files for one in (WEIGHTS, INDEX))
    if not weights and not (pickle and f"{prefix}{PICKLE}" in files):
        only = (
            f"only {PICKLE}, a pickle, which can run code when loaded"
            if (f"{prefix}{PICKLE}" in files)
            else "no weights"
        )
        raise InputError(f"{name} has {only}; expected {WEIGHTS}, as PEFT saves it by default.")


def find_cached(repository: str, revision: str | None) -> Path:
    """The folder of a repository's snapshot in the local cache; the Hub is not contacted.

    Raises:
        NotFoundError: the cache does not have it.
    """
    from huggingface_hub.errors import HFValidationError

    missing = NotFoundError(f"{repository} is neither a folder nor in the Hub's local cache.")
    try:
        home, commit = _cached_commit(repository, revision)
    except HFValidationError:  # a path that does not exist
        raise missing from None
    if not (home / "snapshots" / commit).is_dir():
        raise missing
    return home / "snapshots" / commit


def _cached_commit(repository: str, revision: str | None) -> tuple[Path, str]:
    """A repository's folder in the local cache, and the commit cached for a revision."""
    from huggingface_hub import constants as hub
    from huggingface_hub.file_download import repo_folder_name

    home = Path(hub.HF_HUB_CACHE) / repo_folder_name(repo_id=repository, repo_type="model")
    reference = home / "refs" / (revision or "main")
    if reference.is_file():
        return home, reference.read_text(encoding="utf-8").strip()
    return home, revision or "main"


def _from_cache(repository: str, revision: str | None, error: Exception) -> Pinned:
    """A repository at the commit that the local cache has for a revision."""
    from huggingface_hub import constants as hub

    home, commit = _cached_commit(repository, revision)
    if (home / "snapshots" / commit).is_dir():
        return Pinned(repository, revision or "main", commit, None)
    why = "is disabled" if hub.HF_HUB_OFFLINE else f"gave {type(error).__name__}"
    raise NotFoundError(
        f"{repository} is neither a folder nor in the Hub's local cache, and the Hub cannot be "
        f"reached ({hub.ENDPOINT} {why}); give a folder, or try again with a network."
    )
