"""The program blocks of a completion, found line by line: nothing is parsed or run in this process.

Fenced blocks (``` or ~~~) marked as Python are preferred to unmarked ones; blocks of other languages count
only if there are no others. A fence that is never closed extends to the end. Without a fence, the whole text
is the program. Left out: thinking, which `check.programs` removes, and which block is the program
(`sandbox.inside.program`).
"""

from __future__ import annotations

import re

LONGEST = 2_000_000
"""Characters of a completion; a longer one is refused as too costly."""
MOST_BLOCKS = 32
"""Only this many blocks, the last ones, are considered."""
FENCE = re.compile(r"^([ \t>]{0,12})(`{3,}|~{3,})[ \t]*([\w+#.-]*)(.*)$")
PYTHON = frozenset(("python", "py", "python3", "py3", "python2", "ipython", "pycon"))


def blocks(text: str) -> list[str]:
    """The blocks that may be the program, the likeliest last; empty if there are none."""
    fenced = list(_fenced(text))
    if not fenced:
        return [text.strip("\n")] if text.strip() else []
    python = [body for language, body in fenced if language in PYTHON]
    plain = [body for language, body in fenced if not language]
    found = [body for body in python or plain or [b for _, b in fenced] if body.strip()]
    return found[-MOST_BLOCKS:]


def _fenced(text: str):
    """(language, body) of every fenced block."""
    mark, language, indent, lines = "", "", "", []
    for line in text.splitlines():
        match = FENCE.match(line) if "```" in line or "~~~" in line else None
        if not mark:
            if match and not (match[2][0] == "`" and "`" in match[4]):
                mark, language, indent, lines = match[2], match[3].lower(), match[1], []
        elif (
            match
            and match[2][0] == mark[0]
            and len(match[2]) >= len(mark)
            and not (match[3] or match[4].strip())
        ):
            yield language, "\n".join(lines)
            mark = ""
        else:
            lines.append(line.removeprefix(indent) if indent else line)
    if mark:
        yield language, "\n".join(lines)
