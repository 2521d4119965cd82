"""Rollouts read from files and shown on a terminal: what is tolerated, what is picked, what stays text."""

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
from posttrain.report.text import UNSAFE, both_ends, printable
from posttrain.rundir.reading import RunData
from posttrain.rundir.rollouts import KINDS, Completion, Rollouts, pick
from tests.report import stages
from tests.rundir.written import lines

MOVES = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f]")
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
ANY = st.characters(exclude_categories=())
"""Halves of surrogate pairs too, which JSON can spell."""
FIELDS = (
    "step",
    "group",
    "round",
    "position",
    "prompt",
    "answer",
    "completion",
    "tokens",
    "finish",
    "reward",
    "success",
    "components",
    "advantage",
    "trained",
    "source",
    "where",
)


@pytest.fixture
def run(tmp_path):
    """Steps 1, 3 and 5, four prompts with four samples each."""
    for step in (1, 3, 5):
        stages.rollouts(tmp_path / "run", step)
    return tmp_path / "run"


def shown(path, as_json=False, terminal=False, width=100, **wanted) -> str:
    out = io.StringIO()
    console = Console(file=out, width=width, color_system=None, force_terminal=terminal)
    show_rollouts(path, console, Wanted(**wanted), as_json)
    return out.getvalue()


def test_kinds_by_hand(run):
    """(group + sample) % 3 == 0 is right: groups 0 to 3 hold 2, 1, 2, 2 of them, group 2's one at sample 1 and none at
    its failed sample 3 (2 + 3 is no multiple): 6 right, 9 wrong, 1 failed. Group 3 and the failed one are not trained."""
    every = [Completion.of(row) for row in Rollouts(run).rows(3)]
    counts = {name: sum(map(fits, every)) for name, fits in KINDS.items()}
    assert counts == {"all": 16, "right": 6, "wrong": 9, "failed": 1, "cut": 1, "dropped": 5}
    assert [c.answer for c in every][::4] == ["0", "7", "14", "21"]


def test_a_failed_part_without_weight_is_a_failed_check():
    row = stages.rollout(0, 0)
    row["components"]["tags"] = {"value": None, "status": "error", "reason": "lost"}
    assert Completion.of(row).failed and Completion.of(row).reward == 1.2
    assert not Completion.of(stages.rollout(0, 0)).failed


def test_torn_lines_and_lost_files_are_named(run):
    file = run / "rollouts" / "step-000003.jsonl"
    whole = file.read_text().splitlines()
    deep = "[" * 100_000
    file.write_text("\n".join([whole[0], "{torn", "7", "", deep, "9" * 5000, whole[1][:-9]]) + "\n")
    held = Rollouts(run)
    assert len(list(held.rows(3))) == 1
    assert held.unread == ["rollouts/step-000003.jsonl: 5 lines are no row (the first: line 2)"]
    assert "could not be read: rollouts/step-000003.jsonl: 5 lines" in shown(run, step=3)
    file.unlink()
    assert list(held.rows(3)) == [] and "No such file" in held.unread[-1]
    file.mkdir()
    (run / "rollouts" / "step-7.jsonl.tmp").touch()
    held = Rollouts(run)
    assert list(held.files) == [1, 3, 5] and len(list(held.rows(5))) == 16
    assert held.unread == [], "nothing is opened before it is asked for"
    assert list(held.rows(3)) == [] and "directory" in held.unread[0]


def test_groups_are_whole_whatever_the_order(tmp_path):
    """Ranks may write their samples in turns; a refill round numbers its groups anew."""
    rows = [stages.rollout(g, s) for s in range(2) for g in range(2)]
    rows += [stages.rollout(0, s, round=1, prompt="again") for s in range(2)]
    rows += [{"completion": "no group"}, {"completion": "nor this"}]
    lines(tmp_path / "rollouts" / "step-000013.jsonl", rows)
    groups = list(Rollouts(tmp_path).groups(13))
    assert [len(g) for g in groups] == [2, 2, 2, 1, 1] and groups[2][0].prompt == "again"


def test_chunks_count_where_there_are_no_steps(tmp_path):
    stages.rollouts(tmp_path, 4, kind="chunk")
    assert (Rollouts(tmp_path).kind, list(Rollouts(tmp_path).files)) == ("chunk", [4])
    stages.rollouts(tmp_path, 9)
    assert (Rollouts(tmp_path).kind, list(Rollouts(tmp_path).files)) == ("step", [9])
    assert not Rollouts(tmp_path / "none")


def test_best_and_worst_by_hand(tmp_path):
    """Rewards 2 1 1 0 0 -1: best first; of the two 1s the rarer success; a failed one is neither; a prompt once."""
    values = [(0, 2, 0.1), (1, 1, 0.5), (2, 1, 1.5), (3, 0, -0.2), (4, 0, -0.9), (5, -1, 0), (0, 1.9, 9)]
    rows = [
        stages.rollout(g, i, position=g, reward=float(r), advantage=a, completion=f"{r} {a}")
        for i, (g, r, a) in enumerate(values)
    ]
    rows.append(stages.rollout(6, 0, position=6, reward=None, success=None, completion="lost"))
    for g, r in ((7, 0.5), (8, -2.0)):
        rows.append(stages.rollout(g, 0, position=g, reward=r, finish="length", completion=f"cut {r}"))
    lines(tmp_path / "rollouts" / "step-000001.jsonl", rows)
    found = {title: [c.text for c in group] for title, group in pick(Rollouts(tmp_path))}
    assert found == {
        "Highest reward": ["2 0.1", "1 1.5", "1 0.5"],
        "Lowest reward": ["cut -2.0", "-1 0", "0 -0.9"],
        "Cut off": ["cut 0.5"],
        "Check failed": ["lost"],
    }


def test_equal_rewards_are_not_called_best(tmp_path):
    lines(tmp_path / "rollouts" / "step-000001.jsonl", [stages.rollout(g, 0, reward=0.0) for g in range(9)])
    assert [(t, len(found)) for t, found in pick(Rollouts(tmp_path))] == [("Samples; every reward is 0", 3)]


def test_only_the_last_files_are_picked_from(run):
    (run / "rollouts" / "step-000001.jsonl").write_text("torn")
    rollouts = Rollouts(run)
    steps = {c.step for _, found in pick(rollouts, each=20, files=2) for c in found}
    assert steps == {3, 5} and rollouts.unread == []


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.sampled_from(FIELDS), JSON))
def test_any_row_becomes_a_completion(row):
    c = Completion.of(row)
    assert all(isinstance(text, str) for text in (c.text, c.prompt, c.finish, c.place, *c.notes))
    assert [isinstance(fits(c), bool) for fits in KINDS.values()] == [True] * 6
    assert c.reward is None or abs(c.reward) < float("inf")


@given(st.text(ANY, max_size=40))
def test_printable_moves_nothing_and_can_be_encoded(text):
    safe = printable(text)
    assert not MOVES.search(safe.replace("\t", "")) and printable(safe) == safe
    safe.encode("utf-8")
    if not UNSAFE.search(text):
        assert safe == text


def test_printable_by_hand():
    assert printable("a\x1b[31mb\r\nc\rd\x9b2J\u202eR\ud800") == "a\\x1b[31mb\nc\\x0dd\\x9b2J\\u202eR\\ud800"
    assert printable("é 漢 👩\u200d🚀\tx") == "é 漢 👩\u200d🚀\tx"
    assert both_ends("abcdefghij", 10) == "abcdefghij"
    assert both_ends("abcdefghijk", 6) == "abcd\n[… 5 more characters …]\njk"


@settings(max_examples=60, deadline=None)
@given(st.text(ANY, max_size=60), st.booleans())
def test_nothing_a_model_wrote_leaves_its_bars(tmp_path_factory, text, terminal):
    """Every line of ours is known beforehand; what is left stands behind a bar, on a terminal too."""
    path = tmp_path_factory.mktemp("run")
    row = stages.rollout(1, 0, prompt=text, completion=text, answer=text, source="s", where="w")
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
    lines(run / "rollouts" / "step-000005.jsonl", [stages.rollout(0, 0, completion="\x9b2J\x1b[2J\ud800")])
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
    huge = stages.rollout(0, 0, completion="\x1b" + "<b>x" * 250_000 + " #### 42")
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
    assert "nothing in it is trained" in refused(str(pairs), "--rollouts", "--where", "dropped")
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
        f"import sys; from posttrain.cli import main\nassert main(['show', {str(run)!r}, '--rollouts']) == 0\n"
        "sys.exit(str([m for m in ('torch', 'transformers', 'matplotlib') if m in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stderr.strip() == "[]" and "What is 2*7?" in done.stdout
