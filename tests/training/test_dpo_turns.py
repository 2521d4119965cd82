"""`data.train_on` of the dpo stage: which turns of a conversation count in log-probabilities and lengths.

The oracle is the plain model on each conversation alone, its turns found by their text.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

from posttrain.errors import RequestError
from posttrain.recipe import load, recipe_hash, to_yaml
from tests.training.preferences import kto, moved, rows, train, write_recipe

END = "<|im_end|>"
TURNS = ("last", "assistant")


def conversation(i: int, reply: str) -> list[dict[str, str]]:
    said = (f"Say {i}.", f"I say {i}, " + "and so on. " * (i % 3), "Again.", reply)
    return [{"role": ("user", "assistant")[k % 2], "content": text} for k, text in enumerate(said)]


def pairs(count: int = 8) -> list[dict]:
    """Conversations of two turns; the sides share the first one."""
    return [
        {"chosen": conversation(i, f"good {i}"), "rejected": conversation(i, f"bad {i}, " * (1 + i % 3))}
        for i in range(count)
    ]


@pytest.fixture
def path(tmp_path, tiny) -> Path:
    """A recipe for one step of 8 pairs, all in the first batch."""
    path = write_recipe(tmp_path, tiny)
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs()))
    path.write_text(path.read_text().replace("max_steps: 5", "max_steps: 1"))
    return path


def by_hand(model, tokenizer, messages, train_on: str) -> tuple[torch.Tensor, int]:
    """(log-probability of the turns that count with their ends, number of their tokens), fp64."""
    ids, counted = [], []
    replies = [k for k, message in enumerate(messages) if message["role"] == "assistant"]
    for k, message in enumerate(messages):
        counts = k in (replies if train_on == "assistant" else replies[-1:])
        pieces = (
            (f"<|im_start|>{message['role']}\n", False),
            (message["content"] + END, counts),
            ("\n", False),
        )
        for text, inside in pieces:
            some = tokenizer(text, add_special_tokens=False).input_ids
            ids += some
            counted += [inside] * len(some)
    ids = torch.tensor([ids])
    with torch.no_grad():
        logp = model(ids).logits[0, :-1].double().log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
    chosen = torch.tensor(counted[1:])
    return logp[chosen].sum(), int(chosen.sum())


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["dpo", "dpo_norm"])
def test_log_probabilities_lengths_and_losses_are_those_of_the_turns(path, tiny, tmp_path, loss):
    """Against another reference than the start model, so that the first loss depends on every sum.

    The shared turn cancels in dpo, whose loss is the same for both settings. In dpo_norm it does not: it
    lengthens both sides, and not by the same share.
    """
    other, tokenizer = moved(tiny, tmp_path / "other"), AutoTokenizer.from_pretrained(tiny)
    policy, reference = (AutoModelForCausalLM.from_pretrained(place).eval() for place in (tiny, other))
    beta, found = {"dpo": 0.1, "dpo_norm": 5.0}[loss], {}
    for turns in TURNS:
        given = f"preference={{loss: {loss}, reference_model: {other}}}"
        (row,) = rows(train(path, f"name={loss}-{turns}", f"data.train_on={turns}", given))
        want = {key: [] for key in ("loss", "logps/chosen", "tokens/chosen", "tokens/rejected")}
        for pair in pairs():
            sides = []
            for side in ("chosen", "rejected"):
                logp, n = by_hand(policy, tokenizer, pair[side], turns)
                x = logp - by_hand(reference, tokenizer, pair[side], turns)[0]
                want[f"tokens/{side}"].append(n)
                if side == "chosen":
                    want["logps/chosen"].append(float(logp))
                sides.append(x / n if loss == "dpo_norm" else x)
            want["loss"].append(float(-F.logsigmoid(beta * (sides[0] - sides[1]))))
        for key, values in want.items():
            assert row[key] == pytest.approx(np.mean(values), rel=1e-5), (turns, key)
        found[turns] = row
    shared = [len(pair["chosen"][1]["content"]) + 1 for pair in pairs()]  # bytes, and the end of turn
    for side in ("chosen", "rejected"):
        more = found["assistant"][f"tokens/{side}"] - found["last"][f"tokens/{side}"]
        assert more == pytest.approx(np.mean(shared))
    apart = abs(found["assistant"]["loss"] - found["last"]["loss"])
    assert apart < 1e-5 if loss == "dpo" else apart > 1e-3


@pytest.mark.slow
def test_references_of_other_turns_are_not_taken(path, caplog):
    """The start model is the reference, so a first loss other than ln 2 would be of foreign sums."""
    caplog.set_level("INFO")
    for name, turns, computed in (("a", "last", 1), ("b", "assistant", 1), ("c", "assistant", 0)):
        caplog.clear()
        (row,) = rows(train(path, f"name={name}", f"data.train_on={turns}"))
        assert row["loss"] == pytest.approx(np.log(2), abs=1e-6)
        assert caplog.text.count("reference log-probabilities of 8 pairs") == computed, name


def test_the_default_depends_on_the_stage(path):
    """sft trains on every assistant turn, dpo on the last; the resolved recipe says which."""
    for stage, turns in (("dpo", "last"), ("sft", "assistant")):
        resolved = to_yaml(load(path, [f"stage={stage}"]))
        assert f"  train_on: {turns}\n" in resolved


def test_the_default_is_the_run_that_it_was(path):
    """`assistant` did nothing in a dpo stage before: with its meaning it is another run."""
    hashes = [recipe_hash(load(path, [f"data.train_on={turns}"])) for turns in TURNS]
    assert hashes[0] == recipe_hash(load(path)) != hashes[1]


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["data.train_on=all"], r"data.train_on = 'all' \(one of: assistant, last\)"),
        (["data.train_on=assistant", "kto"], "data.train_on = assistant cannot be used with .* kto"),
        (["data.train_on=lest"], r"data.train_on = 'lest' \(did you mean 'last'"),
    ],
)
def test_what_is_refused(path, more, sentence):
    overrides = [o for each in more for o in (kto(path) if each == "kto" else [each])]
    with pytest.raises(RequestError, match=sentence):
        load(path, overrides)
