"""`posttrain tasks list | show | check` as a user types them, on tasks of their own."""

from __future__ import annotations

import json

import pytest

from posttrain.evaluate.tasks.catalogue import names

TASK = """about: Sums
kind: generate
source: {file: rows.jsonl, licence: CC0}
prompt: question
answer: answer
where: answer != 0
group: kind
shots: {n: 1, answer: worked}
reward: {name: math, options: {mode: gsm8k}}
stop: ["Q:"]
published: 12.5, a model (a paper)
"""
ROWS = [
    {"question": "1 + 1?", "answer": 2, "worked": "It is 2.", "kind": "sum"},
    {"question": "1 - 1?", "answer": 0, "worked": "It is 0.", "kind": "difference"},
    {"question": "3 - 1?", "answer": 2.0, "worked": "It is two: 2.", "kind": "difference"},
]


@pytest.fixture
def mine(tmp_path):
    """A task file and its rows."""
    (tmp_path / "mine.yaml").write_text(TASK)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return tmp_path / "mine.yaml"


def edit(path, old: str, new: str) -> None:
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


def test_list_says_what_is_at_hand(call, tmp_path, monkeypatch):
    monkeypatch.setenv("POSTTRAIN_DATA", str(tmp_path))
    (tmp_path / "svamp").mkdir()
    row = {"ID": "a", "Body": "A", "Question": "B?", "Answer": 1.0, "Type": "x"}
    (tmp_path / "svamp" / "SVAMP.json").write_text(json.dumps([row, row]))
    facts = {fact["name"]: fact for fact in json.loads(call("tasks", "list", "--json").out)}
    assert list(facts) == names()
    shown = [(facts[n]["kind"], facts[n]["rows"], facts[n]["data"]) for n in ("svamp", "gsm8k", "bbh")]
    assert shown == [("generate", 2, "here"), ("generate", None, "hub"), ("generate", None, "not at hand")]
    assert (facts["arithmetic"]["rows"], facts["arithmetic"]["data"]) == (1000, "generated")
    table = call("tasks", "list")
    assert table.code == 0 and all(len(line) <= 80 for line in table.out.splitlines())
    lines = {line.split()[0]: line.split() for line in table.out.splitlines()}
    assert lines["svamp"] == ["svamp", "generate", "2", "here", "not", "measured"]
    assert lines["bbh"] == ["bbh", "generate", "-", "not", "at", "hand", "69.0"]


def test_show_renders_rows_without_a_model(call, mine):
    answer = call("tasks", "show", mine)
    assert answer.code == 0, answer.err
    text = " ".join(answer.out.split())
    for words in (
        "about Sums kind generate",
        "rows 2 of /",
        "left out 1 of 3, for which this is false: answer != 0",
        "source rows.jsonl beside the task file; licence CC0",
        "judged by reward math with mode: gsm8k",
        "1 completion, temperature 1, top_p 1, 512 tokens, until 'Q:'",
        "metrics pass@1, truncated, parsed, tokens_mean",
        "published 12.5, a model (a paper)",
        ":1 (id 00000, group sum) [user] 1 - 1? [assistant] It is 0. [user] 1 + 1? [answer] 2 ",
        "[user] 1 + 1? [assistant] It is 2. [user] 3 - 1? [answer] 2.0",
    ):
        assert words in text, text
    one = call("tasks", "show", mine, "--rows", "1", "prefill=x")
    assert one.code == 2 and "prefill" in one.err
    one = call("tasks", "show", mine, "--rows", "1", "options.prefill=So", "samples=4")
    assert "3 - 1?" not in one.out and "[begun reply]\nSo\n" in one.out and "4 completions" in one.out


def test_shots_that_stand_above_are_not_repeated(call, mine):
    edit(mine, "shots: {n: 1, answer: worked}", "system: Think.")
    assert call("tasks", "show", mine).out.count("Think.") == 1


def test_show_of_data_that_are_not_here_says_how_to_get_them(call, monkeypatch, tmp_path):
    monkeypatch.setenv("POSTTRAIN_DATA", str(tmp_path))
    answer = call("tasks", "show", "gsm8k")
    text = "".join(answer.out.split())
    assert answer.code == 0 and "onthehub:openai/gsm8kmaintest" in text and "licenceMIT" in text
    assert "datasets.load_dataset('openai/gsm8k','main',split='test').to_json(" in text
    answer = call("tasks", "show", "bbh")
    assert answer.code == 2
    assert "from github.com/suzgunmirac/BIG-Bench-Hard (licence: MIT)" in answer.err


def test_check_counts(call, mine):
    answer = call("tasks", "check", mine)
    assert (answer.code, answer.err) == (0, "")
    assert answer.out.splitlines() == [
        "mine: 2 rows read",
        "right replies: 2 of 2 score 1.0",
        "spoiled replies: 2 of 2 score 0",
    ]
    facts = json.loads(call("tasks", "check", mine, "--json").out)
    assert facts == {
        "name": "mine",
        "rows": 2,
        "right": {"of": 2, "as wanted": 2},
        "spoiled": {"of": 2, "as wanted": 2},
        "failures": [],
    }


def test_check_names_rows_that_are_judged_wrong(call, mine):
    edit(mine, "stop:", "reply: \"{{ completion | replace('4', '2') }}\"\nstop:")
    answer = call("tasks", "check", mine)
    assert answer.code == 1 and "task mine: replies are not judged as they should be" in answer.err
    assert "spoiled replies: 0 of 2 score 0" in answer.out
    assert "rows.jsonl:1: the spoiled reply 'The answer is $\\\\boxed{4}$.' scores 1 (scored)" in answer.out
    fixed = call("tasks", "check", mine, "options.reply='{{ completion }}'")
    assert fixed.code == 0, fixed.out


def test_check_of_other_rows_and_of_a_broken_one(call, mine, tmp_path):
    edit(mine, "shots: {n: 1, answer: worked}\n", "")
    other = tmp_path / "other.jsonl"
    other.write_text(json.dumps(ROWS[0]) + "\n" + json.dumps(ROWS[0] | {"answer": None}) + "\n")
    answer = call("tasks", "check", mine, "--path", other)
    assert answer.code == 2 and "other.jsonl:2: column 'answer' is None" in answer.err


def test_check_without_a_known_reply(call, mine):
    edit(mine, "{name: math, options: {mode: gsm8k}}", "{name: regex, options: {pattern: '\\d+'}}")
    answer = call("tasks", "check", mine)
    assert answer.code == 0 and answer.out.splitlines()[1:] == [
        "not judged: no right reply is known; set gold in the task file"
    ]
    edit(mine, "stop:", 'gold: "{{ answer }}"\nstop:')
    wrong = call("tasks", "check", mine)  # any number is right, and 2.0 is none
    assert wrong.code == 1 and "right replies: 1 of 2 score 1.0" in wrong.out


def test_check_of_an_exact_task_reads_its_rows(call, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"problem": "?", "answer": "1"}) + "\n")
    answer = call("tasks", "check", "direct_answers", "--path", rows)
    assert answer.code == 0 and answer.out.splitlines() == [
        "direct_answers: 1 row read",
        "not judged: nothing is sampled",
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("show", "gsm8"), "'gsm8' is not a task (did you mean 'gsm8k'?)"),
        (("check", "nowhere.yaml"), "nowhere.yaml: no such task file"),
        (("show", "gsm8k", "option=1"), "did you mean 'options'?"),
    ],
)
def test_what_is_refused(call, words, message):
    answer = call("tasks", *words)
    assert answer.code == 2 and message in answer.err
