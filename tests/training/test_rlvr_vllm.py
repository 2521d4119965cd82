"""The RLVR stage on vLLM's interface: an engine that samples with the policy's own weights stands in for
vLLM."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

from posttrain import rlvr
from posttrain.data.template import Template
from posttrain.generation import vllm
from posttrain.generation.base import Sampling
from posttrain.generation.local import TransformersGenerator
from posttrain.generation.vllm import VllmGenerator
from posttrain.recipe import load_stage
from posttrain.stages import train as stage
from posttrain.training import rlvr as trainer_module
from tests.tiny import RECIPE


class Engine:
    """Answers as TRL's does: log-probabilities of the sampled tokens after temperature, each in a list of
    one."""

    mode, tensor_parallel_size, max_model_length = "colocate", 1, 512

    def __init__(self, model, tokenizer, accelerator, off: float) -> None:
        self.model, self.sampler = model, TransformersGenerator(model, tokenizer)
        self.accelerator, self.off, self.synced, self.calls = accelerator, off, 0, 0

    def sync_weights(self):
        self.synced += 1

    def generate(self, prompts, images, num_generations):
        self.calls += 1
        sampling = Sampling(self.temperature, self.top_p, self.max_completion_length)
        model = self.sampler.model
        ids, log_probs = [], []
        for one in self.sampler.generate(prompts, 1, sampling, seed=self.calls):
            whole = torch.tensor([prompts[one.prompt_index] + one.token_ids])
            with torch.no_grad():
                logits = model(whole).logits[0, -len(one.token_ids) - 1 : -1] / self.temperature
            found = logits.log_softmax(-1).gather(1, whole[0, -len(one.token_ids) :, None])[:, 0]
            ids.append(one.token_ids)
            log_probs.append([[value - self.off] for value in found.tolist()])
        return prompts, ids, log_probs, None


@pytest.mark.slow
@pytest.mark.parametrize(("off", "ratio"), [(0.0, 1.0), (0.01, None)])
def test_rollouts_of_vllm_are_trained_on_with_their_weights(tiny, tmp_path, monkeypatch, off, ratio):
    """Equal programs weigh 1. Where each token of the sampler is less likely by 0.01, a completion of T
    tokens weighs e^(T/100)."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text(
        "".join(json.dumps({"prompt": f"{i}+{i}=", "answer": str(2 * i)}) + "\n" for i in range(8))
    )
    path = tmp_path / "case.yaml"
    text = RECIPE.format(out=tmp_path, model=tiny, rows=rows).replace("stage: sft", "stage: rlvr")
    path.write_text(text + "rewards: [{name: contains}]\n")
    engines, ratios, lengths = [], [], []

    def start(section, max_length, rollout, model, accelerator, tokenizer, stop_token_ids=(), step=None):
        engines.append(Engine(model, tokenizer, accelerator, off))
        return VllmGenerator(engines[0], tokenizer, [tokenizer.eos_token_id, *stop_token_ids], step)

    def kept(policy, sampler, mask, *bounds, **options):
        ratios.append(plain(policy, sampler, mask, *bounds, **options))
        lengths.append(mask.sum(1, keepdim=True))
        return ratios[-1]

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setattr(stage, "trains_on_cpu", lambda: False)
    plain = trainer_module.importance_ratio
    monkeypatch.setattr(vllm.VllmGenerator, "start", start)
    monkeypatch.setattr(trainer_module, "importance_ratio", kept)
    more = [
        "train.max_steps=2",
        "rollout={num_generations: 4, max_new_tokens: 8, temperature: 0.7, backend: vllm_colocate}",
    ]
    run = rlvr.train(load_stage(str(path), more, "rlvr"))
    ((engine,), found) = (engines, torch.cat(ratios))
    assert (engine.calls, engine.synced) == (2, 2), "a call and new weights for each batch"
    wanted = (torch.cat(lengths) * off).exp() if ratio is None else torch.ones_like(found)
    assert len(found) == 16 and torch.allclose(found, wanted, atol=1e-4)
    assert run.info()["status"] == "finished"


def test_the_stop_tokens_are_those_of_the_template(monkeypatch):
    given = []
    monkeypatch.setattr(VllmGenerator, "start", lambda *all: given.append(all))
    for text, ids in (("<|im_end|>", [7]), ("two tokens", [7, 8])):
        tokenizer = lambda text, add_special_tokens, ids=ids: {"input_ids": ids}  # noqa: E731
        parts = SimpleNamespace(tokenizer=tokenizer, template=Template("t", "", tokenizer, (), text))
        trainer = SimpleNamespace(
            parts=parts, model="model", accelerator="accelerator", state=SimpleNamespace(global_step=3)
        )
        vllm.vllm_generator(trainer, "start", 40, "rollout")
    assert [list(one[6]) for one in given] == [[7], []] and given[0][7]() == 3
