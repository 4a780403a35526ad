"""What the site has beside the pages of this folder: the project's other documents, and a reference made from what the
commands and the package say of themselves. Run by mkdocs (`hooks` of mkdocs.yml)."""

from __future__ import annotations

import html
import posixpath
import re
import sys
from pathlib import Path

import click
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

PROJECT = Path(__file__).resolve().parents[1]
ELSEWHERE = ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/results/*.md",
             "tests/faults/results.md")  # fmt: skip
LINK = re.compile(r"(?<!!)\[([^\]]*)\]\((?!\w+:|#)([^)#\s]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds what does not lie in this folder."""
    for path in (path for pattern in ELSEWHERE for path in sorted(PROJECT.glob(pattern))):
        name = path.relative_to(PROJECT).as_posix()
        files.append(File.generated(config, f"project/{name}", content=path.read_text()))
    files.append(File.generated(config, "reference/commands.md", content=commands()))
    files.append(File.generated(config, "reference/python.md", content=python()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links lead to pages of the site; where the site has no such page, their text stays."""
    uri = page.file.src_uri
    here = uri.removeprefix("project/") if uri.startswith("project/") else f"docs/{uri}"

    def link(found: re.Match[str]) -> str:
        text, target, anchor = found[1], found[2], found[3] or ""
        path = posixpath.normpath(posixpath.join(posixpath.dirname(here), target))
        names = (path.removeprefix("docs/"), f"{path.removeprefix('docs/')}/README.md", f"project/{path}")
        for name in names:
            if files.get_file_from_path(name):
                return f"[{text}]({posixpath.relpath(name, posixpath.dirname(uri) or '.')}{anchor})"
        if (PROJECT / path).exists():
            return text
        return found[0]  # mkdocs tells that it leads nowhere

    markdown = re.sub(r"(!\[[^\]]*\]\()docs/", r"\1../", markdown) if uri == "project/README.md" else markdown
    return LINK.sub(link, markdown)


def commands() -> str:
    """Every command, its options with their defaults."""
    sys.path.insert(0, str(PROJECT))  # here: mkdocs restores the path after it has imported a hook
    from entrypoints.__main__ import COMMANDS, main

    lines = [
        "# Commands and options",
        "",
        "`datadiet NAME --option value`, or `mlflow run . -e NAME -P option=value`.",
        "",
    ]
    context = click.Context(main, info_name="datadiet")
    for name in COMMANDS:
        command = main.get_command(context, name)
        assert command is not None, name
        lines += [
            f"## {name}",
            "",
            _text(command.help or ""),
            "",
            "| option | default | what it does |",
            "|---|---|---|",
        ]
        for option in command.params:
            if isinstance(option, click.Option) and not option.hidden:
                record = option.get_help_record(click.Context(command, info_name=name))
                told = record[1] if record else ""
                text, _, default = told.rpartition("  [")
                lines.append(f"| `{option.opts[0]}` | {_text(default.rstrip(']'))} | {_text(text or told)} |")
        lines.append("")
    return "\n".join(lines)


def python() -> str:
    """Every public name."""
    import datadiet

    found = (f"## {name}\n\n::: datadiet.{module}.{name}\n" for name, module in sorted(datadiet._MODULES.items()))
    return "# Python\n\n```python\nimport datadiet as dd\n```\n\n" + "\n".join(found)


def _text(text: str) -> str:
    """Text in a cell of a table, whatever stands in it."""
    return re.sub(r"([\\|*_`\[\]])", r"\\\1", html.escape(" ".join(text.replace("\b", "").split()), quote=False))
