"""Plan files: options by name, in YAML or JSON, as they would be typed."""

from __future__ import annotations

from pathlib import Path

import yaml

from datadiet.errors import UserError
from datadiet.intake import read_text

BYTES = 2**17  # of a plan file
CHARACTERS = 3000  # of a value, as of any option
MOST = 1000  # values in a list
NOTHING = ("", "~", "null", "Null", "NULL")
EXPECTED = "expected option names and values, as in 'dataset: digits', or lists of values"

# Which takes every value for text, as the command line does: no other type can come of it. In C where there is that.
LOADER = getattr(yaml, "CBaseLoader", yaml.BaseLoader)


def read_plan(path: Path) -> dict[str, str]:
    """Values by name, each as it would be typed: lists comma-separated, 'auto' for null, 'none' for an empty list.

    What could make much of little (aliases, tags, nesting) is refused before it is read further.

    Raises:
        UserError: no such file, too large a one, or something else than names with values and lists of values.
    """
    try:
        text = read_text(path, BYTES)
        _check_events(text)
        table = yaml.compose(text, LOADER)
    except OSError as error:
        raise _refused(path, f"cannot be read ({error.strerror}); expected a YAML or JSON file") from None
    except UserError as error:
        raise UserError(f"plan={error}") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise _refused(path, f"not readable as YAML or JSON: {' '.join(str(error).split())[:300]}") from None
    except ValueError as error:
        raise _refused(path, f"{error}; {EXPECTED}") from None
    if not isinstance(table, yaml.MappingNode):
        raise _refused(path, f"{_shown(table)}; {EXPECTED}")
    values: dict[str, str] = {}
    for key, node in table.value:
        if not isinstance(key, yaml.ScalarNode):
            raise _refused(path, f"{_shown(key)} where a name should stand; {EXPECTED}")
        if (name := str(key.value)) in values:
            raise _refused(path, f"{name[:80]} is there twice; expected each name once")
        values[name] = _typed(path, name, node)
    return values


def _check_events(text: str) -> None:
    """Raises ValueError where a text has more than a table of values and lists."""
    depth = 0
    for event in yaml.parse(text, LOADER):
        if isinstance(event, yaml.AliasEvent) or getattr(event, "tag", None):
            told = f"*{event.anchor}" if isinstance(event, yaml.AliasEvent) else event.tag
            raise ValueError(f"line {event.start_mark.line + 1} has {str(told)[:80]}")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > 2:
            raise ValueError(f"line {event.start_mark.line + 1} has nested values")


def _typed(path: Path, name: str, node: yaml.Node) -> str:
    """A value as it would be typed on the command line."""
    if isinstance(node, yaml.MappingNode):
        raise _refused(path, f"{name[:80]} has nested values; expected one value or a list of them")
    parts = [str(part.value) for part in (node.value if isinstance(node, yaml.SequenceNode) else [node])]
    if len(parts) > MOST:
        raise _refused(path, f"{name[:80]} has {len(parts)} values; expected at most {MOST}")
    if (longest := max(map(len, parts), default=0)) > CHARACTERS:
        raise _refused(path, f"{name[:80]} has a value of {longest} characters; expected at most {CHARACTERS}")
    if isinstance(node, yaml.SequenceNode):
        return ",".join(parts) or "none"
    plain = not getattr(node, "style", None)
    return "auto" if plain and parts[0] in NOTHING else parts[0]


def _shown(node: yaml.Node | None) -> str:
    return "a list" if isinstance(node, yaml.SequenceNode) else f"got {str(node.value)[:80]!r}" if node else "empty"


def _refused(path: Path, why: str) -> UserError:
    return UserError(f"plan={path}: {why}.")
