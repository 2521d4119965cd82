"""One of two ranks of an RLVR run whose rank 0 also serves the completions.

    python -m tests.training.served_worker RECIPE MODEL ROLLOUT OVERRIDE...

ROLLOUT is the recipe's section as JSON. The server keeps weights that are a little off; rank 0 writes what it
answered to `answers.json` beside the recipe.
"""

from __future__ import annotations

import json
import os
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import pytest

from tests.serving import pretend, serving
from tests.training.rollouts import train
from tests.training.test_rlvr_served import nudged


def main(recipe: Path, model: Path, rollout: str, *overrides: str) -> None:
    address, server = recipe.with_name("url"), nudged(model) if os.environ["RANK"] == "0" else None
    with pytest.MonkeyPatch.context() as patch, serving(server) if server else nullcontext():
        pretend(patch)
        if server:
            address.with_suffix(".tmp").write_text(server.url)
            address.with_suffix(".tmp").rename(address)
        while not address.exists():
            time.sleep(0.05)
        given = json.loads(rollout)
        given["vllm"]["server_base_url"] = address.read_text()
        train(recipe, f"rollout={json.dumps(given)}", *overrides)
        if server:
            recipe.with_name("answers.json").write_text(json.dumps(server.answered))


if __name__ == "__main__":
    os.environ["LOCAL_RANK"] = os.environ["RANK"]
    main(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
