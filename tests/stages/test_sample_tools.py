"""pairs and pass_rate on prompts with tools: what is sampled from, where it stops, what a dpo stage reads."""

from __future__ import annotations

import json

import numpy as np
import pytest

import posttrain.stages.sample
from posttrain.data.prepare import build
from posttrain.data.tokenizers import load_tokenizer
from posttrain.recipe import load
from posttrain.recipe.schema import Data, Loss, Source
from posttrain.rundir.rollouts import RolloutRow
from posttrain.stages.sample import Sampler
from tests.calling import ROWS, TEXTS, watch
from tests.unigram import read, rollouts, run

pytestmark = pytest.mark.slow


@pytest.fixture
def sampled(write_recipe, calling, monkeypatch):
    """`sampled(stage)`: the run on four copies of the prompts, and what was sampled."""

    def work(stage: str, **sections):
        kept = watch(posttrain.stages.sample, monkeypatch)
        path = write_recipe(stage, ROWS * 4, **sections)
        style = f"data.template={calling / 'calls.jinja'}"
        return run(path, f"model.init={calling / 'model'}", style, "data.max_length=200"), kept

    return work


def test_pairs_for_dpo_begin_with_the_tokens_that_were_sampled_from(sampled, calling, tmp_path):
    made, kept = sampled("pairs", pairing={"per_prompt": 2})
    tokenizer = load_tokenizer(str(calling / "model"))
    rows, pairs = rollouts(made), read(made / "pairs.jsonl")
    call, turn = tokenizer.convert_tokens_to_ids(["<|call|>", "<|im_end|>"])
    assert len(rows) == len(kept) == 128 and {row["row"] % 4 for row in pairs} == {0, 1, 2, 3}
    ids = {}
    for row, (prompt, completion) in zip(rows, kept, strict=True):
        assert row["prompt"] == RolloutRow.of(row).prompt == TEXTS[row["row"] % 4] == tokenizer.decode(prompt)
        assert completion.text == row["completion"] and not {call, turn} & {*completion.token_ids[:-1]}
        assert row.get("end_of_call") == ("<|call|>" if completion.token_ids[-1] == call else None)
        ids[row["row"], row["sample"]] = prompt, completion.token_ids
    ends = [row.get("end_of_call", row["finish"]) for row in rows]
    assert ends.count("<|call|>") > 30 and ends.count("stop") > 30
    # what the dpo stage trains on is, to the token, what was sampled, the end of a call included
    source = Source(name="pairs", path=str(made / "pairs.jsonl"))
    data = Data([source], template=str(calling / "calls.jinja"), train_on="last", max_length=400)
    data.cache_dir = str(tmp_path / "cache")
    table = build(data, Loss(), tokenizer, shape="pairs").tables[0]
    assert len(table) == len(pairs) > 8
    for i, pair in enumerate(pairs):
        for name, side in zip(("chosen", "rejected"), table[i], strict=True):
            prompt, reply = ids[pair["row"], pair[f"{name}_sample"]]
            start = int(np.flatnonzero(side.labels >= 0)[0])
            assert side.input_ids[:start].tolist() == prompt
            assert side.labels[side.labels >= 0].tolist() == reply
    assert any(pair.get("chosen_is_prefix") for pair in pairs)
    assert {json.dumps(pair.get("chat_template_kwargs")) for pair in pairs} == {"null", '{"mode": "short"}'}


def test_rates_keep_the_tools_of_their_rows(sampled):
    made, kept = sampled("pass_rate", keep={"at_least": 0, "at_most": 8})
    rates = {"p", "n_right", "n_judged"}
    measured = [{k: v for k, v in row.items() if k not in rates} for row in read(made / "prompts.jsonl")]
    assert measured == ROWS * 4
    assert {row["prompt"] for row in rollouts(made)} == {*TEXTS} and len(kept) == 128


def test_a_teacher_is_prompted_with_the_options_of_the_recipe(write_recipe, calling, monkeypatch, caplog):
    """Those that its own template has; under the recipe's template it has them all."""
    loads = []
    monkeypatch.setattr(posttrain.stages.sample, "load_generator", lambda *given: loads.append(given))
    recipe = load(write_recipe("pairs", ROWS))
    recipe.data.template_options = {"mode": "short", "enable_thinking": False}
    Sampler(recipe, None, None, None).load(str(calling / "model"))
    assert (
        loads[0][1:] == ("tokenizer", 0, {"mode": "short"}) and "no variable enable_thinking" in caplog.text
    )
    bare = load_tokenizer("builtin:bytes")
    monkeypatch.setattr(posttrain.stages.sample, "load_tokenizer", lambda *_: bare)
    Sampler(recipe, None, None, None).load(str(calling / "model"))
    assert loads[1][1:] == ("chatml", 0, recipe.data.template_options)
