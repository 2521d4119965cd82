"""The sections that only some stages have (dpo: `preference`; rlvr: `policy`; rlvr, pairs and pass_rate:
`rewards`, `success`, `rollout`; pairs: `pairing`; pass_rate: `keep`), the two entries that refer to a
score (`BestBy`, `Gate`), and `guard`.

Plain dataclasses without behaviour. The sections that all stages, or all that train, have are in schema.py.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

LOWER_IS_BETTER = ("nll", "truncated", "ece", "brier", "bits_per_byte", "blank_perplexity")
"""Metrics of tasks that fall as a model gets better."""


@dataclass
class Preference:
    """The preference loss of a DPO stage; formulas and papers in losses/preference.py."""

    loss: Literal["dpo", "dpo_norm", "ipo", "cdpo", "robust", "wpo", "simpo", "orpo", "kto"] = "dpo_norm"
    beta: float | None = None
    """Default by loss: dpo_norm 5 (Tulu 3, arXiv 2411.15124, table 20), simpo 2, the others 0.1."""
    label_smoothing: float = 0.0
    """cdpo and robust: the probability, in [0, 0.5), that the two replies of a pair are swapped."""
    gamma: float = 0.5
    """simpo: the margin."""
    sft_weight: float = 0.0
    """Weight of a supervised term on the chosen reply, averaged over its tokens. 0: no such term."""
    sft_n: float = 1.0
    """N of that term's confidence-limited loss; 1 is cross-entropy."""
    desirable_weight: float = 1.0
    """kto: lambda_D, the weight of good replies. Choose both weights so that they compensate for unequal
    numbers: the paper (arXiv 2402.01306, section 4.2) recommends weight x number of good replies over the
    same of bad ones in [1, 4/3].
    """
    undesirable_weight: float = 1.0
    """kto: lambda_U, the weight of bad replies."""
    reference: Literal["precomputed", "live"] = "precomputed"
    """Where the log-probabilities of the reference come from. `precomputed`: computed once before the first
    step and kept on disk, which costs a pass over the data. `live`: computed in every step by a second,
    frozen model (with LoRA: by the same model with its adapters off), which costs memory and time. The losses
    are the same.
    """
    reference_model: str | None = None
    """The reference: hub id, path or run, as for `model.init`, with the same tokenizer. Default: the start
    model.
    """
    reference_revision: str | None = None
    """Revision of a `reference_model` from the hub."""


@dataclass
class Reward:
    """A component of the reward."""

    name: str
    """A registered reward (`posttrain rewards list`), or `package.module:function`."""
    weight: float = 1.0
    label: str | None = None
    """Its name in logs and in a row's `rewards` column. Default: `name`. Needed if a reward occurs twice."""
    options: dict[str, Any] = field(default_factory=dict)


@dataclass
class Success:
    """What counts as a success in success rates, pass@k and the advantages that use successes."""

    reward: str
    """Label of a verifier."""
    at_least: float = 1.0


@dataclass
class Vllm:
    """How vLLM samples (`rollout.backend: vllm_colocate | vllm_server`), through TRL and with its names."""

    gpu_memory_utilization: float = 0.3
    """Colocated: share of a GPU's memory that vLLM may take."""
    tensor_parallel_size: int = 1
    """Colocated: GPUs a copy of the model."""
    enable_sleep_mode: bool = False
    """Colocated: release the memory while the policy trains."""
    server_base_url: str = "http://localhost:8000"
    """Server: its address. TRL 1.16 expects a server started with `VLLM_SERVER_DEV_MODE=1 vllm serve MODEL
    --weight-transfer-config '{"backend": "nccl"}' --logprobs-mode processed_logprobs --max-logprobs -1`."""
    server_timeout: float = 240.0
    """Server: seconds to wait for an answer."""
    correction: Literal["none", "token_truncate", "token_mask", "sequence_truncate", "sequence_mask"] = (
        "sequence_mask"
    )
    """Importance weights for the difference between vLLM's probabilities and the policy's. Default: TRL's."""
    correction_max: float = 3.0
    """Weights above this are truncated or masked."""
    correction_min: float | None = None
    """Weights below this are truncated or masked."""
    max_logp_diff: float | None = 0.1
    """The run stops before a step whose completions have a larger mean |log policy - log sampler|, in nats
    per token. The default is our choice, not measured on a GPU: larger than the rounding of two bf16
    programs, smaller than what other weights do (tenths to several nats). With `top_p` below 1 the bound is
    larger by -log top_p, the most by which renormalising raises a log-probability. null: no bound.
    """


TOOL_LOOPS = dict.fromkeys(
    (
        *("tools", "tool_calls", "environment", "environments", "environment_factory", "env"),
        *("rollout_func", "max_turns", "multi_turn", "max_tool_calling_iterations"),
    ),
    "loops over tools and turns are not supported: sampling stops at the first call. Tools that a reply may "
    "call are the column `tools` of a row, and a prompt may end in the answer of a tool",
)
"""Keys with which other libraries run the tools that a reply calls -> why there are none."""


@dataclass
class Rollout:
    """How completions are sampled and judged."""

    REFUSED: ClassVar[dict[str, str]] = TOOL_LOOPS

    num_generations: int = 16
    """Completions per prompt (the size of a group)."""
    temperature: float = 1.0
    top_p: float = 1.0
    max_new_tokens: int = 2048
    """Maximum tokens of a completion. The prompt is not counted; its limit is `data.max_length`."""
    batch_size: int = 128
    """Sequences sampled together on one rank."""
    deadline: float | None = None
    """Seconds that each reward may take for a batch; checks without a verdict by then have failed. Default:
    what the checks may take by their own limits, plus ten minutes.
    """
    max_failed: float = 0.1
    """The run stops if more than this share of the checks of a batch fail (the check, not the completion)."""
    backend: Literal["transformers", "vllm_colocate", "vllm_server"] = "transformers"
    vllm: Vllm = field(default_factory=Vllm)


@dataclass
class TrainRollout(Rollout):
    """How an RLVR stage samples."""

    steps_per_generation: int = 1
    """Optimizer steps that share a batch of rollouts. Checkpoints are only saved at the end of a batch."""
    refill: int = 0
    """Dynamic sampling (DAPO, arXiv 2503.14476): groups in which all completions are right, or all are wrong,
    are replaced by those of new prompts, in at most this many more rounds per batch. 0: off.
    """
    truncated: Literal["train", "mask", "penalise"] = "train"
    """What happens to completions that are cut off at `max_new_tokens`: they are trained like the others,
    left out of the loss after the advantages are computed, or given `truncated_reward`.
    """
    truncated_reward: float = 0.0
    """penalise: the reward of cut-off completions (Tulu 3: -10, with 10 for a right answer)."""


@dataclass
class Policy:
    """The objective of an RLVR stage: TRL's losses, and the advantages of losses/advantage.py."""

    loss: Literal["grpo", "dr_grpo", "dapo", "bnpo", "gspo", "cispo"] = "dapo"
    """How the losses of tokens are clipped and averaged: a mean per completion (grpo, arXiv 2402.03300), a
    sum over a constant length (dr_grpo, 2503.20783), a mean over all tokens of a step (dapo, 2503.14476) or
    of a micro-batch (bnpo), the ratio of the whole completion (gspo, 2507.18071), clipped weights instead of
    clipped ratios (cispo, 2506.13585).
    """
    advantage: Literal["mean", "mean_std", "leave_one_out", "pkpo", "pass_at_k", "confidence", "maxrl"] = (
        "mean_std"
    )
    k: int = 1
    """k of pkpo and pass_at_k; N of confidence."""
    beta: float = 0.0
    """Weight of the KL divergence to the reference. 0: no reference model is loaded."""
    kl: Literal["k3_weighted", "k3"] = "k3_weighted"
    """The KL term of a token. With r = reference / pi, k3 = r - log r - 1 (arXiv 2402.03300, eq. 4), whose
    gradient is that of KL(reference || pi), and only while pi is the policy that sampled. `k3_weighted`
    multiplies it by pi / pi_old (arXiv 2512.02556; TRL's default): its gradient is that of the divergence
    that is meant, KL(pi || reference), also in later steps on the same rollouts. See losses/README.md.
    """
    reference: str | None = None
    """The reference: hub id, path or run, with the same tokenizer. Default: the start model."""
    epsilon: float | None = None
    """Ratios are clipped to [1 - epsilon, 1 + epsilon_high]. Default 0.2; gspo 3e-4 (its section 5.1)."""
    epsilon_high: float | None = None
    """Default: `epsilon`; gspo 4e-4; cispo 5, the cap of its weights."""
    num_iterations: int = 1
    """Passes over each batch of rollouts."""


@dataclass
class Pairing:
    """How completions of a prompt become preference pairs; the strategies are in rollouts/pairing.py."""

    strategy: Literal["best_worst", "best_random", "correct_incorrect", "first_pit", "cross_model"] = (
        "correct_incorrect"
    )
    per_prompt: int = 1
    """correct_incorrect: the most pairs that are made from one prompt."""
    min_gap: float = 0.0
    """Minimum difference between the rewards of a pair."""
    prefer_length: Literal["none", "closest"] = "none"
    """closest: reject the completion whose length is nearest to that of the chosen one."""
    step_delimiter: str = "\n"
    """first_pit and cross_model: the text that ends a step of a completion."""
    continuations: int = 8
    """first_pit and cross_model: continuations sampled from each prefix to estimate its value."""
    teacher: str | None = None
    """cross_model: the model that corrects steps: hub id, path or run."""


@dataclass
class Keep:
    """Which prompts are worth training on: those with this many right completions out of `num_generations`.

    Qwen2.5-Math used 2 to 5 of 8.
    """

    at_least: int = 2
    at_most: int = 5


@dataclass
class BestBy:
    """The score that decides which checkpoint is the best."""

    task: str
    metric: str
    greater_is_better: bool = True


@dataclass
class Gate:
    """A score that must not fall while others are trained for."""

    task: str
    """One of `evaluate.tasks`."""
    metric: str
    max_drop: float
    """How far the score may fall, in units of the metric (0.02 of pass@1 is two points). Choose it above the
    noise.
    """
    against: Literal["start", "best"] = "start"
    """What it is compared with: the score of the start model (step 0), or the best one of the run so far."""
    action: Literal["stop", "mark"] = "mark"
    """A checkpoint that fails never counts as the best. `stop`: the run ends as well, and does not resume
    until the gate is changed.
    """
    greater_is_better: bool = True


@dataclass
class Guard:
    """What to do about a bad step."""

    on_nan: Literal["stop", "skip"] = "stop"
    """A NaN or infinite loss or gradient norm."""
    on_spike: Literal["ignore", "stop", "skip"] = "ignore"
    spike_factor: float = 5.0
    """A spike is a loss above this many times the median of the last `window` steps."""
    window: int = 50
    max_skips: int = 20
    """The run stops after more skipped steps than this."""
