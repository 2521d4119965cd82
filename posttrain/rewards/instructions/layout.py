r"""IFEval: detectable content and format (Zhou et al. 2023, arXiv 2311.07911).

The official patterns are written here as searches by line where they would need quadratic time (`\[.*?\]`
over a million `[`). Left out: a Markdown parser; code blocks are text like any other.
"""

from __future__ import annotations

import json
import re

from posttrain.rewards.instructions.table import at_least, exactly, instruction, unless

OPTIONS = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
MARKERS = {"P.P.S": r"p\.\s?p\.\s?s", "P.S.": r"p\.\s?s\."}
HIGHLIGHT = re.compile(r"\*[^\n*]*\*")
DOUBLE = re.compile(r"\*\*[^\n*]*\*\*")
EMPHASIS = re.compile(r"(?<!\*)(\*{1,3})(?=[^\s*])[^\n*]*(?<=[^\s*])\1(?!\*)")
BULLET = re.compile(r"^[ \t]*[*+\-][ \t]+\S", re.MULTILINE)
PLACEHOLDER = re.compile(r"\[([^\[\]\n]*)\](?!\()")


@instruction("detectable_content:number_placeholders")
def number_placeholders(text: str, num_placeholders: int, fixed: bool) -> str:
    """At least `num_placeholders` times `[...]`; `fixed`: neither empty nor a link."""
    if fixed:
        count = sum(1 for one in PLACEHOLDER.finditer(text) if one[1].strip())
    else:
        count = sum(_brackets(line) for line in text.split("\n"))
    return at_least(count, num_placeholders, "placeholders")


def _brackets(line: str) -> int:
    count, end = 0, -1
    while (begin := line.find("[", end + 1)) >= 0 and (end := line.find("]", begin)) >= 0:
        count += 1
    return count


@instruction("detectable_content:postscript")
def postscript(text: str, postscript_marker: str, fixed: bool) -> str:
    """The marker occurs; `fixed`: at the beginning of a line after the first."""
    marker = postscript_marker.strip()
    pattern = MARKERS.get(marker, re.escape(marker.lower()) if fixed else marker.lower())
    text = text.lower()
    if fixed:
        pattern, text = rf"^[ \t>*_#]*{pattern}", text.strip().partition("\n")[2]
    try:
        return unless(re.search(pattern, text, re.MULTILINE) is not None, f"no postscript {marker!r}")
    except re.error as error:
        raise ValueError(f"{marker!r} is not a regular expression ({error})") from None


@instruction("detectable_format:number_bullet_lists")
def number_bullet_lists(text: str, num_bullets: int, fixed: bool) -> str:
    """Exactly `num_bullets` bullet points.

    `compat` counts every line that begins with `-` or with one `*` (a rule `---` and `*emphasis*` among
    them); `fixed` wants a space after the bullet.
    """
    count = _bullet_lines(text) if not fixed else sum(1 for _ in BULLET.finditer(text))
    return exactly(count, num_bullets, "bullet points")


def _bullet_lines(text: str) -> int:
    lines = [line.lstrip() for line in text.split("\n")]
    count = sum(1 for line in lines if line.startswith("-"))
    number = 0
    while number < len(lines):
        line = lines[number]
        if line == "*" and number + 1 < len(lines):  # officially its bullet is the line after it
            count += 1
            number += 1
        elif line.startswith("*") and line[1:2] not in ("", "*"):
            count += 1
        number += 1
    return count


@instruction("detectable_format:constrained_response")
def constrained_response(text: str, fixed: bool) -> str:
    """Contains one of three answers; `fixed`: is one of them, ignoring quotes and emphasis."""
    followed = text.strip().strip("*_\"'` \n") in OPTIONS if fixed else any(one in text for one in OPTIONS)
    return unless(followed, "none of 'My answer is yes.', '... no.', '... maybe.'")


@instruction("detectable_format:number_highlighted_sections")
def number_highlighted_sections(text: str, num_highlights: int, fixed: bool) -> str:
    """At least `num_highlights` `*highlighted*` or `**highlighted**` parts within a line."""
    if fixed:
        count = sum(1 for _ in EMPHASIS.finditer(text))
    else:
        once = sum(1 for one in HIGHLIGHT.finditer(text) if one[0].strip("*").strip())
        count = once + sum(1 for one in DOUBLE.finditer(text) if one[0][2:-2].strip())
    return at_least(count, num_highlights, "highlighted sections")


@instruction("detectable_format:multiple_sections")
def multiple_sections(text: str, section_spliter: str, num_sections: int, fixed: bool) -> str:
    """At least `num_sections` `Section 1` marks; `fixed`: exactly, each at the beginning of a line."""
    mark = section_spliter.strip()
    if fixed:
        found = re.findall(rf"^[ \t>*_#]*{re.escape(mark)}[ \t]*\d+", text, re.MULTILINE)
        return exactly(len(found), num_sections, "sections")
    try:
        count = sum(1 for _ in re.finditer(rf"\s?{mark}\s?\d+\s?", text))
    except re.error as error:
        raise ValueError(f"{mark!r} is not a regular expression ({error})") from None
    return at_least(count, num_sections, "sections")


@instruction("detectable_format:json_format")
def json_format(text: str, fixed: bool) -> str:
    """The text is JSON, with or without a fence; `fixed`: without `NaN` and `Infinity`."""
    text = text.strip()
    for fence in ("```json", "```Json", "```JSON", "```"):
        text = text.removeprefix(fence)
    try:
        json.loads(text.removesuffix("```").strip(), parse_constant=_refuse if fixed else None)
    except (ValueError, RecursionError) as error:
        return f"no JSON: {str(error)[:80]}"
    return ""


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is not in the standard")


@instruction("detectable_format:title")
def title(text: str, fixed: bool) -> str:
    """A title in double angle brackets; `fixed`: with no other bracket inside."""
    if fixed:
        found = re.findall(r"<<([^<>\n]*)>>", text)
    else:
        found = []
        for line in text.split("\n"):
            begin, end = line.find("<<"), line.rfind(">>")
            if 0 <= begin < end - 2:
                found.append(line[begin : end + 2].lstrip("<").rstrip(">"))
    return unless(any(one.strip() for one in found), "no <<title>>")
