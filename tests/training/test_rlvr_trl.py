"""TRL as an oracle of the RLVR stage: its own GRPOTrainer on the same rollouts has the same losses,
gradients, weights."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch

from posttrain.training import rlvr as trainer_module
from tests.tiny import tiny_model
from tests.training.preferences import rows, weights
from tests.training.rollouts import trained, write_recipe

SETTINGS = ["train.per_device_train_batch_size=2", "train.max_steps=4", "train.learning_rate=0.5"]
CASES = {
    "grpo": ("grpo", {"beta": 0.3, "kl": "k3"}),
    "dr_grpo": ("dr_grpo", {"advantage": "mean"}),
    "dapo": ("dapo", {"epsilon": 0.02, "epsilon_high": 0.04}),
    "bnpo": ("bnpo", {"advantage": "leave_one_out", "beta": 0.3}),
    "gspo": ("grpo", {}),
    "cispo": ("cispo", {"epsilon_high": 1.02}),
}


@pytest.fixture
def ours(tmp_path, tiny, monkeypatch):
    """`ours(name, **rollout)`: our run, and the micro-batches of each of its batches of rollouts."""

    def run(name: str, **rollout):
        made, plain = [], trainer_module.micro_batches

        def kept(*args):
            made.append(plain(*args))
            return copy.deepcopy(made[-1])

        monkeypatch.setattr(trainer_module, "micro_batches", kept)
        policy = {"loss": name, "num_iterations": 2} | CASES[name][1]
        if name != "gspo" and name != "cispo":
            policy = {"epsilon": 0.02} | policy
        more = {"num_generations": 4, "max_new_tokens": 12, "steps_per_generation": 2} | rollout
        found, _ = trained(
            write_recipe(tmp_path, tiny),
            *SETTINGS,
            f"policy={json.dumps(policy)}",
            f"rollout={json.dumps(more)}",
        )
        return found, made

    return run


def theirs(folder: Path, model: Path, batches: list, **options):
    """TRL's trainer on `batches`; it computes the log-probabilities of the old policy and the reference for
    itself."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    class Given(GRPOTrainer):
        def _prepare_inputs(self, batch):
            steps = self.args.steps_per_generation
            if self._step % (steps * self.num_iterations) == 0:
                self.given = [self.complete(b) for b in batches[self._step // steps // self.num_iterations]]
            return self.given[self._step % steps]

        @torch.no_grad()
        def complete(self, batch):
            ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
            mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
            asked = (ids, mask, batch["completion_ids"].shape[1])
            found = {"old_per_token_logps": self.model}
            if self.beta:
                found["ref_per_token_logps"] = self.ref_model
            return batch | {
                n: self._get_per_token_logps_and_entropies(m, *asked)[0] for n, m in found.items()
            }

    args = GRPOConfig(
        output_dir=str(folder),
        use_cpu=True,
        report_to=[],
        bf16=False,
        gradient_checkpointing=False,
        logging_steps=1,
        save_strategy="no",
        learning_rate=0.5,
        lr_scheduler_type="constant",
        optim="sgd",
        max_grad_norm=0,
        max_steps=4,
        num_generations=4,
        max_completion_length=12,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=4,
        disable_tqdm=True,
        **options,
    )
    trainer = Given(
        model=AutoModelForCausalLM.from_pretrained(model),
        reward_funcs=lambda **_: [],
        args=args,
        train_dataset=Dataset.from_list([{"prompt": "q"}] * 64),
        processing_class=AutoTokenizer.from_pretrained(model),
    )
    trainer.train()
    return trainer


def compare(run, trainer, names, relative: float = 1e-5) -> None:
    own = [row for row in trainer.state.log_history if "loss" in row]
    assert len(rows(run)) == len(own) == 4
    for a, b in zip(rows(run), own, strict=True):
        assert abs(a["loss"] - b["loss"]) <= relative * max(0.1, abs(b["loss"])), (a, b)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=relative)
        for name in names:
            assert a[name] == pytest.approx(b[name], rel=relative, abs=1e-6), (name, a, b)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_losses_gradients_and_weights_are_trls(ours, name, tmp_path, tiny):
    """Four steps on one batch of rollouts: two steps a batch, two passes; ratios leave 1 and are clipped."""
    kind, policy = CASES[name]
    run, batches = ours(name, temperature=0.7)
    assert len(batches) == 1 and len(batches[0]) == 8
    options = {k: v for k, v in policy.items() if k in ("epsilon", "epsilon_high", "beta")}
    options["use_bias_correction_kl"] = policy.get("kl") != "k3"
    if name == "gspo":
        options |= {"importance_sampling_level": "sequence", "epsilon": 3e-4, "epsilon_high": 4e-4}
    elif name != "cispo":
        options = {"epsilon": 0.02} | options
    trainer = theirs(
        tmp_path / "theirs",
        tiny,
        batches,
        loss_type=kind,
        temperature=0.7,
        num_iterations=2,
        steps_per_generation=8,
        **options,
    )
    clipped = ["cispo_clip_ratio"] if name == "cispo" else ["clip_ratio/low_mean", "clip_ratio/high_mean"]
    compare(run, trainer, ["entropy", *clipped, *(["kl"] if "beta" in policy else [])])
    assert rows(run)[0][clipped[0]] == 0 and max(sum(r[c] for c in clipped) for r in rows(run)) > 0.01
    ours_now, theirs_now = weights(run, 4), trainer.model.state_dict()
    start = type(trainer.model).from_pretrained(tiny).state_dict()
    moved_by = max(float((theirs_now[k] - start[k]).abs().max()) for k in ours_now)
    apart = max(float((ours_now[k] - theirs_now[k]).abs().max()) for k in ours_now)
    print(
        f"{name}: weights moved by {moved_by:.2e}, apart by {apart:.1e}; "
        f"clipped {[r[clipped[0]] for r in rows(run)]}"
    )
    assert moved_by > 1e-2 and apart <= 1e-4 * moved_by
    if "beta" in policy:
        assert rows(run)[0]["kl"] == 0 and rows(run)[-1]["kl"] > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_padding_changes_no_log_probability(kind, tmp_path):
    """Prompts padded on the left and completions on the right, against each row alone through the plain
    model: also where positions are absolute. At temperature 1 they are what the generator says it sampled
    with."""
    from posttrain.generation.base import Sampling
    from posttrain.generation.local import TransformersGenerator

    model = tiny_model(tmp_path / "model", kind=kind)
    run, trainer = trained(write_recipe(tmp_path, model), "train.max_steps=1", "rollout.temperature=0.7")
    policy, pad = trainer.model.eval(), trainer.parts.tokenizer.pad_token_id
    prompts = [[5, 6, 7], list(range(20, 40)), [9]]
    sampled = TransformersGenerator(policy, trainer.parts.tokenizer).generate(
        prompts, 2, Sampling(max_new_tokens=9), 1
    )
    sampled[3].token_ids, sampled[3].log_probs = sampled[3].token_ids[:2], sampled[3].log_probs[:2]
    asked, said = (
        padded([prompts[one.prompt_index] for one in sampled], pad, left=True),
        padded([one.token_ids for one in sampled], pad, left=False),
    )
    ids, mask = (torch.cat(pair, 1) for pair in zip(asked, said, strict=True))
    with torch.no_grad():
        for temperature in (0.7, 1.0):
            trainer.rollout.temperature = temperature
            found, entropy, _ = trainer._get_per_token_logps_and_entropies(
                policy, ids, mask, said[0].shape[1], compute_entropy=True
            )
            for i, one in enumerate(sampled):
                row = torch.tensor([prompts[one.prompt_index] + one.token_ids])
                n = len(one.token_ids)
                want = (policy(input_ids=row).logits[0, -n - 1 : -1] / temperature).log_softmax(-1)
                torch.testing.assert_close(found[i, :n], want.gather(1, row[0, -n:, None])[:, 0])
                torch.testing.assert_close(entropy[i, :n], -(want.exp() * want).sum(1))
                assert (found[i, n:] == 0).all()
    for i, one in enumerate(sampled):
        torch.testing.assert_close(found[i, : len(one.token_ids)], torch.tensor(one.log_probs))


def padded(rows: list[list[int]], pad: int, left: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask of rows padded on one side."""
    longest = max(map(len, rows))
    fill = [longest - len(row) for row in rows]
    parts = [([pad] * n, [0] * n, row, [1] * len(row)) for n, row in zip(fill, rows, strict=True)]
    if left:
        return torch.tensor([a + c for a, _, c, _ in parts]), torch.tensor([b + d for _, b, _, d in parts])
    return torch.tensor([c + a for a, _, c, _ in parts]), torch.tensor([d + b for _, b, _, d in parts])
