"""The Hugging Face Hub: what a word on the command line means there, pinned to a commit.

A repository is asked for its commit once, without retries; where it cannot be reached, what the
local cache holds is used.  Torch-free.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from analysis.errors import InputError, NotFoundError

ADAPTER_CONFIG = "adapter_config.json"
WEIGHTS = ("adapter_model.safetensors", "adapter_model.safetensors.index.json")
SHARDS = "adapter_model-*.safetensors"
PICKLE = "adapter_model.bin"

TIMEOUT = 5.0
"""Seconds that the Hub may take to name a commit."""

_NAME = r"(?!.*(?:--|\.\.))[A-Za-z0-9_](?:[\w.-]{0,94}[A-Za-z0-9_])?"
_WORD = re.compile(
    rf"(?P<repository>{_NAME}/{_NAME})(?P<subfolder>(?:/[\w.-]+)*)"
    r"(?:@(?P<revision>[\w][\w./-]*))?",
    re.ASCII,
)


@dataclass(frozen=True)
class HubName:
    """`org/name`, with a subfolder and a revision where they are given."""

    repository: str
    subfolder: str = ""
    revision: str | None = None

    def __str__(self) -> str:
        place = "/".join(part for part in (self.repository, self.subfolder) if part)
        return f"{place}@{self.revision}" if self.revision else place


@dataclass(frozen=True)
class Pinned:
    """A repository at the commit that a revision names.

    `files` are those it has, None where it was not reached.
    """

    repository: str
    revision: str
    commit: str
    files: frozenset[str] | None


def hub_name(word: str) -> HubName | None:
    """What a word of the form `org/name[/subfolder][@revision]` means; None for any other."""
    found = _WORD.fullmatch(word)
    if found is None or ".." in found["subfolder"].split("/"):
        return None
    return HubName(found["repository"], found["subfolder"].strip("/"), found["revision"])


def pinned(repository: str, revision: str | None) -> Pinned:
    """The commit that a branch, tag or commit of a repository names now.

    Raises:
        NotFoundError: there is no such repository or revision, or it may not be read, or it
            cannot be reached and is not in the local cache.
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
            f"The Hub repository {named} is gated; accept its terms on its page, and log in with "
            "`hf auth login` or the environment's HF_TOKEN."
        ) from None
    except errors.RevisionNotFoundError:
        raise NotFoundError(
            f"The Hub repository {repository} has no revision {revision!r}; give a branch, tag or "
            "commit of it."
        ) from None
    except errors.RepositoryNotFoundError:
        raise NotFoundError(
            f"The Hub has no repository {repository}, or it is private; check its name, or log in "
            "with `hf auth login`."
        ) from None
    except Exception as error:  # any of the HTTP library's, or the library's own when offline
        return _from_cache(repository, revision, error)
    assert info.sha is not None
    files = frozenset(sibling.rfilename for sibling in info.siblings or ())
    return Pinned(repository, revision or "main", info.sha, files)


def adapter_files(name: HubName, *, pickle: bool = False) -> tuple[Path, dict[str, str]]:
    """The folder of an adapter in the local cache, downloaded where it is not there yet.

    Only files of the adapter are downloaded: its config and its safetensors or, where it has no
    other weights and `pickle` asks for it, the pickle.

    Returns:
        The folder, and where it came from: `repository`, `revision` (the commit), `asked` (as it
        was named) and, where one was named, `subfolder`.

    Raises:
        NotFoundError: as `pinned` says.
        InputError: the repository holds no adapter that can be read.
    """
    at = pinned(name.repository, name.revision)
    prefix = f"{name.subfolder}/" if name.subfolder else ""
    wanted = [ADAPTER_CONFIG, *WEIGHTS, SHARDS]
    if at.files is not None:
        check_adapter(name, at.files, prefix, pickle=pickle)
    if pickle and (at.files is None or f"{prefix}{WEIGHTS[0]}" not in at.files):
        wanted.append(PICKLE)
    snapshot = downloaded(at, [prefix + one for one in wanted])
    folder = snapshot / name.subfolder
    if not (folder / ADAPTER_CONFIG).is_file():
        raise InputError(
            f"What the local cache holds of {name} has no {ADAPTER_CONFIG}, and the Hub cannot be "
            "reached; try again when it can."
        )
    source = {"repository": at.repository, "revision": snapshot.name, "asked": str(name)}
    return folder, source | ({"subfolder": name.subfolder} if name.subfolder else {})


def downloaded(at: Pinned, patterns: Sequence[str]) -> Path:
    """The folder of a repository's snapshot with the files that match; cached ones are reused.

    Its name is the commit.  The cache remembers that the revision named it.

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
    except Exception as error:  # any of the HTTP library's, or a missing or incomplete cache
        reason = str(error).strip().splitlines()[0]
        raise NotFoundError(
            f"{at.repository} could not be downloaded from the Hub: {reason} Try again; what is "
            "there already is kept."
        ) from None
    return Path(folder)


def check_adapter(name: HubName, files: Collection[str], prefix: str, *, pickle: bool) -> None:
    """Refuse a repository, or a subfolder of one, that holds no adapter of its own."""
    if f"{prefix}{ADAPTER_CONFIG}" not in files:
        others = sorted(
            file.removesuffix(f"/{ADAPTER_CONFIG}")
            for file in files
            if file.startswith(prefix) and file.endswith(f"/{ADAPTER_CONFIG}")
        )
        at = f"@{name.revision}" if name.revision else ""
        if others:
            named = ", ".join(f"{name.repository}/{one}{at}" for one in others)
            raise InputError(f"{name} holds no adapter itself, but subfolders do; give {named}.")
        raise InputError(
            f"{name} holds no {ADAPTER_CONFIG}, so it is no PEFT adapter; give a repository that "
            "save_pretrained of PEFT made."
        )
    weights = any(f"{prefix}{one}" in files for one in WEIGHTS)
    if not weights and not (pickle and f"{prefix}{PICKLE}" in files):
        only = (
            f"only {PICKLE}, a pickle, which can run code when it is read"
            if (f"{prefix}{PICKLE}" in files)
            else "no weights"
        )
        raise InputError(f"{name} has {only}; expected {WEIGHTS[0]}, as PEFT saves it by default.")


def cached(repository: str, revision: str | None) -> Path:
    """The folder of a repository's snapshot in the local cache; nothing is asked of the Hub.

    Raises:
        NotFoundError: the cache does not hold it.
    """
    from huggingface_hub.errors import HFValidationError

    missing = NotFoundError(f"{repository} is neither a folder nor in the Hub's local cache.")
    try:
        home, commit = _cached_commit(repository, revision)
    except HFValidationError:  # a path that is not there
        raise missing from None
    if not (home / "snapshots" / commit).is_dir():
        raise missing
    return home / "snapshots" / commit


def _cached_commit(repository: str, revision: str | None) -> tuple[Path, str]:
    """A repository's folder in the local cache, and the commit it knows for a revision."""
    from huggingface_hub import constants as hub
    from huggingface_hub.file_download import repo_folder_name

    home = Path(hub.HF_HUB_CACHE) / repo_folder_name(repo_id=repository, repo_type="model")
    reference = home / "refs" / (revision or "main")
    if reference.is_file():
        return home, reference.read_text(encoding="utf-8").strip()
    return home, revision or "main"


def _from_cache(repository: str, revision: str | None, error: Exception) -> Pinned:
    """The commit that the local cache knows for a revision."""
    from huggingface_hub import constants as hub

    home, commit = _cached_commit(repository, revision)
    if (home / "snapshots" / commit).is_dir():
        return Pinned(repository, revision or "main", commit, None)
    why = "is set not to be used" if hub.HF_HUB_OFFLINE else f"gave {type(error).__name__}"
    raise NotFoundError(
        f"{repository} is no folder here, and is not in the local cache of the Hub, which "
        f"cannot be reached ({hub.ENDPOINT} {why}); give a folder, or try again with a network."
    )
