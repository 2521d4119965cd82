"""RLVR against a vLLM server that has the policy's weights, stale ones, foreign ones: logged, stopped,
masked."""

from __future__ import annotations

import json
import math
import socket

import pytest
import torch
from transformers import AutoModelForCausalLM

from posttrain.errors import RequestError, WorkError
from tests.ranks import run_ranks
from tests.serving import ROUTES, Server, serving, there_is_a_gpu  # noqa: F401
from tests.tiny import tiny_model
from tests.training.preferences import far, rows, weights
from tests.training.rollouts import rollouts, train, write_recipe

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("there_is_a_gpu")]


@pytest.fixture
def sampled(tmp_path, tiny):
    """`sampled(server, *overrides)`: the run of the stage with this server, three steps of 8 completions."""
    recipe = write_recipe(tmp_path, tiny)

    def run(server: Server, *overrides: str, **rollout):
        with serving(server):
            vllm = {"server_base_url": server.url} | rollout.pop("vllm", {})
            made = {"num_generations": 4, "max_new_tokens": 8, "temperature": 0.7, "backend": "vllm_server"}
            return train(recipe, f"rollout={json.dumps(made | rollout | {'vllm': vllm})}", *overrides)

    run.path = tmp_path / "case"
    return run


def served(folder, mode: str = "right", **info) -> Server:
    return Server(AutoModelForCausalLM.from_pretrained(folder), mode, **info)


def foreign(tiny) -> Server:
    """Another seed's weights, scaled up so that they say something."""
    server = served(tiny, "stale")
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in server.model.parameters():
            if weight.dim() > 1:
                weight.normal_(0, 0.3)
    return server


@pytest.mark.parametrize("correction", ["sequence_mask", "none"])
def test_a_server_with_the_policys_weights(sampled, tiny, correction):
    """Weights arrive before each batch; equal programs differ by rounding, and every ratio is 1."""
    run = sampled(server := served(tiny), vllm={"correction": correction})
    logged = rows(run)
    assert [row["step"] for row in logged] == [1, 2, 3] and server.updates == 3
    for row in logged:
        assert 0 < row["sampler/logp_diff_mean"] <= row["sampler/logp_diff_max"] < 1e-4
        assert row["sampler/ratio_mean"] == pytest.approx(1, abs=1e-4)
        assert row.get("sampler/masked") == (0 if correction == "sequence_mask" else None)
    whole = dict(AutoModelForCausalLM.from_pretrained(tiny).state_dict())
    assert math.inf > far(weights(run, 3), whole) > 1e-3
    for kept in rollouts(run).values():
        assert all(row["trained"] and 0 <= row["logp_diff"] < 1e-4 for row in kept)
    asked = [body for path, body in server.requests if path == "/v1/completions"]
    assert {(len(body["prompt"]), body["n"], body["temperature"]) for body in asked} == {(2, 4, 0.7)}


def test_dropout_is_no_difference_of_the_sampler(sampled, tiny):
    """The policy is compared, as it is trained, without dropout."""
    run = sampled(served(tiny), "model.options={attention_dropout: 0.5}", "train.max_steps=2")
    assert all(row["sampler/logp_diff_max"] < 1e-4 for row in rows(run))


def refused(sampled, *given, step: int, **options) -> str:
    """The reason with which the run ended before optimizer step `step`; nothing of that step is left."""
    with pytest.raises(WorkError, match=f"stopped before step {step}: ") as caught:
        sampled(*given, **options)
    info = json.loads((sampled.path / "run.json").read_text())
    assert info["status"] == "failed" and str(caught.value) in info["error"]
    kept = rollouts(sampled.path)
    assert len(kept) == step and not any(row["trained"] for row in kept[f"step-{step:06d}.jsonl"])
    assert [row["step"] for row in rows(sampled)] == list(range(1, step)) if step > 1 else True
    checkpoints = sampled.path / "checkpoints"
    assert not checkpoints.exists() or f"step-{step:06d}" not in {c.name for c in checkpoints.iterdir()}
    return str(caught.value)


@pytest.mark.parametrize("correction", ["sequence_mask", "token_truncate", "none"])
def test_a_server_with_foreign_weights(sampled, tiny, correction):
    said = refused(sampled, foreign(tiny), step=1, vllm={"correction": correction})
    assert "the sampler is not the policy" in said and "rollout.vllm.max_logp_diff = 0.1" in said
    assert not (sampled.path / "metrics.jsonl").exists()


def test_a_server_that_keeps_the_weights_of_the_start(sampled, tiny):
    """The first batch is right; the step after it moves the policy, and the next batch says so."""
    said = refused(sampled, served(tiny, "stale"), "train.learning_rate=20", step=2)
    assert "restart the vLLM server with the policy's model" in said
    first = rollouts(sampled.path)["step-000001.jsonl"]
    assert all(row["trained"] and row["logp_diff"] < 1e-4 for row in first)
    run = sampled(served(tiny), "train.learning_rate=20")
    assert run.info()["status"] == "finished", "the same command goes on once the server follows"
    assert all(row["trained"] for kept in rollouts(run).values() for row in kept)


def test_a_server_with_raw_log_probabilities_that_does_not_say_so(sampled, tiny):
    said = refused(sampled, served(tiny, "raw"), step=1, temperature=0.1)
    assert "--logprobs-mode processed_logprobs" in said


# ---- what the correction masks -----------------------------------------------------------------------------


def nudged(tiny) -> Server:
    """A server whose weights are a little off, and stay so; it keeps what it answered."""
    server = served(tiny, "stale")
    torch.manual_seed(2)
    with torch.no_grad():
        for weight in server.model.parameters():
            weight.add_(torch.randn_like(weight) * 0.02)
    server.answered, plain = [], server._choice

    def kept(prompt, body):
        server.answered.append(plain(prompt, body))
        return server.answered[-1]

    server._choice = kept
    return server


@torch.no_grad()
def differences(tiny, answered: list[dict], temperature: float) -> list[torch.Tensor]:
    """d of every token of every completion under the start model, each row alone."""
    policy, found = AutoModelForCausalLM.from_pretrained(tiny), []
    for choice in answered:
        ids = torch.tensor([choice["prompt_token_ids"] + choice["token_ids"]])
        n = len(choice["token_ids"])
        own = (policy(ids).logits[0, -n - 1 : -1] / temperature).log_softmax(-1)
        own = own.gather(1, ids[0, -n:, None])[:, 0]
        found.append((own - torch.tensor(choice["logprobs"]["token_logprobs"])).double())
    return found


@pytest.mark.parametrize("correction", ["sequence_mask", "token_mask", "sequence_truncate", "token_truncate"])
def test_what_the_correction_masks_is_not_said_to_be_trained(sampled, tiny, correction):
    """Weights above 1 are beyond the bounds: about half of them."""
    vllm = {"correction": correction, "correction_max": 1.0, "max_logp_diff": None}
    run = sampled(server := nudged(tiny), "train.max_steps=1", vllm=vllm, max_new_tokens=2)
    (logged,), (kept,) = rows(run), rollouts(run).values()
    each = differences(tiny, server.answered, 0.7)
    close = {"abs": 2e-5}
    assert [row["logp_diff"] for row in kept] == pytest.approx([float(d.abs().mean()) for d in each], **close)
    tokens = torch.cat(each)
    units = [d.sum()[None] if correction.startswith("sequence") else d for d in each]
    beyond = torch.cat(units) > 0
    assert 0 < beyond.sum() < len(beyond)
    masks = correction.endswith("mask")
    assert [row["trained"] for row in kept] == [not masks or bool((u <= 0).any()) for u in units]
    if correction == "sequence_mask":
        assert {row["trained"] for row in kept} == {True, False}
    assert logged["sampler/logp_diff_mean"] == pytest.approx(float(tokens.abs().mean()), **close)
    assert logged["sampler/logp_diff_max"] == pytest.approx(float(tokens.abs().max()), **close)
    assert logged["sampler/ratio_mean"] == pytest.approx(float(torch.cat(units).exp().mean()), **close)


def test_two_ranks(tiny, tmp_path):
    """Each compares half of the completions; files, metrics and what is trained are of all of them."""
    rollout = {"num_generations": 4, "max_new_tokens": 2, "temperature": 0.7, "backend": "vllm_server"}
    rollout["vllm"] = {"correction_max": 1.0, "max_logp_diff": None}
    settings = ["train.max_steps=1", "train.per_device_train_batch_size=2"]
    recipe = write_recipe(tmp_path, tiny)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    together = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "ACCELERATE_USE_CPU": "true"}
    worker = ["tests.training.served_worker", recipe, tiny, json.dumps(rollout), *settings]
    for code, said in run_ranks(lambda rank: worker, together):
        assert code == 0, said
    each = differences(tiny, json.loads((tmp_path / "answers.json").read_text()), 0.7)
    (logged,), (kept,) = rows(tmp_path / "case"), rollouts(tmp_path / "case").values()
    masked = [float(d.sum()) > 0 for d in each]
    assert len(kept) == 8 and 0 < sum(masked) < 8
    assert [row["trained"] for row in kept] == [not m for m in masked]
    apart, close = [d.abs() for d in each], {"abs": 2e-5}
    assert [row["logp_diff"] for row in kept] == pytest.approx([float(a.mean()) for a in apart], **close)
    assert logged["sampler/masked"] == sum(masked) / 8
    assert logged["sampler/logp_diff_max"] == pytest.approx(float(torch.cat(apart).max()), **close)


def test_a_correction_that_masks_everything(sampled, tiny):
    vllm = {"correction_min": 1.5}
    said = refused(sampled, served(tiny), step=1, vllm=vllm)
    assert "rollout.vllm.correction = sequence_mask leaves nothing to train" in said
    assert "weights of all 8 completions are 0" in said


# ---- a server that cannot be the policy's ------------------------------------------------------------------


def test_another_dtype_is_logged_and_within_the_bound(sampled, tiny):
    """bf16 against fp32, where the server does not say it: what two programs differ by is not refused."""
    server = served(tiny, dtype="torch.float32")
    server.model.bfloat16()
    run = sampled(server, "train.max_steps=2")
    for row in rows(run):
        assert 1e-4 < row["sampler/logp_diff_mean"] < 0.05 and row["sampler/ratio_mean"] == pytest.approx(
            1, abs=0.1
        )


@pytest.mark.parametrize(
    ("shape", "info", "words"),
    [
        ({"kind": "qwen2"}, {}, "serves a qwen2 model, but the policy is llama"),
        ({"vocab_size": 300}, {}, "a vocabulary of 300 rows, but the policy has "),
        ({"hidden_size": 64}, {}, "a hidden size of 64, but the policy has 32"),
        ({"num_hidden_layers": 3}, {}, "3 layers, but the policy has 2"),
        ({}, {"dtype": "torch.bfloat16"}, "computes in bfloat16, but the policy in float32; restart it with"),
        ({}, {"logprobs_mode": "raw_logprobs"}, "returns raw_logprobs, which do not include the temperature"),
        ({}, {"max_model_len": 100}, "takes at most 100 tokens, but data.max_length .* = 264"),
    ],
)
def test_a_server_that_says_it_is_another(sampled, tmp_path, shape, info, words):
    """Refused before the first completion, in one sentence."""
    server = served(tiny_model(tmp_path / "served", **shape), **info)
    with pytest.raises(RequestError, match=f"^the vLLM server at http://127.* {words}") as caught:
        sampled(server)
    assert "\n" not in str(caught.value)
    assert {path for path, _ in server.requests} <= {
        "/health",
        "/v1/models",
        "/server_info",
        "/get_world_size",
        "/init_weight_transfer_engine",
    }
    assert not (sampled.path / "rollouts").exists() or not list((sampled.path / "rollouts").iterdir())


def test_a_server_that_takes_no_weights(sampled, tiny, monkeypatch):
    """What TRL's client raises is a sentence about the server."""
    with monkeypatch.context() as without:
        without.delitem(ROUTES, "/server_info")
        with pytest.raises(WorkError, match="Restart it with `VLLM_SERVER_DEV_MODE=1`"):
            sampled(served(tiny))
    monkeypatch.delitem(ROUTES, "/update_weights")
    with pytest.raises(WorkError, match="the vLLM server at http.*Request failed: 404"):
        sampled(served(tiny))


def without_ids(choice):
    del choice["token_ids"]


def without_numbers(choice):
    choice["logprobs"]["top_logprobs"][0] = dict.fromkeys(choice["logprobs"]["tokens"][:1])


def empty(choice):
    choice["token_ids"], choice["logprobs"] = [], {"tokens": [], "token_logprobs": [], "top_logprobs": []}


def one_number_short(choice):
    for column in choice["logprobs"].values():
        column.pop()


def of_another_vocabulary(choice):
    choice["token_ids"][0] = 999_999


def endless(choice):
    choice["token_ids"] = choice["token_ids"][:1] * 400
    choice["logprobs"] = {name: column[:1] * 400 for name, column in choice["logprobs"].items()}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (without_ids, ": TRL's client cannot read the answer (KeyError: 'token_ids'); serve with"),
        (without_numbers, ": TRL's client cannot read the answer (TypeError: "),
        (empty, " answered prompt 0, sample 2, without a token"),
        (one_number_short, " answered prompt 0, sample 2, with "),
        (of_another_vocabulary, " answered prompt 0, sample 2, with the token id 999999, but"),
        (endless, " answered prompt 0, sample 2, with 400 tokens; at most 8 were requested"),
    ],
)
def test_an_answer_that_is_no_completion(sampled, tiny, change, said):
    """The third choice alone is wrong: it is not trained, and one sentence says why."""
    server, answered = served(tiny), []

    def choose(prompt, body, plain=server._choice):
        answered.append(plain(prompt, body))
        if len(answered) == 3:
            change(answered[-1])
        return answered[-1]

    server._choice = choose
    with pytest.raises(WorkError) as caught:
        sampled(server)
    assert f"the vLLM server at {server.url}{said}" in str(caught.value)
    assert "\n" not in str(caught.value) and not (sampled.path / "metrics.jsonl").exists()


def test_an_answer_without_choices(sampled, tiny, monkeypatch):
    monkeypatch.setitem(ROUTES, "/v1/completions", lambda server, body: {"choices": []})
    with pytest.raises(WorkError, match="TRL's client cannot read the answer .IndexError"):
        sampled(served(tiny))


@pytest.mark.parametrize("lora", ["target_modules: [lm_head]", "modules_to_save: [embed_tokens]"])
def test_an_adapter_that_parts_a_tied_head_from_its_embedding(tmp_path, lora):
    """vLLM would go on with one weight for both."""
    model = tiny_model(tmp_path / "model", tie=True)
    recipe = write_recipe(tmp_path, model)
    rollout = {"num_generations": 4, "max_new_tokens": 8, "backend": "vllm_server"}
    with serving(served(model)) as server:
        rollout["vllm"] = {"server_base_url": server.url}
        with pytest.raises(RequestError, match="in which they are one weight"):
            train(recipe, f"rollout={json.dumps(rollout)}", f"model.lora={{{lora}}}")
        assert not server.updates
