"""The scorecard of a run."""

from __future__ import annotations

from posttrain.report.scorecard import scorecard_markdown, write_scorecard
from posttrain.rundir.scores import ScoreStore
from tests.rundir.written import stored


def test_the_scorecard(tmp_path):
    store = ScoreStore(tmp_path / "quick")
    assert "Nothing has been scored" in scorecard_markdown(store.run_dir)
    scores = []
    for step, up in ((0, 0.0), (300, 0.2), (600, 0.1)):
        scores += [stored(step, f"pass@{2**i}", 0.1 + up + i / 100) for i in range(13)]
        scores.append(stored(step, "nll", 2 - up))
    store.append(scores)
    card = scorecard_markdown(store.run_dir)
    assert write_scorecard(store.run_dir) == tmp_path / "quick/scorecard.md"
    assert card == (tmp_path / "quick/scorecard.md").read_text()
    assert card.startswith("# Scores of quick\n\n## arithmetic (41 problems)\n")
    head = next(line for line in card.splitlines() if line.startswith("| step"))
    assert head == "| step | pass@1 | pass@16 | pass@256 | pass@4096 | nll |"
    assert "| 300 | **.300** [.200–.400] |" in card and "**1.8** [1.7–1.9]" in card
    assert "| 0 | .100 [" in card and card.count("**") == 2 * 5
