"""What a recipe may say: typed fields, their defaults, units and where the defaults come from.

Plain dataclasses, no behaviour. `load.py` fills them strictly, `rules.py` refuses impossible combinations.
Mappings with user-chosen keys exist only under `options` and `extra`; everything else is named here.
Left out: stage-specific sections, which stand in `stages.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from posttrain.recipe.sections import BestBy, Gate


@dataclass
class FromConfig:
    """A model with random weights, described by a transformers config."""

    model_type: str
    """transformers' `model_type`: llama, qwen2, gpt2, ..."""
    options: dict[str, Any] = field(default_factory=dict)
    """Fields of that config class (hidden_size, num_hidden_layers, ...). `vocab_size` follows the tokenizer."""


@dataclass
class Lora:
    """Low-rank adapters (Hu et al. 2021, arXiv 2106.09685), through peft."""

    r: int = 16
    alpha: int = 32
    dropout: float = 0.0
    target_modules: list[str] = field(default_factory=lambda: ["all-linear"])
    """Module names (`lm_head` too), or `all-linear`: every linear layer but the head (QLoRA, arXiv 2305.14314)."""
    modules_to_save: list[str] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)
    """Further fields of `peft.LoraConfig` (use_dora, init_lora_weights, ...)."""


@dataclass
class Quantization:
    """Frozen base weights in few bits (QLoRA); needs the `qlora` extra, a GPU and `lora`."""

    bits: Literal[4, 8] = 4
    type: Literal["nf4", "fp4"] = "nf4"
    double: bool = True


@dataclass
class Model:
    """Where the weights and the tokenizer come from, and how they are held."""

    init: str | None = None
    """Hub id, local path, `runs/<name>` (last checkpoint) or `runs/<name>@best:<task>/<metric>`."""
    revision: str | None = None
    from_config: FromConfig | None = None
    """Instead of `init`: train from scratch."""
    tokenizer: str | None = None
    """Hub id, path, `builtin:digits` or `builtin:bytes`. Default: the tokenizer of `init`."""
    add_tokens: list[str] = field(default_factory=list)
    """Special tokens to add; the embedding grows, new rows start at the mean of the old ones."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Of the weights in memory. `auto`: float32, the master weights mixed precision wants."""
    attention: Literal[
        "auto", "sdpa", "eager", "flash_attention_2", "flash_attention_3", "flex_attention"
    ] = "auto"
    """`auto`: flash attention where it is installed and a GPU is there, SDPA elsewhere; logged."""
    trust_remote_code: bool = False
    lora: Lora | None = None
    quantization: Quantization | None = None
    options: dict[str, Any] = field(default_factory=dict)
    """Further arguments of `from_pretrained`."""


@dataclass
class Columns:
    """Which column holds what. Unset names are found by the usual spellings of each format."""

    messages: str | None = None
    prompt: str | None = None
    completion: str | None = None
    text: str | None = None
    system: str | None = None
    answer: str | None = None
    chosen: str | None = None
    """The better reply of a preference pair (stage dpo), with its conversation or beside a prompt."""
    rejected: str | None = None
    label: str | None = None
    """true or false, 1 or 0: whether the reply is a good one (preference.loss: kto). Default: `label`."""
    rating: str | None = None
    """The number that rates a reply: a key of the entries of a list of replies, or a list beside it."""
    p: str | None = None
    """External success probability in [0, 1], for `loss.p: external`."""
    rewards: str | None = None
    """A row's own verifiers by label, one or a list (stages that sample); default: a column `rewards`."""


@dataclass
class Source:
    """One data set: a file, a glob, a folder, a hub id or a generator."""

    name: str
    path: str | None = None
    """JSONL / JSON / Parquet / CSV / Arrow file, glob or folder (sorted), or a hub id `org/name`."""
    generator: str | None = None
    """Instead of `path`: a registered generator, e.g. `multiplication`; its settings in `options`."""
    format: Literal["auto", "messages", "prompt_completion", "text"] = "auto"
    columns: Columns = field(default_factory=Columns)
    split: str = "train"
    """Hub only."""
    subset: str | None = None
    """Hub only: the configuration name."""
    revision: str | None = None
    system: str | None = None
    """A system message put before every conversation that has none."""
    weight: float | None = None
    """Share of the mixture, relative to the other sources. Unset on all: proportional to size."""
    max_examples: int | None = None
    """Cap: at most so many rows of the source are used (a seeded choice)."""
    max_repeats: float | None = None
    """An error, before training, where the run would show the source more often than this."""
    options: dict[str, Any] = field(default_factory=dict)


@dataclass
class Data:
    """The mixture and how its rows become tokens."""

    sources: list[Source]
    template: str = "tokenizer"
    """`tokenizer` (its own), `chatml`, `llama3`, `tulu`, `plain`, or a path to a .jinja file."""
    train_on: Literal["assistant", "last", "all"] = "assistant"
    """Trained tokens: every assistant turn, the last one only, or everything (plain language model)."""
    max_length: int = 2048
    """Tokens a row. TRL cuts silently at 1024; here `overlong` says what happens."""
    overlong: Literal["drop", "truncate", "error"] = "drop"
    max_drop_share: float = 0.05
    """More dropped or truncated rows than this share of a source is an error."""
    weighting: Literal["examples", "tokens"] = "examples"
    """What `weight` counts."""
    temperature: float = 1.0
    """Weights become w^(1/temperature): above 1 flattens towards equal shares."""
    padding_free: bool = False
    """Concatenate a micro-batch into one row with position ids that restart: no padding is computed."""
    shuffle: bool = True
    prepare_timeout: float = 60.0
    """Minutes the other ranks wait for the rank that prepares the rows."""
    cache_dir: str | None = None
    """Tokenised rows by content hash. Default: $POSTTRAIN_CACHE or ~/.cache/posttrain."""


@dataclass
class Loss:
    """A member of the family L = f(log p of a segment); see posttrain/losses/confidence.py."""

    name: Literal["cross_entropy", "confidence_limited", "dft", "power", "focal", "maxrl"] = "cross_entropy"
    n: float = 1.0
    """N of `confidence_limited`: the number of attempts the loss aims at (arXiv 2502.07154, eq. 3)."""
    exponent: float | None = None
    """a of `power`, gamma of `focal`, T of `maxrl`."""
    segment: Literal["token", "step", "completion", "answer"] = "completion"
    """What p is the probability of."""
    p: Literal["model", "external"] = "model"
    """`external`: the column `p` of the source, e.g. the fraction of rollouts judged correct."""
    value: Literal["exact", "surrogate"] = "exact"
    """`surrogate`: the detached weight F times cross-entropy, what the paper's authors ship."""
    reduction: Literal["sum", "token_mean", "segment_mean", "length_mean"] = "token_mean"
    """Over one optimizer step, all micro-batches and ranks. Changing it changes the right learning rate."""
    answer_marker: str | None = None
    """Segments of kind `answer` start right after the last occurrence of this text in a turn."""
    step_delimiter: str = "\n"
    """Segments of kind `step` end with this text."""
    p_below: float | None = None
    """Gate: only segments with p strictly below this are trained."""
    weight_above: float | None = None
    """Gate: only segments with F strictly above this are trained."""
    backend: Literal["auto", "triton", "torch", "reference"] = "auto"
    """What computes the loss. `auto`: triton on a GPU, torch (chunks of rows) elsewhere; logged."""
    z_loss: float = 0.0
    """Adds this times log(Z)^2 of every trained token, Z the softmax's sum (PaLM, arXiv 2204.02311, uses 1e-4)."""
    skip_below: float | None = None
    """Tokens whose weight F is at or below this get no gradient, which saves their share of two matmuls of three.
    0 leaves out only what is exactly zero. Unset: every gradient is made. The share is logged as `skipped_rows`."""
    chunk_rows: int | None = None
    """Rows of logits in memory at once. Unset: at most 4096, and 2 GiB on a GPU or 64 MiB on a CPU."""


@dataclass
class Train:
    """Names as transformers and TRL use them. Accumulation is derived, never given."""

    learning_rate: float
    global_batch_size: int
    """Examples an optimizer step, over all ranks and accumulation."""
    per_device_train_batch_size: int = 1
    """Examples a forward pass on one rank (the micro-batch)."""
    num_train_epochs: float | None = None
    """Passes over the mixture (the sum of its capped sources). Or `max_steps`."""
    max_steps: int | None = None
    lr_scheduler_type: str = "linear"
    warmup_steps: float = 0.0
    """Steps, or below 1 a share of all steps."""
    weight_decay: float = 0.0
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_epsilon: float = 1e-8
    max_grad_norm: float = 1.0
    optim: str = "adamw_torch"
    bf16: bool = False
    fp16: bool = False
    activation_checkpointing: bool = False
    """Recompute activations in backward (`gradient_checkpointing` in older libraries)."""
    logging_steps: int = 10
    seed: int = 42
    dataloader_num_workers: int = 0
    report_to: list[str] = field(default_factory=lambda: ["tensorboard"])
    log_samples: bool = False
    """Write the row ids of every optimizer step to samples.jsonl."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Any other field of TRL's config class, checked by name."""


@dataclass
class Checkpoints:
    """When checkpoints are written and which stay. The first step and the last are always scored."""

    save_steps: int | None = None
    """Optimizer steps between checkpoints. Unset: at the end only."""
    keep_last: int | None = 3
    """null keeps all."""
    keep_best: BestBy | None = None
    """Kept besides, whatever its age."""


@dataclass
class Task:
    """A task that every checkpoint is scored on, and how it is sampled."""

    name: str
    """A registered task: gsm8k, arithmetic, ..."""
    path: str | None = None
    """File of problems, for tasks that read one; or a hub id."""
    limit: int | None = None
    """The first so many problems."""
    samples: int = 1
    """Completions a problem. Choose 2-4 times the largest k."""
    k: list[int] = field(default_factory=lambda: [1])
    temperature: float = 1.0
    """0 is greedy decoding; it allows one sample only."""
    top_p: float = 1.0
    max_new_tokens: int = 512
    batch_size: int = 64
    """Sequences a generation batch."""
    seed: int = 0
    options: dict[str, Any] = field(default_factory=dict)
    """Settings of the task itself."""


@dataclass
class Heldout:
    """Loss on rows that are not trained on: a share split off every source, or a source of its own."""

    share: float | None = None
    """Share of each source's rows, chosen by seed."""
    source: Source | None = None
    every_steps: int = 100
    max_examples: int = 512
    """At most so many rows are measured; with `share` all of them stay out of training."""
    seed: int = 0
    """Chooses the rows, apart from `train.seed`: two seeds of a run, or two stages, hold out the same rows."""


@dataclass
class Evaluate:
    """What is measured while training."""

    tasks: list[Task] = field(default_factory=list)
    heldout: Heldout | None = None
    at_start: bool = True
    """Score the model before the first step, as step 0."""
    gates: list[Gate] = field(default_factory=list)
    """Scores that must not fall; judged after every checkpoint."""


@dataclass
class Guard:
    """What to do when a step goes wrong."""

    on_nan: Literal["stop", "skip"] = "stop"
    """A NaN or infinite loss or gradient norm."""
    on_spike: Literal["ignore", "stop", "skip"] = "ignore"
    spike_factor: float = 5.0
    """A spike is a loss above this times the median of the last `window` steps."""
    window: int = 50
    max_skips: int = 20
    """More skipped steps than this stop the run."""
