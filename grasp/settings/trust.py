"""Consent to running a base model's own Python code.

It comes from a person at this machine alone: `--trust-remote-code` on the command line, or
`grasp trust MODEL`, which adds the model to a list that lies outside every workspace.  What a
record, a job, a page or a file of settings says is a request, never consent.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from analysis.errors import InputError

_CONSENT: ContextVar[bool] = ContextVar("consent", default=False)


@contextmanager
def consent(given: bool) -> Iterator[None]:
    """Within the block, models may run code of their own if `given`."""
    token = _CONSENT.set(given)
    try:
        yield
    finally:
        _CONSENT.reset(token)


def may_run_code(reference: str, *, commit: str | None, asked: bool) -> bool:
    """Whether a person has consented to running the code of a base model.

    Args:
        reference: the model's folder, or its Hub id.
        commit: its commit on the Hub; None for a folder.
        asked: whether the settings ask for its code.

    Raises:
        InputError: the settings ask for it, and nobody has consented.
    """
    trusted = _CONSENT.get() or _is_listed(reference, commit)
    if asked and not trusted:
        raise InputError(
            f"The settings ask to run the Python code of the base model {reference!r} "
            "(trust_remote_code), and only you can allow that: read its code, then add "
            f"--trust-remote-code, or run `grasp trust {reference}` once."
        )
    return trusted


def trust_list() -> dict[str, str]:
    """The trusted base models: folder or Hub id, each with the fingerprint of its code.

    Raises:
        InputError: the file of the list is damaged.
    """
    file = _file()
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{file} cannot be read ({error}); repair or delete it.") from None
    if not isinstance(found, dict) or not all(isinstance(one, str) for one in found.values()):
        raise InputError(f"{file} is not a list of trusted models; repair or delete it.")
    return found


def add_trusted(reference: str, *, commit: str | None) -> str:
    """Add a base model to the list; returns the fingerprint of its code.

    Raises:
        InputError: its code lies in another repository, which can change at any time.
    """
    fingerprint = _fingerprint(reference, commit)
    _write(trust_list() | {_name(reference, commit): fingerprint})
    return fingerprint


def remove_trusted(reference: str) -> None:
    """Take a base model off the list.

    Raises:
        InputError: it is not on the list.
    """
    known = trust_list()
    names = {reference, str(Path(reference).resolve())} & set(known)
    if not names:
        raise InputError(f"{reference} is not trusted; `grasp trust` lists what is.")
    _write({name: found for name, found in known.items() if name not in names})


def _is_listed(reference: str, commit: str | None) -> bool:
    known = trust_list()
    name = _name(reference, commit)
    return name in known and known[name] == _fingerprint(reference, commit)


def _name(reference: str, commit: str | None) -> str:
    return reference if commit else str(Path(reference).resolve())


def _fingerprint(reference: str, commit: str | None) -> str:
    """The commit of a Hub model, or a SHA-256 of a folder's Python files and configurations."""
    if commit is not None:
        return commit
    folder = Path(reference).resolve()
    digest = hashlib.sha256()
    configs = sorted(folder.glob("*config*.json"))
    for file in [*configs, *sorted(folder.rglob("*.py"))]:
        content = file.read_bytes()
        if file.suffix == ".json" and _borrows(content):
            raise InputError(
                f"{file} takes its code from another repository, which can change at any time; "
                "such a model cannot be trusted once and for all. Use --trust-remote-code."
            )
        name = file.relative_to(folder).as_posix().encode()
        digest.update(b"%d %s %d " % (len(name), name, len(content)) + content)
    return digest.hexdigest()


def _borrows(config: bytes) -> bool:
    """Whether a configuration names code of another repository, as in "org/name--module.Class"."""
    try:
        found = json.loads(config)
    except (ValueError, RecursionError):
        return False
    return isinstance(found, dict) and "--" in json.dumps(found.get("auto_map"))


def _write(known: dict[str, str]) -> None:
    file = _file()
    file.parent.mkdir(parents=True, exist_ok=True)
    new = file.with_suffix(f".{os.getpid()}")
    new.write_text(json.dumps(known, indent=2), encoding="utf-8")
    new.replace(file)


def _file() -> Path:
    return own_folder() / "trusted-models.json"


def own_folder() -> Path:
    """The folder of this person's own settings on this machine, outside every workspace."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "grasp-workbench"
