"""Text that stays text on a terminal and on a page: what moves a cursor, turns a line round or cannot be encoded is
written as its escape. Left out: markup, which rich's `Text` and the page's template see to.
"""

from __future__ import annotations

import re

UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # controls but tab and newline; ESC and its one-byte kin among them
    "\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"  # invisible, or changes the direction
    "\ud800-\udfff\U000e0000-\U000e007f]"  # half a pair, tags
)


def printable(text: object) -> str:
    r"""`text` with `\x1b`, `\u202e` and the like spelt out; line ends of the form \r\n count as newlines."""
    return UNSAFE.sub(_spelt, str(text).replace("\r\n", "\n"))


def _spelt(match: re.Match[str]) -> str:
    code = ord(match[0])
    return (
        f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" if code < 65536 else f"\\U{code:08x}"
    )


def both_ends(text: object, most: int) -> str:
    """`text`, or its beginning and its end (where answers stand) and how many characters lie between them."""
    whole = str(text)
    if len(whole) <= most:
        return printable(whole)
    end = most // 3
    left_out = f"\n[… {len(whole) - most:,} more characters …]\n"
    return printable(whole[: most - end]) + left_out + printable(whole[-end:])
