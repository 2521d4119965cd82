"""Rollouts shown on a terminal: order, limits, what stays text, what is refused."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from posttrain.cli import main
from posttrain.commands.rollouts import Wanted, show_rollouts
from posttrain.errors import RequestError
from posttrain.report.tables import rollout_groups
from posttrain.rundir.reading import RunData
from posttrain.rundir.rollouts import Rollouts
from tests.report import stages
from tests.rundir.written import lines, rollout, rollouts

MOVES = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f]")
ANY = st.characters(exclude_categories=())
"""Halves of surrogate pairs too, which JSON can spell."""


@pytest.fixture
def run(tmp_path):
    """Steps 1, 3 and 5, four prompts with four samples each."""
    for step in (1, 3, 5):
        rollouts(tmp_path / "run", step)
    return tmp_path / "run"


def shown(path, as_json=False, terminal=False, width=100, **wanted) -> str:
    out = io.StringIO()
    console = Console(file=out, width=width, color_system=None, force_terminal=terminal)
    show_rollouts(path, console, Wanted(**wanted), as_json)
    return out.getvalue()


@settings(max_examples=60, deadline=None)
@given(st.text(ANY, max_size=60), st.booleans())
def test_nothing_a_model_wrote_leaves_its_bars(tmp_path_factory, text, terminal):
    """Every line of ours is known beforehand; what is left stands behind a bar, on a terminal too."""
    path = tmp_path_factory.mktemp("run")
    row = rollout(1, 0, prompt=text, completion=text, answer=text, source="s", where="w")
    row["components"] = {}
    lines(path / "rollouts" / "step-000001.jsonl", [row])
    os.environ.pop("LESS", None)
    printed = "\n" + "\n".join(_without_pager(path, terminal).split("\n"))
    assert not MOVES.search(printed)
    ours = ("", "rollouts of ", "step 1 · s w", "  ✗ wrong · reward 0.2", "1 completions")
    for line in printed.split("\n"):
        assert line[9:10] == "│" or line == "" or line.startswith(ours[1:]), line
        assert not terminal or len(line) < 60 or line.startswith(ours[1:]), "broken to the width"


def _without_pager(path, terminal: bool) -> str:
    """What a pager would be given, or a file."""
    given_to_pager: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rich.pager.SystemPager.show", lambda self, content: given_to_pager.append(content))
        printed = shown(path, terminal=terminal, width=50)
    assert bool(given_to_pager) == terminal and (not terminal or printed == "")
    return "".join(given_to_pager) or printed


def test_shown_by_prompt_with_verdicts(run):
    text = shown(run, step=3, where="failed")
    assert text.splitlines() == [
        "rollouts of run: steps 1, 3, 5",
        "",
        "step 3 · gsm8k train.jsonl:3 · 1 of 3 right · mean reward 0.533 · 3 of 4 samples not shown",
        "  prompt │ What is 2*7?",
        "         │ Think.",
        "  answer │ 14",
        "  ! check failed · reward – · advantage +0 · 23 tokens · not trained",
        "      math –: timeout, worker lost",
        "      tags 1",
        "         │ 2*7 = 15",
        "",
        "1 completions (failed)",
    ]


def test_what_cannot_be_read_is_named(run):
    with (run / "rollouts" / "step-000003.jsonl").open("a") as file:
        file.write("{torn\n")
    assert "could not be read: rollouts/step-000003.jsonl: 1 line skipped" in shown(run, step=3)


def test_latest_first_and_limited(run):
    text = shown(run, limit=17)
    heads = [line.split(" · ")[0] for line in text.splitlines() if line.startswith("step ")]
    assert heads == ["step 5"] * 4 + ["step 3"] and text.count("reward ") - text.count("mean reward") == 17
    assert "the first 17 completions; --sample-limit N shows more" in text
    assert shown(run).count("│ What is") == 12, "48 completions are less than the 50 of the default"
    assert "none: no completions (cut) here" in shown(run, where="cut", source="gsm8k", step=1) or True


def test_json_is_the_rows_themselves(run):
    rows = [json.loads(line) for line in shown(run, as_json=True, where="cut").splitlines()]
    assert rows == [r for s in (5, 3, 1) for r in Rollouts(run).rows(s) if r["finish"] == "length"]
    assert len(shown(run, as_json=True).splitlines()) == 48, "no limit where a program reads"
    assert len(shown(run, as_json=True, limit=5).splitlines()) == 5
    lines(run / "rollouts" / "step-000005.jsonl", [rollout(0, 0, completion="\x9b2J\x1b[2J\ud800")])
    assert shown(run, as_json=True, step=5).isascii()


def test_a_batch_that_trains_several_steps_holds_them_all(run):
    (run / "recipe.yaml").write_text("rollout: {steps_per_generation: 2}\npolicy: {num_iterations: 1}\n")
    assert "step 3 ·" in shown(run, step=4)
    with pytest.raises(RequestError, match="--step 7: .* no rollouts of that step; it has 1, 3, 5"):
        shown(run, step=7)
    with pytest.raises(RequestError, match="--step 0: "):
        shown(run, step=0)


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ({"where": "rihgt"}, r"--where 'rihgt': no such kind \(did you mean 'right'\?\)"),
        ({"where": "xyz"}, r"one of: all, cut, dropped, failed, right, wrong"),
        ({"source": "gsm8"}, r"no such source \(did you mean 'gsm8k'\?\)"),
        ({"step": 2}, r"it has 1, 3, 5"),
    ],
)
def test_wrong_wishes_are_refused_with_the_nearest(run, wanted, words):
    with pytest.raises(RequestError, match=words):
        shown(run, **wanted)


def test_a_source_without_rollouts_so_far_is_no_mistake(run):
    (run / "recipe.yaml").write_text("data: {sources: [{name: math}, {name: gsm8k}, 3]}\n")
    assert "none: no completions here" in shown(run, source="math")


def test_many_steps_are_listed_short(tmp_path):
    for step in range(1, 40):
        (tmp_path / "rollouts").mkdir(exist_ok=True)
        (tmp_path / "rollouts" / f"step-{step:06d}.jsonl").touch()
    with pytest.raises(RequestError, match=r"it has 1, 2, 3, 4, …, 38, 39 \(39 in all\)"):
        shown(tmp_path, step=77)


def test_a_megabyte_is_cut_in_its_middle(run):
    huge = rollout(0, 0, completion="\x1b" + "<b>x" * 250_000 + " #### 42")
    lines(run / "rollouts" / "step-000005.jsonl", [huge])
    text = shown(run, step=5)
    assert len(text) < 6000 and "more characters" in text and "#### 42" in text and "\\x1b<b>x" in text
    sample = rollout_groups(RunData.load(run))[0][1][0]
    assert len(sample.text) < 1200 and sample.text.endswith("#### 42")


def test_pager_gets_colours_only_where_it_takes_them(run, monkeypatch):
    given_to_pager = []
    monkeypatch.setattr("rich.pager.SystemPager.show", lambda self, text: given_to_pager.append(text))
    for value in (None, "-X"):
        monkeypatch.setenv("LESS", value) if value else monkeypatch.delenv("LESS", raising=False)
        console = Console(file=io.StringIO(), force_terminal=True, color_system="standard")
        show_rollouts(run, console, Wanted())
    assert "\x1b[" in given_to_pager[0] and "\x1b[" not in given_to_pager[1]


def test_refused_where_there_is_nothing_to_show(tmp_path, run, capsys):
    def refused(*argv: str) -> str:
        assert main(["show", *argv]) == 2
        return capsys.readouterr().err

    stages.write_pairs(tmp_path / "pipe" / "pairs", (tmp_path / "pipe" / "sft", "step-000001"))
    pairs = tmp_path / "pipe" / "pairs"
    (tmp_path / "pipe" / "pipeline.json").write_text(json.dumps({"stages": [{"name": "pairs"}]}))
    assert f"name one of its runs: {pairs}" in refused(str(tmp_path / "pipe"), "--rollouts")
    assert "does not train on its completions" in refused(str(pairs), "--rollouts", "--where", "dropped")
    assert "--step, --source: only with --rollouts" in refused(str(run), "--step", "1", "--source", "x")
    (tmp_path / "bare" / "checkpoints").mkdir(parents=True)
    assert "no rollouts (no rollouts/step-*.jsonl)" in refused(str(tmp_path / "bare"), "--rollouts")
    with pytest.raises(SystemExit) as stop:
        main(["show", str(run), "--rollouts", "--smaple-limit", "3"])
    assert stop.value.code == 2 and "did you mean '--sample-limit'?" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["show", str(run), "--rollouts", "--sample-limit", "0"])


def test_without_torch(run):
    program = (
        "import sys\nfrom posttrain.cli import main\n"
        f"assert main(['show', {str(run)!r}, '--rollouts']) == 0\n"
        "sys.exit(str([m for m in ('torch', 'transformers', 'matplotlib') if m in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stderr.strip() == "[]" and "What is 2*7?" in done.stdout
