"""Runs SFT cases in this process (or in each process of a launch) and writes what happened as JSON.

    python tests/training/cases.py CASES.json OUT.json
    accelerate launch --config_file ... tests/training/cases.py CASES.json OUT.json

CASES.json: [{"name", "recipe", "overrides": [...], "engine"}]. All cases of one engine share one launch, because
starting processes costs more than training them.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path

os.environ["CI"] = "1"


def main(cases: str, out: str) -> int:
    from posttrain import sft
    from posttrain.entry import setup_logging
    from posttrain.recipe import load_stage
    from posttrain.stage import rank

    setup_logging()
    results, trainers = {}, []
    build = sft.build
    sft.build = lambda recipe, parts: trainers.append(build(recipe, parts)) or trainers[-1]
    for case in json.loads(Path(cases).read_text()):
        try:
            run = sft.train(load_stage(case["recipe"], case["overrides"], "sft"))
            info = run.info()
            head = trainers.pop().model.get_output_embeddings().weight
            # ZeRO-3 without sharding (a persistent parameter) would prove nothing
            sharded = (
                hasattr(head, "ds_persist")
                and not head.ds_persist
                and head.ds_tensor.numel() < head.ds_numel
            )
            results[case["name"]] = {
                "run": str(run.path), "world_size": info["world_size"], "engine": info["engine"], "sharded": sharded,
            }  # fmt: skip
        except Exception as error:
            traceback.print_exc()
            results[case["name"]] = {"error": f"{type(error).__name__}: {error}"}
    if rank() == 0:
        Path(out).write_text(json.dumps(results))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
