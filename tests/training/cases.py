"""Runs cases of a stage in this process (or in each process of a launch) and writes what happened as JSON.

    python tests/training/cases.py CASES.json OUT.json
    accelerate launch --config_file ... tests/training/cases.py CASES.json OUT.json

CASES.json: [{"name", "stage" (default sft), "recipe", "overrides": [...], "engine", "again", "modes"}]. All
cases of one engine share one launch, because starting processes costs more than training them. `again`: the
last checkpoint is removed and the run started once more, so that it resumes; its weights before that are kept
as `first.safetensors`. `modes`: under ZeRO-3 also compare gradients through log-probabilities with those of
the loss.
"""

from __future__ import annotations

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

    AcceleratorState.__init__ = with_fsdp
    stages.refuse_fsdp = lambda model, train, on_cpu: refuse(model, train, False)


def sharded(weight) -> bool:
    """Whether this rank holds a part only: ZeRO-3 without sharding (a persistent parameter) would prove
    nothing."""
    if hasattr(weight, "ds_persist"):
        return not weight.ds_persist and weight.ds_tensor.numel() < weight.ds_numel
    return hasattr(weight, "to_local") and weight.to_local().numel() < weight.numel()


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


def main(cases: str, out: str) -> int:
    import importlib

    import torch.distributed as dist

    from posttrain.base.process import rank
    from posttrain.recipe import load_stage
    from posttrain.rundir.checkpoints import all_complete
    from posttrain.stages.launch import scorer_for, setup_logging

    setup_logging()
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        fsdp_on_cpu()
    results, trainers = {}, []
    for case in json.loads(Path(cases).read_text()):
        name = case.get("stage", "sft")
        stage = importlib.import_module(f"posttrain.{name}")
        plain = stage.STAGE

        def kept(recipe, parts, build=plain.build):
            trainers.append(build(recipe, parts))
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
                    shutil.rmtree(last)
                dist.barrier()
                trainers.clear()
                run = stage.train(recipe, scorer_for)
            info = run.info()
            trainer = trainers.pop()
            head = trainer.model.get_output_embeddings()
            weight = getattr(head, "base_layer", head).weight
            results[case["name"]] = {
                "run": str(run.path),
                "world_size": info["world_size"],
                "engine": info["engine"],
                "sharded": sharded(weight),
                "modes": modes(trainer) if case.get("modes") else None,
            }
        except Exception as error:
            traceback.print_exc()
            results[case["name"]] = {"error": f"{type(error).__name__}: {error}"}
        finally:
            stage.STAGE = plain
    if rank() == 0:
        Path(out).write_text(json.dumps(results))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
