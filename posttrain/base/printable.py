r"""Text that a terminal or a page shows as it is: control characters spelt out.

Control characters, characters that change the direction of text and halves of surrogate pairs are written as
escapes such as `\x1b`, so that no row, name or file can move the cursor or hide what follows. Left out:
markup, which rich's `Text` and the page's template escape.
"""

from __future__ import annotations

import contextlib
import re
import sys
from urllib.parse import urlsplit

UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # controls except tab and newline: ESC and the C1 controls included
    "\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"  # invisible, or changes direction
    "\ud800-\udfff\U000e0000-\U000e007f]"  # surrogates, tags
)


def printable(text: object) -> str:
    r"""`text` with characters such as `\x1b` and `\u202e` spelt out; \r\n counts as a newline."""
    return UNSAFE.sub(_spelt, str(text).replace("\r\n", "\n"))


def _spelt(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" if code < 65536 else f"\\U{code:08x}"


def server_of(url: str) -> str:
    """`https://host:port` of a URL: its path, query and user may hold a key, and a message may end in a
    file."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def print_anything() -> None:
    """From now on the standard streams write characters that their encoding lacks as escapes; Python would
    raise."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, ValueError, OSError):  # replaced by a program, or closed
            stream.reconfigure(errors="backslashreplace")
