"""Text of users where it is shown: nothing in it is obeyed by a terminal, breaks a line, or reorders one."""

from __future__ import annotations

import re

# Control characters, ends of lines, marks that reorder text; and halves of characters, which names of files may have.
UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
# In an address: what stands between user and host, a token alone before the host of a server, and such a parameter.
_SECRETS = (
    (re.compile(r"(://[^\s/:@]*:)(?!\d{1,5}/)\S*@"), r"\1***@"),
    (re.compile(r"(\bhttps?://)[^\s/:@]+@"), r"\1***@"),
    (re.compile(r"(?i)([?&;](?:password|passwd|pwd|token|secret|odbc_connect)=)[^\s&;'\"]+"), r"\1***"),
)
_BYTE = re.compile("[\udc80-\udcff]")  # one that is not UTF-8, as names of files have it in Python
_ESCAPED = re.compile(r"\\(?:x[0-9a-f]{2}|u[0-9a-f]{4})")


def _escape(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"


def masked(text: object) -> str:
    """A text in which the passwords of addresses are ***, as in http://user:***@host."""
    shown = str(text)
    for secret, instead in _SECRETS if "://" in shown else ():
        shown = secret.sub(instead, shown)
    return shown


def printable(text: object) -> str:
    r"""A message as a terminal may show it: lines stay lines, every other unseen character becomes \xNN or \uNNNN, and
    passwords of addresses are masked."""
    told = _BYTE.sub(lambda found: f"\\x{ord(found[0]) - 0xDC00:02x}", masked(text))
    return UNSEEN.sub(lambda found: found[0] if found[0] in "\n\t" else _escape(found), told)


def on_one_line(text: object) -> str:
    r"""A message of one line, as a terminal may show it: what ends lines in it, as names of files may, becomes \x0a."""
    return printable(text).replace("\n", r"\x0a")


def escaped(text: str) -> str:
    r"""One line from which `unescaped` gives the text again: unseen characters become \xNN or \uNNNN, and so does the
    backslash of what looks like one of these already."""
    return UNSEEN.sub(
        _escape, _ESCAPED.sub(lambda found: found[0] if _as_it_is(found) else r"\x5c" + found[0][1:], text)
    )


def unescaped(text: str) -> str:
    """The inverse of `escaped`."""
    return _ESCAPED.sub(lambda found: found[0] if _as_it_is(found) else chr(int(found[0][2:], 16)), text)


def _as_it_is(found: re.Match[str]) -> bool:
    """Whether nothing that `escaped` writes looks so."""
    character = chr(int(found[0][2:], 16))
    return character != "\\" and not UNSEEN.match(character)


# --- cells of tables --------------------------------------------------------------------------

_FORMULA = re.compile("'*[=+@-]")  # what a spreadsheet evaluates, and what would be taken for its disguise


def harmless(text: str) -> str:
    """Text of users as a cell: on one line, and behind a ' where a spreadsheet would take it for a formula."""
    cell = escaped(text)
    return f"'{cell}" if _FORMULA.match(cell) else cell


def original(cell: str) -> str:
    """The inverse of `harmless`."""
    return unescaped(cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell)


# --- names of files --------------------------------------------------------------------------

# Bytes that are not UTF-8 reach Python as half characters (U+DC80 to U+DCFF). A backslash is only touched where it
# could be taken for the spelling of such a byte.
_BYTE_OR_BACKSLASHES = re.compile(r"(\\+)(?=x[89a-f][0-9a-f]|[\udc80-\udcff])|([\udc80-\udcff])")


def visible(text: str) -> str:
    r"""Text with each byte that is not UTF-8 as \xNN; what is UTF-8 stays as it is.

    Different texts stay different: backslashes before what would read as such a byte are doubled.
    """
    return _BYTE_OR_BACKSLASHES.sub(lambda m: m[1] * 2 if m[1] else f"\\x{ord(m[2]) - 0xDC00:02x}", text)


_VISIBLE = re.compile(r"(\\+)x([89a-f][0-9a-f])")


def as_named(text: str) -> str:
    """The inverse of `visible`: the name as the system has it."""
    return _VISIBLE.sub(_named, text)


def _named(found: re.Match[str]) -> str:
    half, is_byte = divmod(len(found[1]), 2)
    return "\\" * half + (chr(0xDC00 + int(found[2], 16)) if is_byte else f"x{found[2]}")


def from_bytes(name: bytes) -> str:
    """A name as `visible` spells it, from its bytes."""
    return visible(name.decode(errors="surrogateescape"))


def natural(text: str) -> list[tuple[int, str]]:
    """Sort key in which 10 comes behind 9; what Unicode takes for a digit and is no number stays text."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", text)]
