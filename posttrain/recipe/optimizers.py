"""The optimizers of transformers (`train.optim`): which are exact when a run is resumed, which are not
measured, which are refused; what each needs and reads; and the rules that follow.

Tests check that every name of transformers is in exactly one of the three lists, that an optimizer reads what
transformers passes to it, and that a run with each exact one is resumed to equal weights. Left out: what the
launcher's engine allows (training/optimizers.py).
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from packaging.requirements import Requirement

from posttrain.errors import did_you_mean
from posttrain.recipe.build import Problems
from posttrain.recipe.library_source import enum_values
from posttrain.recipe.recipes import TrainRecipe
from posttrain.recipe.schema import Train
from posttrain.recipe.values import require

SHARE, POSITIVE = "a number from 0 to 1", "a number above 0"
COUNT, SWITCH = "a whole number of at least 1", "true or false"
ON = "one of true, True"
"""transformers takes any text as true."""
ADEMAMIX = {
    **dict.fromkeys(("beta1", "beta2", "beta3"), SHARE),
    **dict.fromkeys(("alpha", "eps"), POSITIVE),
    **dict.fromkeys(("t_alpha", "t_beta3"), COUNT),
}
FREE = {"weight_lr_power": "a number of at least 0", "r": "a number of at least 0"}
LOW_RANK = {"rank": COUNT, "update_proj_gap": COUNT, "scale": POSITIVE}
GALORE = LOW_RANK | {"proj_type": "one of std, reverse_std, right, left, full"}
APOLLO = LOW_RANK | {
    "proj": "one of random, svd",
    "scale_type": "one of channel, tensor",
    "proj_type": "one of std, reverse_std, right, left",
}


@dataclass(frozen=True)
class Optimizer:
    """What one of them needs and reads."""

    packages: tuple[str, ...] = ()
    """Requirements, as pip reads them."""
    reads: str = "betas eps decay"
    """What of train.adam_beta1 and adam_beta2, adam_epsilon, weight_decay reaches it."""
    arguments: Mapping[str, str] = field(default_factory=dict)
    """Keys of `train.extra.optim_args` -> kinds of their values (values.py)."""
    whole: str = ""
    """Why a rank must hold whole weights: not under ZeRO, and not under FSDP2. Empty where it need not."""
    targets: bool = False
    """Whether it needs `train.extra.optim_target_modules`."""


_FREE = "it keeps two copies of the weights, of which checkpoints hold the one to evaluate"
_NORM = "its step depends on the norm of whole weights or gradients"
_RANK = "it projects whole gradients"
_TORCHAO = Optimizer(
    ("torchao>=0.15",),
    arguments={"bf16_stochastic_round": SWITCH},
    whole="its state is quantised in blocks of whole weights",
)
_GALORE = Optimizer(("galore-torch", "bitsandbytes"), "", GALORE, _RANK, targets=True)
EXACT: dict[str, Optimizer] = {
    "adamw_torch": Optimizer(),
    "adamw_torch_fused": Optimizer(),
    "adafactor": Optimizer(reads="decay", whole=_NORM),
    "sgd": Optimizer(reads="decay", arguments={"momentum": SHARE, "dampening": SHARE, "nesterov": SWITCH}),
    "adagrad": Optimizer(reads="decay", arguments={"lr_decay": "a number of at least 0", "eps": POSITIVE}),
    "rmsprop": Optimizer(
        reads="decay",
        arguments={"momentum": SHARE, "alpha": SHARE, "eps": POSITIVE, "centered": SWITCH},
    ),
    "adamw_torch_4bit": _TORCHAO,
    "adamw_torch_8bit": _TORCHAO,
    "schedule_free_adamw": Optimizer(("schedulefree>=1.2.6",), arguments=FREE, whole=_FREE),
    "schedule_free_radam": Optimizer(("schedulefree>=1.4",), arguments=FREE, whole=_FREE),
    "schedule_free_sgd": Optimizer(("schedulefree>=1.2.6",), "decay", FREE, _FREE),
    "galore_adamw": _GALORE,
    "galore_adafactor": _GALORE,
    "apollo_adamw": Optimizer(("apollo-torch", "bitsandbytes"), "betas eps", APOLLO, _RANK, targets=True),
}
"""A run that is killed and resumed ends with the weights of one that is not, bit for bit."""

_BNB = ("bitsandbytes>=0.46.1",)
LIMITED: dict[str, Optimizer] = {
    "adamw_bnb_8bit": Optimizer(_BNB),
    "adamw_8bit": Optimizer(_BNB),
    "paged_adamw_32bit": Optimizer(_BNB),
    "paged_adamw_8bit": Optimizer(_BNB),
    "ademamix": Optimizer(_BNB, arguments=ADEMAMIX),
    "ademamix_8bit": Optimizer(_BNB, arguments=ADEMAMIX),
    "paged_ademamix_32bit": Optimizer(_BNB, arguments=ADEMAMIX),
    "paged_ademamix_8bit": Optimizer(_BNB, arguments=ADEMAMIX),
    "lion_8bit": Optimizer(_BNB, "betas decay"),
    "lion_32bit": Optimizer(_BNB, "betas decay"),
    "paged_lion_32bit": Optimizer(_BNB, "betas decay"),
    "paged_lion_8bit": Optimizer(_BNB, "betas decay"),
    "rmsprop_bnb": Optimizer(_BNB, "decay"),
    "rmsprop_bnb_8bit": Optimizer(_BNB, "decay"),
    "rmsprop_bnb_32bit": Optimizer(_BNB, "decay"),
    "galore_adamw_8bit": Optimizer(("galore-torch", *_BNB), "", GALORE, _RANK, targets=True),
    "stable_adamw": Optimizer(
        ("torch-optimi",),
        arguments={"max_lr": POSITIVE, "decouple_lr": ON, "kahan_sum": ON},
        whole=_NORM,
    ),
}
"""No test runs them: they need a GPU, or (stable_adamw) a driver that Triton finds."""
LIMIT = "no test of posttrain runs it: neither its steps nor its resuming are measured"

_IN_BACKWARD = (
    "it steps inside the backward of every micro-batch, without accumulation, clipping or the guard, and its "
    "state is not saved"
)
REFUSED: dict[str, tuple[str, str]] = {
    "adamw_torch_xla": ("it needs torch_xla, and runs are on CPUs and CUDA GPUs", "adamw_torch_fused"),
    "adamw_torch_npu_fused": ("it needs torch_npu, and runs are on CPUs and CUDA GPUs", "adamw_torch_fused"),
    "adamw_anyprecision": ("it needs torchdistx, which is no longer maintained", "stable_adamw"),
    "galore_adamw_layerwise": (_IN_BACKWARD, "galore_adamw"),
    "galore_adamw_8bit_layerwise": (_IN_BACKWARD, "galore_adamw_8bit"),
    "galore_adafactor_layerwise": (_IN_BACKWARD, "galore_adafactor"),
    "apollo_adamw_layerwise": (_IN_BACKWARD, "apollo_adamw"),
    "lomo": (_IN_BACKWARD, "sgd"),
    "adalomo": (_IN_BACKWARD, "adafactor"),
    "grokadamw": (
        "it loses its state when a run is resumed, clips every weight by itself, and the signal that it is "
        "named after, the held-out loss, is not given to it",
        "adamw_torch",
    ),
}
"""Name -> (why, what to use instead)."""
USABLE = EXACT | LIMITED
FIELDS = {
    "adam_beta1": "betas",
    "adam_beta2": "betas",
    "adam_epsilon": "eps",
    "weight_decay": "decay",
}


def optimizer(recipe: TrainRecipe, problems: Problems) -> None:
    """An optimizer that is unknown or refused, or settings that it does not read or lacks."""
    t, at, name = recipe.train, "train.optim", recipe.train.optim
    if name in REFUSED:
        why, instead = REFUSED[name]
        problems.add(at, f"{at} = {name} is not supported: {why}; use {instead}")
        return
    known = enum_values("training_args.py", "OptimizerNames")
    if name not in USABLE or name not in known:
        near = did_you_mean("adamw_torch" if name in ("adam", "adamw") else name, known & set(USABLE))
        whose = "posttrain knows" if name in known else "transformers has"
        problems.add(at, f"{at} = {name!r} is not an optimizer that {whose}{near}")
        return
    used = USABLE[name]
    for key in _ignored(t, used):
        problems.add(key, f"{key} is not used by {at} = {name}; remove it")
    _arguments(t, used, problems)
    if used.targets:
        _low_rank(recipe, problems)
    if name.startswith("schedule_free"):
        _schedule_free(recipe, problems)


def _ignored(t: Train, used: Optimizer) -> list[str]:
    """Keys that are given and reach nothing. A weight decay that is 0 asks for nothing."""
    defaults = {key: spec.default for key, spec in type(t).__dataclass_fields__.items()}
    found = [
        f"train.{key}"
        for key, part in FIELDS.items()
        if part not in used.reads.split()
        and (t.weight_decay if key == "weight_decay" else getattr(t, key) != defaults[key])
    ]
    if t.extra.get("optim_args") is not None and not used.arguments:
        found.append("train.extra.optim_args")
    if t.extra.get("optim_target_modules") is not None and not used.targets:
        found.append("train.extra.optim_target_modules")
    return found


def _arguments(t: Train, used: Optimizer, problems: Problems) -> None:
    """transformers passes over names that it does not know, and reads some values as others."""
    text, at = t.extra.get("optim_args"), "train.extra.optim_args"
    if not (isinstance(text, str) and used.arguments):
        return
    parts = [part.split("=") for part in text.replace(" ", "").split(",")]
    if any(len(part) != 2 for part in parts):  # train_rules.py says so
        return
    for key, value in parts:
        if key == "weight_decay":
            problems.add(at, f"{at}: weight_decay is overwritten by train.weight_decay; set that")
        elif key not in used.arguments:
            near = did_you_mean(key, used.arguments)
            problems.add(at, f"{at}: {key} is not read by train.optim = {t.optim}{near}")
        else:
            kind = used.arguments[key]
            require(f"{at}: {key}", value if kind.startswith("one of") else _value(value), kind, problems)
    given = dict(parts)
    if given.get("nesterov", "").lower() == "true":
        no_momentum = _value(given.get("momentum", "0")) == 0
        if no_momentum or _value(given.get("dampening", "0")) != 0:
            problems.add(at, f"{at}: nesterov needs momentum above 0, and no dampening")


def _value(text: str) -> Any:
    """A number or a truth value where `text` is one."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _low_rank(recipe: TrainRecipe, problems: Problems) -> None:
    optim, at = f"train.optim = {recipe.train.optim}", "train.extra.optim_target_modules"
    if not recipe.train.extra.get("optim_target_modules"):
        problems.add(at, f"{optim} needs {at}, the modules whose gradients are projected, or all-linear")
    if recipe.model.lora is not None:
        problems.add("train.optim", f"{optim} cannot be used with model.lora: {_RANK}; use adamw_torch")


def _schedule_free(recipe: TrainRecipe, problems: Problems) -> None:
    """These optimizers warm up by themselves, from `train.warmup_steps` as a number."""
    t = recipe.train
    if t.lr_scheduler_type != "constant":
        at = "train.lr_scheduler_type"
        problems.add(at, f"{at} must be constant with train.optim = {t.optim}, which has its own schedule")
    if 0 < t.warmup_steps < 1:
        at = "train.warmup_steps"
        problems.add(at, f"{at} = {t.warmup_steps:g} must be a number of steps with train.optim = {t.optim}")
    elif t.warmup_steps and t.optim == "schedule_free_radam":
        at = "train.warmup_steps"
        problems.add(at, f"{at} is not used by train.optim = {t.optim}; remove it")
    for key in ("on_nan", "on_spike"):
        if getattr(recipe.guard, key) == "skip":
            at = f"guard.{key}"
            problems.add(
                at,
                f"{at} = skip cannot be used with train.optim = {t.optim}, which counts every step; use stop",
            )


def wanting(optim: str, on_cpu: Callable[[], str | None]) -> list[str]:
    """What this machine lacks for the optimizer, in sentences. `on_cpu()`: why it has no GPU, None if it has
    one."""
    used = USABLE[optim]
    found = [f"train.optim = {optim} needs {lack}" for lack in map(_lacking, used.packages) if lack]
    if optim in LIMITED and (why := on_cpu()):
        found.append(f"train.optim = {optim} needs a GPU ({why}); use adamw_torch")
    return found


def _lacking(requirement: str) -> str:
    """What is wrong with a package that is required; empty where nothing is."""
    needed = Requirement(requirement)
    try:
        version = importlib.metadata.version(needed.name)
    except importlib.metadata.PackageNotFoundError:
        return f"the package {requirement}, which is not installed: pip install '{requirement}'"
    if needed.specifier.contains(version, prereleases=True):
        return ""
    return f"the package {requirement}; installed is {version}"
