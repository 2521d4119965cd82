"""Sections that only the later stages have: `preference` of dpo; `rewards`, `success`, `rollout`, `policy` of rlvr;
`pairing` and `keep` of the two stages that sample. Plain dataclasses, no behaviour; as `schema.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass
class Preference:
    """The preference loss of a DPO stage; formulas and papers in losses/preference.py."""

    loss: Literal["dpo", "dpo_norm", "ipo", "cdpo", "robust", "wpo", "simpo", "orpo", "kto"] = "dpo_norm"
    beta: float | None = None
    """Default by loss: dpo_norm 5 (Tulu 3, arXiv 2411.15124, table 20), simpo 2, the others 0.1."""
    label_smoothing: float = 0.0
    """cdpo and robust: the chance in [0, 0.5) that a pair is labelled the wrong way round."""
    gamma: float = 0.5
    """simpo: the margin."""
    sft_weight: float = 0.0
    """Weight of a supervised term on the chosen side, a token. 0: none."""
    sft_n: float = 1.0
    """N of that term's confidence-limited loss; 1 is cross-entropy."""
    desirable_weight: float = 1.0
    """kto: lambda_D, the weight of good replies. With undesirable_weight it should make up for unequal numbers: the paper
    (arXiv 2402.01306, section 4.2) wants weight x number of good over bad in [1, 4/3]."""
    undesirable_weight: float = 1.0
    """kto: lambda_U, the weight of bad replies."""
    reference: Literal["precomputed", "live"] = "precomputed"
    """Log-probabilities of the reference once, before the first step, and kept on disk; or anew in every step by a second,
    frozen model (with LoRA: the same model, adapters off). The losses are the same; live costs memory and time, and
    precomputed a pass over the data."""
    reference_model: str | None = None
    """Another reference than the start model: hub id, path or run, as `model.init`. It must have the same tokenizer."""
    reference_revision: str | None = None
    """Revision of a reference_model from the hub."""


@dataclass
class Reward:
    """A component of the reward."""

    name: str
    """A registered reward (`posttrain rewards list`), or `package.module:function`."""
    weight: float = 1.0
    label: str | None = None
    """Its name in logs and in a row's `rewards` column. Default: `name`; needed where one reward stands twice."""
    options: dict[str, Any] = field(default_factory=dict)


@dataclass
class Success:
    """What counts as solved: the 0/1 of pass@k, of success rates and of pass@k-style advantages."""

    reward: str
    """Label of a verifier."""
    at_least: float = 1.0


@dataclass
class Vllm:
    """How vLLM samples (`rollout.backend: vllm_colocate | vllm_server`); through TRL, with the names TRL uses."""

    gpu_memory_utilization: float = 0.3
    """Colocated: share of a GPU's memory that vLLM may take."""
    tensor_parallel_size: int = 1
    """Colocated: GPUs a copy of the model."""
    enable_sleep_mode: bool = False
    """Colocated: give the memory back while the policy trains."""
    server_base_url: str = "http://localhost:8000"
    """Server: where `VLLM_SERVER_DEV_MODE=1 vllm serve MODEL --weight-transfer-config '{"backend": "nccl"}' --logprobs-mode
    processed_logprobs --max-logprobs -1` listens, which is what TRL 1.16 talks to."""
    server_timeout: float = 240.0
    """Server: seconds to wait until it answers."""
    correction: Literal["none", "token_truncate", "token_mask", "sequence_truncate", "sequence_mask"] = (
        "sequence_mask"
    )
    """Importance weights for the difference between vLLM's probabilities and the policy's (TRL's default)."""
    correction_max: float = 3.0
    """Weights above this are truncated or masked."""
    correction_min: float | None = None
    """Weights below this, likewise."""


@dataclass
class Rollout:
    """How completions are sampled and judged."""

    num_generations: int = 16
    """Completions a prompt (the group)."""
    temperature: float = 1.0
    top_p: float = 1.0
    max_new_tokens: int = 2048
    """Tokens a completion; a prompt may have `data.max_length` besides."""
    batch_size: int = 128
    """Sequences sampled together on one rank."""
    deadline: float | None = None
    """Seconds in which each reward must have judged a batch; a check without a verdict by then has failed. Default: what
    the checks may take by their own limits, and ten minutes."""
    max_failed: float = 0.1
    """The run stops where more than this share of a batch's checks fail (the checker, not the completion)."""
    backend: Literal["transformers", "vllm_colocate", "vllm_server"] = "transformers"
    vllm: Vllm = field(default_factory=Vllm)


@dataclass
class TrainRollout(Rollout):
    """How an RLVR stage samples."""

    steps_per_generation: int = 1
    """Optimizer steps that share one batch of rollouts. Checkpoints fall on ends of such batches."""
    refill: int = 0
    """Dynamic sampling (DAPO, arXiv 2503.14476): groups all right or all wrong are replaced by new prompts, in at most
    so many further rounds a batch. 0: off."""
    truncated: Literal["train", "mask", "penalise"] = "train"
    """Completions cut off at `max_new_tokens`: trained like others; left out of the loss once advantages are computed; or
    given `truncated_reward`."""
    truncated_reward: float = 0.0
    """penalise: their reward (Tulu 3 used -10, with 10 for a right answer)."""


@dataclass
class Policy:
    """The objective of an RLVR stage; advantages in losses/advantage.py, losses TRL's."""

    loss: Literal["grpo", "dr_grpo", "dapo", "bnpo", "gspo", "cispo"] = "dapo"
    """How token losses are clipped and averaged: a mean a completion (grpo, arXiv 2402.03300), a sum over a constant length
    (dr_grpo, 2503.20783), a mean over all tokens of a step (dapo, 2503.14476) or of a micro-batch (bnpo), ratios of whole
    completions (gspo, 2507.18071), clipped weights instead of clipped ratios (cispo, 2506.13585)."""
    advantage: Literal["mean", "mean_std", "leave_one_out", "pkpo", "pass_at_k", "confidence", "maxrl"] = (
        "mean_std"
    )
    k: int = 1
    """k of pkpo and pass_at_k; N of confidence."""
    beta: float = 0.0
    """Weight of the KL divergence to the reference. 0: no reference is held."""
    reference: str | None = None
    """Another reference than the start model: hub id, path or run; it must have the same tokenizer."""
    epsilon: float | None = None
    """Ratios are clipped to [1 - epsilon, 1 + epsilon_high]. Default 0.2; gspo 3e-4 (its section 5.1)."""
    epsilon_high: float | None = None
    """Default: epsilon; gspo 4e-4; cispo 5, the cap of its weights."""
    num_iterations: int = 1
    """Passes over each batch of rollouts."""


@dataclass
class Pairing:
    """How completions of one prompt become preference pairs; strategies in rollouts/pairing.py."""

    strategy: Literal["best_worst", "best_random", "correct_incorrect", "first_pit", "cross_model"] = (
        "correct_incorrect"
    )
    per_prompt: int = 1
    """At most so many pairs a prompt (correct_incorrect)."""
    min_gap: float = 0.0
    """Least difference of the rewards of a pair."""
    prefer_length: Literal["none", "closest"] = "none"
    """closest: of the possible rejected completions the one whose length is nearest to the chosen one's."""
    step_delimiter: str = "\n"
    """first_pit and cross_model: steps of a completion end with this text."""
    continuations: int = 8
    """first_pit and cross_model: continuations from each prefix that estimate its value."""
    teacher: str | None = None
    """cross_model: the model that corrects; hub id, path or run."""


@dataclass
class Keep:
    """Prompts worth training on, by how many of `num_generations` completions were right (Qwen2.5-Math: 2 to 5 of 8)."""

    at_least: int = 2
    at_most: int = 5


LOWER_IS_BETTER = ("nll", "truncated", "ece", "brier")


@dataclass
class BestBy:
    """Which score decides the best checkpoint."""

    task: str
    metric: str
    greater_is_better: bool = True


@dataclass
class Gate:
    """A score that must not fall while another one is trained for."""

    task: str
    """One of `evaluate.tasks`."""
    metric: str
    max_drop: float
    """How far the score may fall, in units of the metric (0.02 of pass@1 is two points); choose it above the noise."""
    against: Literal["start", "best"] = "start"
    """Below what: the score of the model the run starts from (step 0), or the best of the run so far."""
    action: Literal["stop", "mark"] = "mark"
    """A checkpoint that fails never counts as the best. `mark`: that is all. `stop`: the run ends besides, until the gate
    is changed."""
    greater_is_better: bool = True
