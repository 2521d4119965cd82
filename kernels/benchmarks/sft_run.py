"""The two trainers of `sft_step.py`, built inside a real run of the SFT stage and trained in turns.

Left out: the command line and the result file (`sft_step.py`).
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import timing
import torch
from problem import Floor, Problem, head_flops
from sft_case import Case, write_case
from transformers import TrainerCallback

from posttrain_kernels import confidence_limited

NAMES = ("posttrain", "trl")


class BlockDone(Exception):
    """Ends a block from inside the training loop, before anything is saved."""


class Clock(TrainerCallback):
    """Seconds and peak memory of each step of a block except the first."""

    def __init__(self, trainer, steps: int) -> None:
        self.device, self.steps = trainer.args.device, steps
        self.seconds: list[list[float]] = []  # [blocks][steps - 1]
        self.peaks: list[float] = []  # MiB above what was in use at the start of the step
        self.losses: list[torch.Tensor] = []
        self.peak = timing.Peak(self.device) if timing.Peak.known(self.device) else None
        step = trainer.training_step

        def training_step(*args, **kwargs):
            loss = step(*args, **kwargs)
            self.losses.append(loss.detach())
            return loss

        trainer.training_step = training_step

    def on_train_begin(self, args, state, control, **kwargs):
        self.seconds.append([])
        timing.tidy(self.device)

    def on_step_begin(self, args, state, control, **kwargs):
        if self.peak is not None:
            self.peak.start()

    def on_step_end(self, args, state, control, **kwargs):
        timing.settle(self.device)
        now = time.perf_counter()
        if state.global_step > 1:
            self.seconds[-1].append(now - self.last)
            if self.peak is not None:
                self.peaks.append(self.peak.mib())
        if state.global_step == self.steps:
            raise BlockDone
        self.last = now


def theirs(parts, model):
    """TRL's SFTTrainer on the same model, rows and arguments."""
    from datasets import Dataset
    from transformers import PrinterCallback, ProgressCallback
    from trl import SFTTrainer

    rows = parts.train_rows()
    rows = [
        {name: [int(x) for x in row[name]] for name in ("input_ids", "labels")}
        for row in (rows[i] for i in range(len(rows)))
    ]
    trainer = SFTTrainer(
        model=model,
        args=copy.copy(parts.arguments),
        train_dataset=Dataset.from_list(rows),
        processing_class=parts.tokenizer,
    )
    for noisy in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(noisy)
    return trainer


def train_in_turns(
    trainers: dict, trains: dict, heads: dict[str, Callable], args: argparse.Namespace
) -> tuple[dict[str, Clock], dict[str, list[list[float]]]]:
    """Clocks of the trainers and seconds of the heads, [blocks][repeats].

    A round is a block of each trainer and then the heads, so steps and heads are measured close together,
    whatever else the machine does in the meantime.
    """
    device = trainers["posttrain"].args.device
    clocks = {name: Clock(trainer, args.steps) for name, trainer in trainers.items()}
    for name, trainer in trainers.items():
        trainer.add_callback(clocks[name])
    for head in heads.values():
        head()  # warm
    found: dict[str, list[list[float]]] = {name: [] for name in heads}
    names = list(trainers)
    for block in range(args.blocks):
        for name in names if block % 2 == 0 else names[::-1]:
            try:
                trains[name]()
            except BlockDone:
                continue
            raise RuntimeError(f"{name} stopped before its block of {args.steps} steps was done")
        for times in found.values():
            times.append([])
        for _ in range(args.repeats):
            for name, head in heads.items():
                found[name][-1].append(timing.seconds(head, device))
    return clocks, found


def head_steps(ours, batch: dict) -> dict[str, Callable]:
    """Forward + backward through both heads on this model's hidden states, and the three matmuls."""
    batch = ours._prepare_inputs(batch)
    problem = _problem(ours, batch)
    count = torch.tensor(float(problem.labels.numel()), device=ours.args.device)

    def step(loss):
        def run():
            problem.forget()
            with ours.compute_loss_context_manager():
                value = loss()
            value.backward()
            problem.weight.grad = None  # the trainer's own step must not find it

        return run

    dtype = torch.bfloat16 if ours.args.bf16 else problem.hidden.dtype
    plain = (t.detach().to(dtype) for t in (problem.hidden, problem.weight))
    return {
        "posttrain": step(_our_loss(problem, ours.loss_arguments, count)),
        "trl": step(_trl_loss(problem, count)),
        "matmuls": Floor(Problem(*plain, problem.labels, problem.segment_ids, problem.segments, 1.0)),
    }


def _problem(ours, batch: dict) -> Problem:
    """The model's head on its hidden states of `batch`, labels and ids already shifted."""
    model = ours.model
    with torch.no_grad(), ours.compute_loss_context_manager():
        inputs = {k: batch[k] for k in ("input_ids", "attention_mask")}
        states = model.base_model(**inputs, use_cache=False).last_hidden_state[:, :-1]
    hidden = states.reshape(-1, states.shape[-1]).detach().requires_grad_()  # [T, H]
    weight = model.get_output_embeddings().weight
    labels, ids = (batch[name][:, 1:].reshape(-1) for name in ("labels", "segment_ids"))
    return Problem(hidden, weight, labels, ids, batch["num_segments"], 1.0)


def _our_loss(problem: Problem, arguments: dict, count: torch.Tensor) -> Callable[[], torch.Tensor]:
    host = problem.host

    def loss():
        return confidence_limited(
            problem.hidden,
            problem.weight,
            problem.labels,
            problem.segment_ids,
            **arguments,
            num_segments=problem.segments,
            normalizer=count,
            host=host,
        ).loss

    return loss


def _trl_loss(problem: Problem, count: torch.Tensor) -> Callable[[], torch.Tensor]:
    from trl.kernels import ChunkedLogProbFunction
    from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE as columns

    outputs = ("log_probs", "entropy", "is_top1")  # what its SFTTrainer needs

    def loss():
        log_probs, *_ = ChunkedLogProbFunction.apply(
            problem.hidden, problem.weight, None, problem.labels, 1.0, columns, None, 1.0, outputs
        )
        return -log_probs.sum() / count

    return loss


def halves(blocks: list[list[float]]) -> list[list[float]]:
    """The two passes: all times of the first half of the blocks, and all of the second."""
    middle = -(-len(blocks) // timing.PASSES)
    return [sum(part, []) for part in (blocks[:middle], blocks[middle:])]


def state_mib(trainer) -> float:
    """Weights and optimizer state, which stay between steps."""
    tensors = list(trainer.model.parameters())
    for state in trainer.optimizer.state.values():
        tensors += [t for t in state.values() if isinstance(t, torch.Tensor)]
    return sum(t.numel() * t.element_size() for t in tensors) / timing.MIB


def summarise(case: Case, n: float, trainers: dict, clocks: dict[str, Clock], heads: dict) -> dict:
    from trl.trainer.utils import compute_flops_per_token, get_peak_flops_per_device

    ours = trainers["posttrain"]
    flops = compute_flops_per_token(ours.model.config.get_text_config(), case.length)
    sheet = None
    if ours.args.device.type == "cuda" and ours.args.bf16:
        sheet = get_peak_flops_per_device(ours.accelerator, "bfloat16")
    rows = {}
    for name, clock in clocks.items():
        row = timing.summary(halves(clock.seconds))
        rate = case.tokens / row["ms"] * 1e3
        row |= {
            "tokens_per_second": rate,
            "peak_mib": statistics.median(clock.peaks) if clock.peaks else None,
            "state_mib": state_mib(trainers[name]),
            "of_matmul_rate": rate * flops / heads["matmuls"]["tflops"] / 1e12,
            "mfu": rate * flops / sheet if sheet else None,
            "head_ms": heads[name]["ms"],
            "head_share": heads[name]["ms"] / row["ms"],
        }
        rows[name] = row
    steps = len(clocks["trl"].losses) // len(clocks["trl"].seconds)
    both = [torch.stack(clocks[name].losses[:steps]).double().cpu() for name in NAMES]
    gap = ((both[0] - both[1]).abs() / both[1].abs()).max().item() if n == 1 else None
    gains = {key: _gains(rows, heads, key) for key in ("ms", "ms_min")}
    return {
        "flops_per_token": flops,
        "rows": rows,
        "heads": heads,
        "loss_gap": gap,
        "measured_gain": gains["ms"][0],
        "predicted_gain": gains["ms"][1],
        "measured_gain_best": gains["ms_min"][0],
        "predicted_gain_best": gains["ms_min"][1],
    }


def _gains(rows: dict, heads: dict, key: str) -> tuple[float, float | None]:
    """Measured and predicted tokens/s over TRL's, from medians (`ms`) or best calls (`ms_min`).

    No prediction where TRL's head alone took as long as its step: other processes disturbed the measurement.
    """
    trl, ours = rows["trl"][key], rows["posttrain"][key]
    body = trl - heads["trl"][key]
    return trl / ours, trl / (body + heads["posttrain"][key]) if body > 0 else None


def run(case: Case, args: argparse.Namespace, folder: Path) -> dict:
    """Builds both trainers inside a real run of the SFT stage, at the moment it would train."""
    from posttrain import sft
    from posttrain.recipe import load_stage
    from posttrain.stages.launch import setup_logging
    from posttrain.stages.train import run_training

    setup_logging()
    recipe = load_stage(write_case(case, args.steps + 2, folder, args.n), [], "sft")
    found: dict = {}

    def build_both(recipe, parts):
        model = copy.deepcopy(parts.model)
        trainers = {"posttrain": sft.build(recipe, parts), "trl": theirs(parts, model)}
        ours = trainers["posttrain"]
        trains = {name: trainer.train for name, trainer in trainers.items()}

        def train(**_):
            batch = parts.collator([ours.train_dataset[i] for i in range(case.rows)])
            clocks, times = train_in_turns(trainers, trains, head_steps(ours, batch), args)
            heads = {name: timing.summary(halves(blocks)) for name, blocks in times.items()}
            sizes = (case.rows * (case.length - 1), case.hidden, case.vocab)
            heads["matmuls"]["tflops"] = head_flops(*sizes) / heads["matmuls"]["ms"] / 1e9
            found.update(summarise(case, args.n, trainers, clocks, heads))

        ours.train = train  # the stage adds its callbacks before it calls this
        return ours

    run_training(recipe, replace(sft.STAGE, build=build_both))
    return found
