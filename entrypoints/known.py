"""Commands that explain themselves: options in groups, those that matter first, with examples; and misspelt ones."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import click

from datadiet import commands

from .ends import Repairable
from .examples import EXAMPLES

GROUPS = {  # in the order of help; an option without a group is of the command itself
    "": "Options", "study": "Study", "data": "Data", "model": "Model", "training": "Training", "score": "Score",
    "subset": "Subset", "tracking": "Tracking", "output": "Output",
}  # fmt: skip
ALL = "datadiet.all"  # whether help lists all options, in the context of a command


class Grouped(click.Option):
    """An option in a group of help.

    Args:
        group: A name in GROUPS.
        first: Whether it is among the few that help lists first.
    """

    def __init__(self, *given: Any, group: str = "", first: bool = True, **more: Any) -> None:
        super().__init__(*given, **more)
        self.group, self.first = group, first


def own_option(
    name: str, group: str, kind: click.ParamType, text: str, *, default: Any = None, first: bool = True, **more: Any
) -> Callable:  # fmt: skip
    """An option that commands have beside those of `datadiet.option`, in a group of help."""
    return click.option(
        f"--{name}", type=kind, default=default, help=text, cls=Grouped, group=group, first=first, **more
    )  # fmt: skip


def _explain_all(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        ctx.meta[ALL] = True
        click.echo(ctx.get_help())
        ctx.exit()


HELP_ALL = click.option(
    "--help-all", is_flag=True, expose_value=False, is_eager=True, callback=_explain_all, cls=Grouped, group="output",
    help="List all options and exit.",
)  # fmt: skip


def with_help_all(command: click.Command) -> click.Command:
    """The same command, which now has --help-all where it had not, as those from outside have not."""
    return command if any("--help-all" in param.opts for param in command.params) else HELP_ALL(command)


def program_of(ctx: click.Context) -> commands.Caller:
    """How the user called, without options."""
    return commands.Caller(ctx.find_root().obj or commands.DATADIET)


def _group(param: click.Parameter) -> str:
    return "output" if "--help" in param.opts else getattr(param, "group", "")


def _with_option(ctx: click.Context, option: str) -> list[str]:
    """Names of the commands that have an option."""
    group = ctx.find_root().command
    if not isinstance(group, click.Group):
        return []
    made = ((name, group.get_command(ctx, name)) for name in group.list_commands(ctx))
    return [name for name, one in made if one and any(option in param.opts for param in one.params)]


class Known(click.Command):
    """A command that lists its options in groups, and tells a misspelt one the line that was meant."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        left = 0
        params = self.get_params(ctx)
        for group, title in GROUPS.items():
            listed = []
            for param in params:
                if _group(param) == group and (record := param.get_help_record(ctx)):
                    shown = ctx.meta.get(ALL) or param.required or getattr(param, "first", True)
                    left += not shown
                    listed += [record] if shown else []
            if listed:
                with formatter.section(title):
                    formatter.write_dl(listed)
        if left:
            formatter.write_paragraph()
            formatter.write_text(f"{left} more options: {program_of(ctx).program} {ctx.info_name} --help-all")

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        if examples := EXAMPLES.get(str(self.name), ()):
            with formatter.section("Examples"):
                for values in examples:
                    formatter.write(
                        f"{' ' * formatter.current_indent}{program_of(ctx).command(str(self.name), **values)}\n"
                    )

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        given = list(args)
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            if others := _with_option(ctx, error.option_name):
                told = f"{ctx.info_name} has no option {error.option_name}"
                raise Repairable(f"{told}; it is one of {', '.join(others)}.") from None
            if not error.possibilities:
                raise
            meant = error.possibilities[0]
            words = [re.sub(rf"^{re.escape(error.option_name)}(?==|$)", meant, word) for word in given]
            line = program_of(ctx).typed_again(str(ctx.info_name), words)
            raise Repairable(f"No such option: {error.option_name}. Did you mean {meant}? {line}") from None
