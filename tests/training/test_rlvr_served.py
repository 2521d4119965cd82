"""RLVR against a vLLM server with the policy's weights, stale, foreign ones: what is trained is what the policy
says."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from posttrain.errors import RequestError, WorkError
from tests.serving import Server, serving, there_is_a_gpu  # noqa: F401
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
    assert far(weights(run, 3), dict(AutoModelForCausalLM.from_pretrained(tiny).state_dict())) > 1e-3
    for kept in rollouts(run).values():
        assert all(row["trained"] and 0 <= row["logp_diff"] < 1e-4 for row in kept)
    asked = [body for path, body in server.requests if path == "/v1/completions"]
    assert {(len(body["prompt"]), body["n"], body["temperature"]) for body in asked} == {(2, 4, 0.7)}


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
    assert "vLLM did not take the last weights" in said
    first = rollouts(sampled.path)["step-000001.jsonl"]
    assert all(row["trained"] and row["logp_diff"] < 1e-4 for row in first)


def test_a_server_with_raw_log_probabilities_that_does_not_say_so(sampled, tiny):
    said = refused(sampled, served(tiny, "raw"), step=1, temperature=0.1)
    assert "before the temperature" in said
