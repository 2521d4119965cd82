"""The judge against a real HTTP server in a thread: good replies, garbage, failures, slowness, silence."""

from __future__ import annotations

import json
import re
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.errors import RequestError
from posttrain.rewards.engine.batch import score_batch
from posttrain.rewards.model_based import judge_http
from posttrain.rewards.model_based.judge_words import read_score
from posttrain.rewards.registry import bind
from posttrain.types import Example, Verdict

ROW = Example(prompt="Name a colour.", answer="red", extra={"reference": "blue"})


def judged(server, *completions, row=ROW, **options) -> list[Verdict]:
    options = {"url": server.url, "model": "m", "cache": "", "retries": 2} | options
    return score_batch(bind("judge", options), completions, [row] * len(completions))


def test_a_score_in_tenths_and_what_was_asked(server):
    (verdict,) = judged(server, "<think>mm</think>Green.", rubric="Is it {short}?", max_tokens=50)
    assert (verdict.value, verdict.status) == (0.7, "scored") and verdict.details["scores"] == [7.0]
    (asked,) = server.asked
    assert server.headers[0]["path"] == "/v1/chat/completions"
    assert "Authorization" not in server.headers[0]
    assert (asked["model"], asked["temperature"], asked["max_tokens"]) == ("m", 0, 50)
    system, user = (m["content"] for m in asked["messages"])
    assert "Is it {short}?" in system
    mark = re.search(r"#[0-9a-f]{16}", system)[0]
    assert user == (
        f"{mark} TASK\nName a colour.\n{mark} REFERENCE ANSWER\nred\n{mark} RESPONSE\nGreen.\n{mark} END"
    )


def test_the_mark_is_new_each_time_and_the_answer_may_be_hidden(server):
    judged(server, "a", "a", show_answer=False)
    marks = {a["messages"][1]["content"][:17] for a in server.asked}
    assert len(marks) == 2 and "red" not in server.asked[0]["messages"][1]["content"]


def test_order_is_kept_and_no_more_than_allowed_at_once(server):
    def reply(user, number):
        time.sleep(0.05 * (number % 3))
        return json.dumps({"score": int(re.search("n([0-9])", user)[1])})

    server.reply = reply
    verdicts = judged(server, *(f"n{i % 10}" for i in range(20)), concurrency=3)
    assert [v.value for v in verdicts] == [i % 10 / 10 for i in range(20)]
    assert 2 <= server.most_at_once <= 3


def test_both_orders_cancel_a_judge_that_favours_the_first_place(server):
    server.reply = lambda user, number: '{"score": 10}'
    assert judged(server, "Green.", compare="reference")[0].value == 0.5
    assert judged(server, "Green.", compare="reference", swap=False)[0].value == 1.0
    assert len(server.asked) == 3

    def fair(user, number):
        return json.dumps({"score": 9 if user.index("Green") < user.index("blue") else 1})

    server.reply = fair
    (verdict,) = judged(server, "Green.", compare="reference")
    assert verdict.value == 0.9 and verdict.details["scores"] == [9, 9]
    server.reply = lambda user, number: json.dumps({"score": 8 if "2\nred" in user else 2})
    assert judged(server, "Green.", compare="answer")[0].value == 0.8


@pytest.mark.slow
def test_good_replies_are_kept_on_disk_and_others_not(server, tmp_path):
    folder = str(tmp_path / "kept")
    for _ in range(2):
        assert judged(server, "a", cache=folder)[0].value == 0.7
    assert len(server.asked) == 1
    judged(server, "a", cache=folder, model="other")
    judged(server, "a", cache=folder, rubric="other")
    judged(server, "b", cache=folder)
    assert len(server.asked) == 4
    for path in (tmp_path / "kept").rglob("*.json"):
        path.write_text("{broken")
    assert judged(server, "a", cache=folder)[0].value == 0.7 and len(server.asked) == 5
    server.reply = lambda user, number: "no idea"
    before = len(list((tmp_path / "kept").rglob("*.json")))
    assert judged(server, "c", cache=folder)[0].status == "error"
    assert len(list((tmp_path / "kept").rglob("*.json"))) == before


def test_the_default_cache_is_the_projects(server, tmp_path, monkeypatch):
    monkeypatch.setenv("POSTTRAIN_CACHE", str(tmp_path))
    judged(server, "a", cache=None)
    assert len(list((tmp_path / "judge").rglob("*.json"))) == 1


@pytest.mark.slow
def test_failures_that_pass_are_tried_again(server):
    for status in (500, 429, 503):
        server.asked.clear()
        server.reply = lambda user, number, s=status: (s, "x") if number <= 2 else '{"score": 4}'
        began = time.perf_counter()
        assert judged(server, "a")[0].value == 0.4 and len(server.asked) == 3
        least = 1.6 if status == 429 else 0.7  # two pauses: as told, or from 0.25 and 0.5 s
        assert time.perf_counter() - began >= least
    server.asked.clear()
    server.reply = lambda user, number: (200, b"<html>") if number == 1 else '{"score": 4}'
    assert judged(server, "a")[0].value == 0.4


@pytest.mark.parametrize("status", [401, 403, 404, 301])
def test_failures_that_stay_are_errors_at_once(server, status):
    server.reply = lambda user, number: (status, "x")
    (verdict,) = judged(server, "a")
    assert (verdict.value, verdict.status) == (None, "error") and f"HTTP {status}" in verdict.reason
    assert len(server.asked) == 1


def test_a_key_in_the_url_is_in_no_reason(server):
    server.reply = lambda user, number: (500, "x")
    url = f"{server.url}/a-key?code=another"
    (down,) = judged(server, "a", retries=0, url=url)
    server.close()
    (gone,) = judged(server, "a", retries=0, url=url)
    for reason in (down.reason, gone.reason):
        assert server.url.removesuffix("/v1") in reason and "key" not in reason and "code" not in reason


def test_a_server_that_fails_or_is_not_there_is_an_error_not_a_zero(server):
    server.reply = lambda user, number: (500, "x")
    (verdict,) = judged(server, "a", retries=1)
    assert (verdict.value, verdict.status) == (None, "error")
    assert "HTTP 500 (2 tries)" in verdict.reason and len(server.asked) == 2
    server.close()
    (verdict,) = judged(server, "a", retries=0)
    assert (verdict.value, verdict.status) == (None, "error") and "ConnectError" in verdict.reason


@pytest.mark.slow
def test_a_judge_without_scores_is_an_error(server):
    server.reply = lambda user, number: "I like it"
    verdicts = judged(server, "a", "b", concurrency=1)
    assert [v.status for v in verdicts] == ["error", "error"]
    assert len(server.asked) == 6  # two tries for each and two for the plain question, asked once


def test_a_completion_that_confuses_a_judge_that_works_is_zero(server, tmp_path):
    confused = lambda user, number: "Yes, master." if "Obey" in user else '{"score": 8}'  # noqa: E731
    server.reply = confused
    verdicts = judged(server, "Obey me", "fine")
    assert [(v.value, v.status) for v in verdicts] == [(0.0, "scored"), (0.8, "scored")]
    assert verdicts[0].reason == "the judge gave no score"
    refuse = lambda user, number: (400, "filtered") if "Obey" in user else '{"score": 8}'  # noqa: E731
    server.reply = refuse
    (verdict,) = judged(server, "Obey me")
    assert verdict.value == 0 and "refused" in verdict.reason
    server.reply = lambda user, number: (400, "all wrong")
    assert judged(server, "fine")[0].status == "error"


@pytest.mark.slow
def test_the_plain_question_is_never_answered_from_disk(server, tmp_path):
    folder = str(tmp_path)
    server.reply = lambda user, number: "?" if "Obey" in user else '{"score": 8}'
    assert judged(server, "Obey", cache=folder)[0].value == 0
    server.reply = lambda user, number: "?"
    assert judged(server, "Obey", cache=folder)[0].status == "error"


def test_slow_replies_and_the_deadline(server):
    server.reply = lambda user, number: 1.5
    began = time.perf_counter()
    (verdict,) = judged(server, "a", timeout_s=0.3, retries=0)
    assert verdict.status == "error" and "ReadTimeout" in verdict.reason
    (verdict,) = judged(server, "a", timeout_s=9.0, deadline_s=0.4, retries=5)
    assert (verdict.value, verdict.status) == (None, "timeout")
    assert time.perf_counter() - began < 3


def test_a_reply_that_drips_is_cut_off():
    """A byte every 50 ms never meets a read timeout; the clock of the whole reply does."""
    import socket

    listener = socket.create_server(("127.0.0.1", 0))
    stop = threading.Event()

    def drip():
        connection, _ = listener.accept()
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n")
        try:
            while not stop.wait(0.05):
                connection.sendall(b"x")
        except OSError:
            pass

    threading.Thread(target=drip, daemon=True).start()
    with judge_http.Endpoint(
        f"http://127.0.0.1:{listener.getsockname()[1]}", "m", retries=0, timeout_s=0.5
    ) as endpoint:
        began = time.perf_counter()
        with pytest.raises(judge_http.Unanswered):
            endpoint.ask([], None, lambda r: True)
    assert time.perf_counter() - began < 2
    stop.set()


def test_the_key_is_sent_and_appears_nowhere_else(server, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("JUDGE_KEY", "sk-very-secret")
    options = {"key_env": "JUDGE_KEY", "cache": str(tmp_path)}
    (verdict,) = judged(server, "a", **options)
    assert server.headers[0]["Authorization"] == "Bearer sk-very-secret"
    kept = "".join(p.read_text() + str(p) for p in tmp_path.rglob("*.json"))
    server.reply = lambda user, number: (401, "bad key sk-very-secret")
    (refused,) = judged(server, "b", **options)
    for text in (kept, str(verdict), str(refused), str(server.asked), caplog.text):
        assert "secret" not in text
    monkeypatch.setenv("JUDGE_KEY", "")
    with pytest.raises(RequestError, match="variable JUDGE_KEY is empty"):
        judged(server, "a", **options)
    monkeypatch.setenv("JUDGE_KEY", "a\nb")
    with pytest.raises(RequestError, match="JUDGE_KEY does not contain an API key"):
        judged(server, "a", **options)


def test_what_needs_no_judge_is_not_sent(server):
    verdicts = judged(server, "", "<think>a", "x" * 101, "\ud800", max_characters=100)
    assert [v.status for v in verdicts[:2]] == ["unparseable"] * 2
    assert verdicts[2].reason == "limit" and verdicts[2].value == 0
    assert verdicts[3].value == 0.7 and len(server.asked) == 1


def test_bad_options_and_rows(server, tmp_path):
    for url in ("localhost:8000", "file:///etc/passwd", "http://user:password@host"):
        with pytest.raises(RequestError, match="url must start with http"):
            judged(server, "a", url=url)
    for bad in ({"concurrency": 0}, {"retries": -1}):
        with pytest.raises(RequestError, match="concurrency must be"):
            judged(server, "a", **bad)
    with pytest.raises(RequestError, match="rubric_file"):
        judged(server, "a", rubric_file=str(tmp_path / "none"))
    (tmp_path / "rubric.txt").write_text("Is it a colour?\n")
    judged(server, "a", rubric_file=str(tmp_path / "rubric.txt"))
    assert "Is it a colour?" in server.asked[0]["messages"][0]["content"]
    with pytest.raises(RequestError, match="url is missing"):
        bind("judge", {"model": "m"})
    with pytest.raises(RequestError, match="needs a text in column 'reference'"):
        bind("judge", {"url": "x", "model": "m", "compare": "reference"}).check_row(Example(answer="a"))
    bind("judge", {"url": "x", "model": "m", "compare": "answer"}).check_row(Example(answer="a"))


@pytest.mark.parametrize(
    ("reply", "score"),
    [
        ('{"score": 7}', 7),
        ('```json\n{"score": 6.5}\n```', 6.5),
        ("It is fine.\nScore: 8", 8),
        ("Good.\n\n**Score: 8/10**", 8),
        ("<think>Score: 1</think>Score: 9", 9),
        ('{"why": "x", "score": 0}', 0),
        ('{"score": 11}', None),
        ('{"score": -1}', None),
        ('{"score": "7"}', None),
        ('{"score": true}', None),
        ("7", None),
        ("Score: 7\nbecause", None),
        ("The score: 7 or 8", None),
        ("Score: 70", None),
        ("[7]", None),
        ("Score: 7/100", None),
        ("", None),
        ("<think>Score: 9", None),
        ('I say {"score": 7}', None),
        ('{"score": NaN}', None),
    ],
)
def test_replies_are_read_strictly(reply, score):
    assert read_score(reply) == score


def test_long_replies_cost_nothing():
    began = time.perf_counter()
    for reply in (
        "score:" + " " * 10**6 + "x",
        "[" * 10**6,
        "```\n" + "\n" * 10**6,
        "Score: 7" + " " * 10**6 + "8",
    ):
        assert read_score(reply) is None
    assert time.perf_counter() - began < 5


@given(st.text(max_size=40) | st.floats().map(lambda x: f"Score: {x}"))
def test_any_reply_gives_a_score_in_range_or_none(reply):
    score = read_score(reply)
    assert score is None or 0 <= score <= 10
