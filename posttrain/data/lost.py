"""What was lost of the rows of a source: how many, for which reason, and the first few of each.

Also what was found in the rows that are kept: keys that were ignored, columns that were not used, control
tokens in their texts. Left out: the reasons (reasons.py), the rows (make_table.py).
"""

from __future__ import annotations

from collections import Counter
from typing import Any

SHOWN = 5
"""Lost rows kept for each reason."""
EXAMPLES, COUNTED = "dropped_examples", ("ignored", "unused", "control_tokens")


class Lost:
    """The dropped and truncated rows of a source: how many for each reason, and the first few."""

    def __init__(self) -> None:
        self.kept = 0
        self.counts: Counter[str] = Counter()
        self.examples: list[dict[str, str]] = []
        self.found: dict[str, Counter[str]] = {name: Counter() for name in COUNTED}
        self.tokenised = 0

    def count(self, kept: int, tokenised: int, found: dict[str, Counter[str]]) -> None:
        """Count rows that are kept; `found`: name of `COUNTED` -> in how many of them what is found."""
        self.kept += kept
        self.tokenised += tokenised
        for name, counts in found.items():
            self.found[name].update(counts)

    def take_up(self, state: Any) -> bool:
        """Goes on with what `stats` gave; False if it is anything else, which changes nothing."""
        try:
            counts = {name: Counter(state.get(name, {})) for name in ("dropped", *COUNTED)}
            examples = [{key: each[key] for key in ("reason", "where", "detail")} for each in state[EXAMPLES]]
            numbers = [state[name] for name in ("read", "kept", "truncated", "tokenised")]
            numbers += [number for each in counts.values() for number in each.values()]
            if not all(type(number) is int and number >= 0 for number in numbers):
                return False
        except (LookupError, TypeError, ValueError, AttributeError):
            return False
        self.kept, self.tokenised, self.examples = state["kept"], state["tokenised"], examples
        self.counts = counts.pop("dropped")
        self.counts["truncated"] = state["truncated"]
        self.found = counts
        return True

    def add(self, reason: str, where: str, detail: str) -> None:
        self.counts[reason] += 1
        if self.counts[reason] <= SHOWN:
            self.examples.append({"reason": reason, "where": where, "detail": detail})

    def stats(self) -> dict[str, Any]:
        """What a table keeps of them."""
        dropped = {reason: n for reason, n in _ranked(self.counts).items() if reason != "truncated"}
        facts = {"dropped": dropped, "truncated": self.counts["truncated"], EXAMPLES: self.examples}
        found = {name: _ranked(each) for name, each in self.found.items()}
        facts |= {"control_tokens": found.pop("control_tokens"), "tokenised": self.tokenised}
        return facts | {name: counts for name, counts in found.items() if counts}


def _ranked(counts: Counter[str]) -> dict[str, int]:
    """The largest first; of equal ones, by name: sets have another order in every process."""
    return dict(sorted(counts.items(), key=lambda each: (-each[1], each[0])))
