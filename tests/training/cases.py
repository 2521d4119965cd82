"""Runs cases of a stage in this process (or in each process of a launch) and writes what happened as JSON.

    python tests/training/cases.py CASES.json OUT.json
    accelerate launch --config_file ... tests/training/cases.py CASES.json OUT.json

CASES.json: [{"name", "stage" (default sft), "recipe", "overrides": [...], "engine", "again", "lose", "modes",
"plain"}]. All cases of one engine share one launch, because starting processes costs more than training them.
`again`: the last checkpoint is removed, and the folders that `lose` names, and the run started once more, so
that it resumes; its weights before that are kept as `first.safetensors`. `modes`: under ZeRO-3 also compare
gradients through log-probabilities with those of the loss. `plain`: under FSDP2 also compare the last
model's loss and gradients with those of its checkpoint, see `beside_plain`. {"name", "module"}: `results()`
of that module.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import shutil
import sys
import traceback
from dataclasses import replace
from pathlib import Path

os.environ["CI"] = "1"


def fsdp_on_cpu() -> None:
    """Lets accelerate set up FSDP2 on CPU processes, which it does for GPUs only, so that its path, the
    library's and ours are run: everything but the device."""
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import DistributedType

    import posttrain.stages.train as stages

    plain, refuse = AcceleratorState.__init__, stages.refuse_fsdp

    def with_fsdp(self, *args, fsdp_plugin=None, **options):
        plain(self, *args, fsdp_plugin=fsdp_plugin, **options)
        if self.distributed_type == DistributedType.MULTI_CPU:
            if self._mixed_precision != "no":
                fsdp_plugin.set_mixed_precision(self._mixed_precision)
            self.fsdp_plugin, self.distributed_type = fsdp_plugin, DistributedType.FSDP
            PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    import trl.trainer.dpo_trainer

    trl.trainer.dpo_trainer.create_model_from_path = None  # TRL is to load no model
    AcceleratorState.__init__ = with_fsdp
    stages.refuse_fsdp = lambda model, train, on_cpu: refuse(model, train, False)


def earlier(folder: Path) -> None:
    """Makes a checkpoint one of an earlier version, whose ZeRO-3 might gather nothing."""
    (folder / "model.safetensors").unlink()
    facts = json.loads((folder / "checkpoint.json").read_text())
    new = ("files", "digest", "engine", "world_size")
    (folder / "checkpoint.json").write_text(json.dumps({k: v for k, v in facts.items() if k not in new}))
    (folder / "COMPLETE").write_text("")


def sharded(weight) -> bool:
    """Whether this rank holds a part only: ZeRO-3 without sharding (a persistent parameter) would prove
    nothing."""
    if hasattr(weight, "ds_persist"):
        return not weight.ds_persist and weight.ds_tensor.numel() < weight.ds_numel
    if not hasattr(weight, "to_local"):
        return False
    # a weight of one row is on one rank
    return weight.to_local().numel() < weight.numel() or weight.shape[0] < weight.device_mesh.size()


def modes(trainer) -> float:
    """Largest difference of any gradient, relative to its norm: cross-entropy as the loss, and as a sum of
    differentiable log-probabilities, both through the same ZeRO-3 engine."""
    import torch
    from deepspeed.utils import safe_get_full_grad

    engine = trainer.model_wrapped
    engine.set_gradient_accumulation_boundary(True)
    ids = torch.randint(3, 200, (2, 12), generator=torch.Generator().manual_seed(int(os.environ["RANK"])))
    labels = torch.where(torch.arange(12) < 4, -100, ids)
    found = []
    for mode in ({"fused": {"n": 1.0, "num_segments": 1}}, {"tokens": {}}):
        out = engine(input_ids=ids, labels=labels, segment_ids=(labels >= 0).long(), **mode)
        loss = out.loss if out.loss is not None else -out.log_probs.sum() / out.label_mask.sum()
        engine.backward(loss)
        found.append(
            {n: safe_get_full_grad(p).clone() for n, p in trainer.model.named_parameters() if p.requires_grad}
        )
        engine.optimizer.zero_grad()
    a, b = found
    assert any("head" in n or "embed" in n for n in a)
    floor = sum(float(g.norm()) for g in a.values()) / len(a) * 1e-3
    return max(float((a[n] - b[n]).norm()) / max(float(a[n].norm()), floor) for n in a)


def beside_plain(trainer, checkpoint) -> dict[str, float]:
    """The loss of one more micro-batch a rank and its gradients, through the model that FSDP2 shards and
    through the whole model in `checkpoint`: largest relative differences.

    `same`: its weights in the types of FSDP2's forward. `autocast`: in fp32, as one process trains.
    """
    import torch
    from torch.distributed.tensor import DTensor
    from transformers import AutoModelForCausalLM

    from posttrain.models.head import attach_fused_head
    from tests.models.test_head import worst

    inputs, items = getattr(trainer, "_buffered_inputs", None), None
    if inputs is None:
        rows = [trainer.train_dataset[2 * trainer.args.process_index + i] for i in (0, 1)]
        # in bf16 it is 12352
        inputs, items = trainer._prepare_inputs(trainer.data_collator(rows)), torch.tensor(12345.0).double()
    else:
        inputs = inputs[0]

    def through(model, context) -> tuple[float, dict[str, torch.Tensor]]:
        model.train()
        model.zero_grad()
        with context:
            loss = trainer.compute_loss(model, inputs, num_items_in_batch=items)
        loss.backward()
        world, found = trainer.args.world_size, {}
        for name, p in model.named_parameters():
            whole = isinstance(p.grad, DTensor)
            found[name] = p.grad.full_tensor() if whole else trainer.reduce(p.grad.float()) / world
        return trainer.reduce(loss.detach().double()).item() / world, found

    trainer.model_wrapped.set_requires_gradient_sync(True)
    loss, gradients = through(trainer.model_wrapped, contextlib.nullcontext())
    differences = {}
    for name in ("same", "autocast"):
        plain = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
        attach_fused_head(plain)
        if name == "same" and trainer.args.bf16:
            for p in plain.parameters():  # buffers stay fp32
                p.data = p.data.bfloat16()
        context = trainer.accelerator.autocast() if name == "autocast" else contextlib.nullcontext()
        expected, wanted = through(plain, context)
        differences[f"{name} loss"] = abs(loss - expected) / abs(expected)
        differences[f"{name} gradients"] = worst(gradients, wanted)
    return differences


def units(trainer) -> int:
    """Into how many units FSDP2 has cut the reference that runs in every step; 0: there is none."""
    from torch.distributed.fsdp import FSDPModule

    model = getattr(getattr(trainer, "reference", None), "model", None) or getattr(trainer, "ref_model", None)
    return (
        sum(isinstance(m, FSDPModule) and sharded(next(m.parameters())) for m in model.modules())
        if model
        else 0
    )


def run_case(case: dict) -> dict:
    """Trains `case` and says how it went."""
    import torch.distributed as dist

    from posttrain.base.process import rank
    from posttrain.recipe import load_stage
    from posttrain.rundir.checkpoints import all_complete
    from posttrain.stages.launch import scorer_for

    name, trainers = case.get("stage", "sft"), []
    stage = importlib.import_module(f"posttrain.{name}")
    plain = stage.STAGE

    def kept(recipe, parts):
        trainers.append(plain.build(recipe, parts))
        return trainers[-1]

    stage.STAGE = replace(plain, build=kept)
    try:
        recipe = load_stage(case["recipe"], case["overrides"], name)
        run = stage.train(recipe, scorer_for)
        if case.get("again"):
            if rank() == 0:
                last = all_complete(run.checkpoints)[-1].path
                (file,) = [f for f in last.glob("*.safetensors") if "model" in f.name]
                file.rename(run.path / "first.safetensors")
                for place in (last, *case.get("lose", [])):
                    shutil.rmtree(place)
                if case.get("earlier"):
                    earlier(all_complete(run.checkpoints)[-1].path)
            if dist.is_initialized():
                dist.barrier()
            trainers.clear()
            run = stage.train(recipe, scorer_for)
    finally:
        stage.STAGE = plain
    info, trainer = run.info(), trainers.pop()
    last = all_complete(run.checkpoints)[-1].path
    return {
        "run": str(run.path),
        "world_size": info["world_size"],
        "engine": info["engine"],
        "sharded": all(sharded(weight) for weight in trainer.model.parameters()),
        "reference_units": units(trainer),
        "modes": modes(trainer) if case.get("modes") else None,
        "plain": beside_plain(trainer, last) if case.get("plain") else None,
    }


def main(cases: str, out: str) -> int:
    from posttrain.base.process import rank, world_size
    from posttrain.errors import RequestError
    from posttrain.stages.launch import setup_logging

    setup_logging()
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        fsdp_on_cpu()
    results = {}
    for case in json.loads(Path(cases).read_text()):
        name, module = case["name"], case.get("module")
        try:
            results[name] = importlib.import_module(module).results() if module else run_case(case)
        except Exception as error:
            traceback.print_exc()
            results[name] = {"error": f"{type(error).__name__}: {error}"}
            # the other rank may be waiting for this one, unless both refuse
            if world_size() > 1 and not isinstance(error, RequestError):
                Path(out).write_text(json.dumps(results))
                os._exit(1)
    if rank() == 0:
        Path(out).write_text(json.dumps(results))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
