"""Names that are not UTF-8, as files may have them: spelled so that all can show them and nothing is lost."""

from __future__ import annotations

import re

# Bytes that are not UTF-8 reach Python as half characters (U+DC80 to U+DCFF). A backslash is only touched where it
# could be taken for the spelling of such a byte.
_BYTE_OR_BACKSLASHES = re.compile(r"(\\+)(?=x[89a-f][0-9a-f]|[\udc80-\udcff])|([\udc80-\udcff])")


def visible(text: str) -> str:
    r"""Text with each byte that is not UTF-8 as \xNN; what is UTF-8 stays as it is.

    Different texts stay different: backslashes before what would read as such a byte are doubled.
    """
    return _BYTE_OR_BACKSLASHES.sub(lambda m: m[1] * 2 if m[1] else f"\\x{ord(m[2]) - 0xDC00:02x}", text)


def from_bytes(name: bytes) -> str:
    """A name as `visible` spells it, from its bytes."""
    return visible(name.decode(errors="surrogateescape"))
