"""Pages of the site that are written nowhere: the README as home, and the commands.

MkDocs calls `on_files` when it builds; see `hooks` in mkdocs.yml.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from textwrap import dedent

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from grasp.commands.parser import build_parser

ROOT = Path(__file__).resolve().parent.parent
COPIES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "reference/contributing.md",
    "CHANGELOG.md": "reference/changelog.md",
}
COMMON = ("help", "workspace", "json")
"""Options of every command, which are listed once."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of the repository's root, and the commands."""
    for name, page in COPIES.items():
        text = (ROOT / name).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=relinked(text, page)))
    commands = "\n\n".join(command_page(build_parser()))
    files.append(File.generated(config, "reference/commands.md", content=commands + "\n"))
    return files


def relinked(text: str, page: str) -> str:
    """Links of a file in the repository's root, as they are from its page of the site."""
    up = "../" * page.count("/")

    def link(found: re.Match[str]) -> str:
        path = found[1].removeprefix("docs/")
        return f"]({up}{COPIES.get(path, path)}{found[2]})"

    return re.sub(r"\]\((?!https?:|#)([^)#]+)([^)]*)\)", link, text)


def command_page(parser: argparse.ArgumentParser) -> Iterator[str]:
    """Every command with its options, as the parser has them."""
    parser.formatter_class = partial(argparse.HelpFormatter, width=84)
    commands = subcommands(parser)
    yield "# Commands"
    yield (
        f"{parser.description} `grasp COMMAND --help` says the same. Bad input ends in one "
        "sentence and exit code 2, a failure in exit code 1."
    )
    yield "Every command takes:"
    yield option_table(
        action for action in next(iter(commands.values()))._actions if action.dest in COMMON
    )
    for name, command in commands.items():
        yield from command_section(name, command)


def subcommands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The parsers of all commands, by name."""
    (found,) = (one for one in parser._actions if isinstance(one, argparse._SubParsersAction))
    return dict(found.choices)


def command_section(name: str, command: argparse.ArgumentParser) -> Iterator[str]:
    """Heading, summary, usage, and a table for each group of options."""
    command.formatter_class = partial(argparse.HelpFormatter, width=84)
    usage = dedent(command.format_usage().replace("usage: ", "       ", 1)).strip()
    yield f"## grasp {name}"
    yield command.description or ""
    yield f"```text\n{usage}\n```"
    for group in command._action_groups:
        shown = [one for one in group._group_actions if one.dest not in COMMON]
        shown = [one for one in shown if one.help is not argparse.SUPPRESS]
        if shown:
            title = group.title or ""
            yield f"**{title[:1].upper()}{title[1:]}**"
            yield option_table(shown)


def option_table(actions: Iterator[argparse.Action] | list[argparse.Action]) -> str:
    """A row for each option: how it is written, and what it means."""
    formatter = argparse.HelpFormatter("grasp")
    rows = ["| option | meaning |", "|---|---|"]
    for action in actions:
        written = formatter._format_action_invocation(action)
        rows.append(f"| `{cell(written)}` | {cell(action.help or '')} |")
    return "\n".join(rows)


def cell(text: str) -> str:
    """Text as it may stand in a cell of a Markdown table."""
    return text.replace("|", "\\|").replace("<", "&lt;")
