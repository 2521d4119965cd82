"""Supervised fine-tuning with a loss of the confidence-limited family; a thin subclass of TRL's SFTTrainer.

    posttrain sft recipes/gsm8k-sft.yaml train.learning_rate=1e-5
    accelerate launch --config_file launch/ddp.yaml -m posttrain.sft recipes/gsm8k-sft.yaml

Ours are the rows (from the mixture, so TRL's preparation is skipped), the loss (computed inside the output
head), and one global count of tokens or segments that normalises each optimizer step, whatever the
accumulation and the number of ranks. Left out: vision models, tools, sequence parallelism.
"""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

if __name__ == "__main__":  # before the libraries below: they read it when they are imported
    from posttrain.base.process import quiet_libraries

    quiet_libraries()

import torch
from accelerate.utils import is_peft_model
from datasets import Dataset
from trl import SFTConfig, SFTTrainer
from trl.trainer.utils import compute_flops_per_token, compute_mfu, get_peak_flops_per_device

from posttrain.data.collate import count_tokens
from posttrain.data.prepare import HeldoutRows
from posttrain.losses import confidence
from posttrain.models.adapters import head_without_adapter
from posttrain.models.head import FusedOutput, attach_fused_head, balancing_coefficient
from posttrain.recipe import SftRecipe
from posttrain.recipe.schema import Loss
from posttrain.rundir.directory import RunDir
from posttrain.stages.launch import launch_training
from posttrain.stages.train import MakeScorer, TrainStage, run_training
from posttrain.training.metrics import LossStats
from posttrain.training.parts import RowParts
from posttrain.training.trainer import RunTrainer
from posttrain_kernels import OnHost, count

MODEL_KEYS = ("input_ids", "attention_mask", "position_ids", "labels", "segment_ids")
ROUTER = ("output_router_logits", "router_aux_loss_coef")
"""TRL asks for the load-balancing loss of every mixture of experts in its config; the old values are
restored, and decide."""


class HostCopies:
    """Wraps a collator and keeps what the host must know about a batch, so that no step has to wait for the
    device.

    `host` is an `OnHost`, shifted like the loss's arguments; `num_tokens` and `num_trained_tokens` are ints.
    """

    def __init__(self, collator: Any) -> None:
        self.collator = collator

    def __call__(self, rows: Any) -> dict[str, Any]:
        batch = self.collator(rows)
        labels, segments = (batch[name][:, 1:].reshape(-1) for name in ("labels", "segment_ids"))
        batch["host"] = OnHost(labels, segments)
        batch["num_tokens"] = count_tokens(batch)
        batch["num_trained_tokens"] = int(count(labels, segments))
        return batch


class SftTrainer(RunTrainer, SFTTrainer):
    """TRL's SFTTrainer with the mixture's order, the fused loss and posttrain's checkpoints."""

    def setup_loss(self, loss: Loss, sources: list[str], heldout: HeldoutRows | None) -> None:
        """Replaces TRL's fused head with ours; call after `setup_run`."""
        mixed = self.accelerator.mixed_precision
        model = self.model.get_base_model() if is_peft_model(self.model) else self.model
        attach_fused_head(model, mixed)
        self.balancing = balancing_coefficient(model)
        self.loss_arguments = confidence.arguments(loss)
        self.reduction = loss.reduction
        self.external_p = loss.p == "external"
        self.heldout = heldout
        skipping = loss.skip_below is not None
        self.stats = {mode: LossStats(self.args.device, sources, skipping) for mode in ("train", "heldout")}

    def _get_num_items_in_batch(self, batch_samples, device):
        """The denominator of the optimizer step: tokens or segments over all micro-batches and ranks."""
        if self.reduction == "sum":
            return torch.ones((), device=device)
        local = sum(self._count(batch) for batch in batch_samples)
        # Filled, not copied: copying a number to the device would wait for it.
        return self.reduce(torch.full((), local, dtype=torch.float64, device=device)).clamp(min=1)

    def _count(self, batch: dict[str, Any]) -> int:
        host = batch["host"]
        return int(count(host.labels, host.segment_ids, self.reduction))

    def _forward(self, model, batch: dict[str, Any], normalizer: torch.Tensor | None) -> FusedOutput:
        """The loss of one micro-batch, divided by `normalizer` (None: by its own count)."""
        fused = {**self.loss_arguments, "num_segments": batch["num_segments"], "normalizer": normalizer}
        if self.external_p:
            fused["p"] = batch["segment_p"]
        if self.args.device.type != "cpu":
            fused["host"] = batch["host"]
        return model(**{k: batch[k] for k in MODEL_KEYS if k in batch}, fused=fused)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Sum over segments / `num_items_in_batch` (None: of this batch), times ranks, since DDP averages.

        The load-balancing loss is a statistic of one micro-batch; its mean over the step's micro-batches,
        times the coefficient, is added.
        """
        out = self._forward(model, inputs, num_items_in_batch)
        self.stats["train" if model.training else "heldout"].add(out, inputs)
        loss = out.loss if num_items_in_batch is None else out.loss * self.args.world_size
        if out.aux_loss is not None:
            micro = 1 if num_items_in_batch is None else self.current_gradient_accumulation_steps
            loss = loss + self.balancing / micro * out.aux_loss
        return (loss, out) if return_outputs else loss

    def extra_metrics(self, mode: str) -> dict[str, float]:
        means = self.stats[mode].means(self.reduce)
        self.stats[mode].reset()
        if mode == "train" and self.args.device.type == "cuda":
            peak = get_peak_flops_per_device(self.accelerator, "bfloat16" if self.args.bf16 else "float16")
            if peak and (self.args.bf16 or self.args.fp16):
                flops = compute_flops_per_token(self.model.config.get_text_config(), self.facts["max_length"])
                means["mfu"] = compute_mfu(flops, means["tokens_per_second"], self.args.world_size, peak)
        return means

    def heldout_metrics(self) -> dict[str, float]:
        """Held-out loss: exact sums over all rows and ranks, not a mean of batch means; without the
        load-balancing loss, which is no sum over rows."""
        total = torch.zeros(2, dtype=torch.float64, device=self.args.device)
        rows = [partial(self.heldout.__getitem__, i) for i in range(len(self.heldout))]
        for real, batch in self.dealt(rows):
            with self.compute_loss_context_manager():
                one = torch.ones((), device=self.args.device)
                out = self._forward(self.model_wrapped, batch, one)
            if real:
                self.stats["heldout"].add(out, batch)
                total[0] += out.loss.double()
                total[1] += self._count(batch)
        loss, items = self.reduce(total).tolist()
        per_item = loss / (1.0 if self.reduction == "sum" else max(items, 1.0))
        return {"loss": per_item, **self.extra_metrics("heldout")}


def build(recipe: SftRecipe, parts: RowParts) -> SftTrainer:
    """The trainer of this stage."""
    config = parts.model.config.get_text_config()
    router = {k: getattr(config, k) for k in ROUTER if hasattr(config, k)}
    # TRL wants a data set; the rows of the mixture take its place in `setup_run`
    placeholder = Dataset.from_list([{"input_ids": [0], "labels": [0]}])
    with head_without_adapter(parts.model):
        trainer = SftTrainer(
            model=parts.model,
            args=parts.arguments,
            data_collator=HostCopies(parts.collator),
            train_dataset=placeholder,
            processing_class=parts.tokenizer,
            peft_config=parts.adapter,
        )
    for name, value in router.items():
        setattr(config, name, value)
    trainer.setup_run(parts, parts.train_rows(), recipe.train.log_samples)
    trainer.setup_loss(recipe.loss, parts.prepared.names, parts.heldout_rows())
    return trainer


STAGE = TrainStage(SFTConfig, build)


def train(recipe: SftRecipe, make_scorer: MakeScorer | None = None) -> RunDir:
    """Run the stage; see `posttrain.stages.train.run_training`."""
    return run_training(recipe, STAGE, make_scorer)


def main(argv: list[str] | None = None) -> int:
    """`python -m posttrain.sft RECIPE [key=value ...]`; returns the exit code."""
    return launch_training("sft", train, argv)


if __name__ == "__main__":
    sys.exit(main())
