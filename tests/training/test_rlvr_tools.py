"""RLVR on prompts with tools and template options: the tokens of the table are sampled from, up to a call."""

from __future__ import annotations

import json

import pytest
from transformers import AutoModelForCausalLM

import posttrain.training.rlvr
from posttrain.data.tokenizers import load_tokenizer
from tests.calling import ROWS, TEXTS, watch
from tests.serving import Server, serving, there_is_a_gpu  # noqa: F401
from tests.training.rollouts import rollouts, train, write_recipe

pytestmark = pytest.mark.slow


@pytest.fixture
def trained(tmp_path, calling):
    """`trained(**rollout)`: the rows of a run of two steps, which sample all prompts."""

    def run(**rollout) -> list[dict]:
        path = write_recipe(tmp_path, calling / "model")
        (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
        made = {"num_generations": 4, "max_new_tokens": 24} | rollout
        more = [f"data.template={calling / 'calls.jinja'}", "data.max_length=200", "train.max_steps=2"]
        found = rollouts(train(path, f"rollout={json.dumps(made)}", *more))
        return [row for rows in found.values() for row in rows]

    return run


def ends_at_calls(rows: list[dict], calling) -> None:
    """Prompts are shown as they were sampled from; what follows a call is never sampled."""
    assert len(rows) == 16 and {row["prompt"] for row in rows} == {*TEXTS}
    assert all("<|" not in row["completion"] for row in rows)


def test_the_local_sampler(trained, calling, monkeypatch):
    kept = watch(posttrain.training.rlvr, monkeypatch)
    ends_at_calls(trained(), calling)
    tokenizer = load_tokenizer(str(calling / "model"))
    assert {tuple(prompt) for prompt, _ in kept} == ids_of_texts(tokenizer)
    last = {tokenizer.decode(each.token_ids[-1]) for _, each in kept if each.finish == "stop"}
    assert last == {"<|call|>", "<|im_end|>"}


@pytest.mark.usefixtures("there_is_a_gpu")
def test_a_vllm_server(trained, calling):
    server = Server(AutoModelForCausalLM.from_pretrained(calling / "model"))
    answered, plain = [], server._choice
    server._choice = lambda *asked: answered.append(plain(*asked)) or answered[-1]
    with serving(server):
        ends_at_calls(trained(backend="vllm_server", vllm={"server_base_url": server.url}), calling)
    tokenizer = load_tokenizer(str(calling / "model"))
    assert {tuple(each["prompt_token_ids"]) for each in answered} == ids_of_texts(tokenizer)
    call = tokenizer.convert_tokens_to_ids("<|call|>")
    asked = [body for path, body in server.requests if path == "/v1/completions"]
    assert asked and all(call in body["stop_token_ids"] for body in asked)
    assert any(each["token_ids"][-1] == call for each in answered)


def ids_of_texts(tokenizer) -> set[tuple[int, ...]]:
    return {tuple(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in TEXTS}
