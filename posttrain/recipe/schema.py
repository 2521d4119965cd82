"""The sections that all stages have (`model`, `data`) or all that train (`train`, `checkpoints`,
`evaluate`), and sft's `loss`: typed keys with their defaults and units.

Plain dataclasses without behaviour; build.py fills them strictly, rules.py refuses impossible combinations.
Only `options` and `extra` take keys that are not named here. `model` is in model_section.py, sections of
single stages are in sections.py.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from posttrain.recipe.model_section import FromConfig, Lora, Model, Quantization
from posttrain.recipe.sections import TOOL_LOOPS, BestBy, Gate

__all__ = ["FromConfig", "Lora", "Model", "Quantization"]


@dataclass
class Columns:
    """The names of the columns. Columns that are not set are found by their usual names."""

    messages: str | None = None
    prompt: str | None = None
    completion: str | None = None
    text: str | None = None
    system: str | None = None
    answer: str | None = None
    chosen: str | None = None
    """The better reply of a preference pair (dpo): a whole conversation, or the reply to `prompt`."""
    rejected: str | None = None
    label: str | None = None
    """Whether the reply is good: true or false, 1 or 0 (preference.loss: kto). Default: `label`."""
    rating: str | None = None
    """The ratings of a list of replies: a key of its entries, or a column with a list of numbers."""
    tools: str | None = None
    """Tools that the assistant may call: a list, or JSON text."""
    reasoning: str | None = None
    """What is thought before the reply. Default: `reasoning_content`, `reasoning` or `thinking`."""
    p: str | None = None
    """External success probability in [0, 1], for `loss.p: external`."""
    rewards: str | None = None
    """The label, or list of labels, of a row's own verifiers (stages that sample). Default: `rewards`."""


@dataclass
class Source:
    """A data set: a file, a glob, a folder, a hub id or a generator."""

    name: str
    path: str | None = None
    """A JSONL, JSON, Parquet, CSV or Arrow file, a glob, a folder (sorted, or as `datasets` saved it), here
    or in a store (`s3://bucket/*.jsonl`), or a hub id `org/name`."""
    generator: str | None = None
    """Instead of `path`: a registered generator, e.g. `multiplication`, with its settings in `options`."""
    format: Literal["auto", "messages", "prompt_completion", "text", "tokens"] = "auto"
    """`tokens` (sft): rows that are tokenised already. `auto` decides by the columns."""
    columns: Columns = field(default_factory=Columns)
    split: str = "train"
    """Of a hub id, or of a folder that `DatasetDict.save_to_disk` wrote."""
    subset: str | None = None
    """Hub only: the configuration name."""
    revision: str | None = None
    system: str | None = None
    """A system message for every conversation that has none."""
    weight: float | None = None
    """Share of the mixture, relative to the other sources. Default: proportional to the number of rows."""
    max_examples: int | None = None
    """Use at most this many rows of the source, chosen by seed."""
    max_repeats: float | None = None
    """Refuse to train if the run would repeat the source more often than this."""
    roles: Literal["strict", "join", "loose"] = "strict"
    """Conversations out of order are dropped, joined where neighbours have one role, or kept."""
    ignore: list[str] = field(default_factory=list)
    """Columns, and keys of messages, that are not to be used."""
    on_error: Literal["stop", "skip"] = "stop"
    """A row that cannot be read, or does not fit, stops the run, or is dropped as `unreadable`."""
    options: dict[str, Any] = field(default_factory=dict)


@dataclass
class Data:
    """The mixture, and how its rows become tokens."""

    sources: list[Source]
    template: str = "tokenizer"
    """`tokenizer` (its own template), `chatml`, `llama3`, `tulu`, `plain`, or the path of a .jinja file."""
    train_on: Literal["assistant", "last", "each", "all"] = "assistant"
    """Every assistant turn, only the last one, each in a row of its own (for templates that drop earlier
    thoughts), or all tokens (language modelling)."""
    template_options: dict[str, Any] = field(default_factory=dict)
    """Values for the chat template, e.g. `{enable_thinking: false}`; those of a row come first."""
    max_length: int = 2048
    """Maximum tokens of a row; `overlong` decides about longer ones (TRL truncates silently at 1024)."""
    overlong: Literal["drop", "truncate", "error"] = "drop"
    max_characters: int = 1_000_000
    """Rows with more characters are dropped before they are tokenised (`overlong: error`: refused)."""
    max_drop_share: float = 0.05
    """Fail if more than this share of the rows of a source is dropped or truncated."""
    weighting: Literal["examples", "tokens"] = "examples"
    """What `weight` counts."""
    temperature: float = 1.0
    """Weights become w^(1/temperature); above 1, they move towards equal shares."""
    padding_free: bool = False
    """Concatenate the rows of a micro-batch into one, with position ids that restart, to avoid padding."""
    shuffle: bool = True
    prepare_timeout: float = 60.0
    """Minutes that the other ranks wait for the rank that prepares the rows."""
    num_proc: int | None = None
    """Processes that tokenise; the tables are the same for any number. Default: a core each."""
    cache_dir: str | None = None
    """Folder of the tokenised rows. Default: $POSTTRAIN_CACHE or ~/.cache/posttrain."""
    on_change: Literal["refuse", "accept"] = "refuse"
    """Where rows changed since the run began. `accept`: train its remaining steps on the new ones."""


@dataclass
class Loss:
    """A loss of the family L = f(log p of a segment); see posttrain/losses/confidence.py."""

    name: Literal["cross_entropy", "confidence_limited", "dft", "power", "focal", "maxrl"] = "cross_entropy"
    n: float = 1.0
    """N of `confidence_limited`: the number of attempts the loss optimises for (arXiv 2502.07154, eq. 3)."""
    exponent: float | None = None
    """a of `power`, gamma of `focal`, T of `maxrl`."""
    segment: Literal["token", "step", "completion", "answer"] = "completion"
    """What p is the probability of."""
    p: Literal["model", "external"] = "model"
    """`external`: the column `p` of the source, e.g. the fraction of rollouts that were judged correct."""
    value: Literal["exact", "surrogate"] = "exact"
    """`surrogate`: the detached weight F times cross-entropy, as in the code of the paper's authors."""
    reduction: Literal["sum", "token_mean", "segment_mean", "length_mean"] = "token_mean"
    """Over an optimizer step, all micro-batches and ranks. Another reduction needs another learning rate."""
    answer_marker: str | None = None
    """segment: answer starts after the last occurrence of this text in a turn."""
    step_delimiter: str = "\n"
    """segment: step ends with this text."""
    p_below: float | None = None
    """Gate: only segments with p strictly below this are trained."""
    weight_above: float | None = None
    """Gate: only segments with F strictly above this are trained."""
    backend: Literal["auto", "triton", "torch", "reference"] = "auto"
    """What computes the loss. `auto`: triton on a GPU, else torch (chunks of rows); the choice is logged.
    Triton has neither `label_smoothing` nor `entropy_bonus`; with them `auto` is torch."""
    z_loss: float = 0.0
    """Weight of log(Z)^2 of every trained token, Z the softmax normaliser (the sum of exp of the logits)
    (arXiv 2204.02311: 1e-4)."""
    label_smoothing: float = 0.0
    """eps in [0, 1), of `cross_entropy` only: -log p becomes (1 - eps) (-log p) + eps times the mean of
    -log p over the vocabulary, as in torch's `cross_entropy`; gates act on both parts."""
    entropy_bonus: float = 0.0
    """Weight of the entropy of every trained token's distribution, in nats, which is subtracted from the loss
    (arXiv 1701.06548, eq. 4). As the z-loss it is reduced like cross-entropy, and no gate or F acts on it."""
    skip_below: float | None = None
    """Tokens with a weight F at or below this get no gradient, which saves their share of two of three
    matmuls. 0: skip only zeros. Default: skip none. The share is logged as `skipped_rows`."""
    chunk_rows: int | None = None
    """Rows of logits in memory at once. Default: at most 4096, and 2 GiB on a GPU or 64 MiB on a CPU."""


@dataclass
class Train:
    """The names are those of transformers and TRL. Gradient accumulation is derived from the batch sizes."""

    learning_rate: float
    global_batch_size: int
    """Examples of an optimizer step, over all ranks and micro-batches."""
    per_device_train_batch_size: int = 1
    """Examples of a forward pass on one rank (the micro-batch)."""
    num_train_epochs: float | None = None
    """Passes over the mixture (all its sources, after `max_examples`). Alternatively: `max_steps`."""
    max_steps: int | None = None
    lr_scheduler_type: str = "linear"
    warmup_steps: float = 0.0
    """Number of steps; below 1, a share of all steps."""
    weight_decay: float = 0.0
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_epsilon: float = 1e-8
    max_grad_norm: float = 1.0
    optim: str = "adamw_torch"
    bf16: bool = False
    fp16: bool = False
    activation_checkpointing: bool = False
    """Recompute activations in the backward pass (transformers: `gradient_checkpointing`)."""
    logging_steps: int = 10
    seed: int = 42
    dataloader_num_workers: int = 0
    report_to: list[str] = field(default_factory=lambda: ["tensorboard"])
    log_samples: bool = False
    """Write the row ids of every optimizer step to samples.jsonl."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Other fields of TRL's config class; their names are checked."""


@dataclass
class Checkpoints:
    """When checkpoints are saved and which are kept. The start model (step 0, if `evaluate.at_start`) and the
    last checkpoint are scored, if there are tasks."""

    save_steps: int | None = None
    """Optimizer steps between checkpoints. Default: only at the end."""
    keep_last: int | None = 3
    """null keeps all."""
    keep_best: BestBy | None = None
    """The best checkpoint by this score is kept as well."""


@dataclass
class Task:
    """A task that every checkpoint is scored on, and how it is sampled."""

    REFUSED: ClassVar[dict[str, str]] = TOOL_LOOPS
    name: str
    """gsm8k, arithmetic, ...: see `posttrain tasks list`. With `file`, what its scores are called."""
    file: str | None = None
    """A task file of your own, or a shipped task under another name."""
    path: str | None = None
    """File of problems or hub id instead of the task's own."""
    limit: int | None = None
    """Use only the first `limit` problems."""
    samples: int | None = None
    """Completions per problem. Choose 2-4 times the largest k. Default, as of the four below: the task's."""
    k: list[int] | None = None
    temperature: float | None = None
    """0: greedy decoding, with one sample per problem. Exact tasks: p is that of logits / temperature."""
    temperatures: list[float] = field(default_factory=list)
    """Exact tasks: also measured at these, in the same pass, as controls: `[1.5, 2]`."""
    top_p: float | None = None
    max_new_tokens: int | None = None
    batch_size: int = 64
    """Sequences that are generated together."""
    seed: int = 0
    options: dict[str, Any] = field(default_factory=dict)
    """Keys of its task file with other values; of a generated task, its settings."""


@dataclass
class Heldout:
    """Loss on rows that are not trained on: a share of every source, or a source of its own."""

    share: float | None = None
    """Share of the rows of each source, chosen by seed."""
    source: Source | None = None
    every_steps: int = 100
    max_examples: int = 512
    """At most this many rows are measured; with `share`, the others are not trained on either."""
    seed: int = 0
    """Chooses the rows. Independent of `train.seed`, so that runs and stages hold out the same rows."""


@dataclass
class Evaluate:
    """What is measured during training."""

    tasks: list[Task] = field(default_factory=list)
    heldout: Heldout | None = None
    at_start: bool = True
    """Score the model before the first step, as step 0."""
    gates: list[Gate] = field(default_factory=list)
    """Scores that must not fall; checked after every checkpoint."""
