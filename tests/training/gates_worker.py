"""One of two ranks that are told by rank 0 what the gates say: `RANK MEETING RUNS OUT`.

Only rank 0 is given the runs; the other looks into an empty folder, so what it knows it was told.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch.distributed as dist

from posttrain.recipe.sections import Gate
from posttrain.training.gates import GateFailed, enforce


def main(rank: int, meeting: str, runs: Path, out: Path) -> None:
    dist.init_process_group("gloo", f"file://{meeting}", rank=rank, world_size=2)
    said = []
    for name in ("stops", "passes", "damaged"):
        place = runs / name if rank == 0 else out / "nothing"
        try:
            enforce(place, [Gate("t", "m", 0.1, action="stop")], "step-000002", rank == 0)
            said.append("")
        except GateFailed as error:
            said.append(str(error))
    (out / f"{rank}.json").write_text(json.dumps(said))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]))
