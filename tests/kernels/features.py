"""Every feature of Mode A as a problem and the arguments that select it.

Left out: how exact the answers must be (`protocol`), and hostile numbers (`test_adversarial`).
"""

from typing import NamedTuple

import torch

from tests.kernels.problems import Problem, confident, random_problem


class Feature(NamedTuple):
    options: dict = {}  # of `confidence_limited`
    problem: dict = {}  # of `random_problem`
    tables: tuple[str, ...] = ()  # arguments that are [S] here
    solve: dict = {}  # of `solve`

    def build(self, tokens: int, dtype=torch.float64, **shape) -> tuple[Problem, dict]:
        """A problem and the arguments of `solve` for it; tables are fp32."""
        problem = confident(random_problem(tokens, **{**shape, **self.problem})).to(dtype)
        gen = torch.Generator().manual_seed(9)
        size = problem.segments + 2  # the last two ids are absent
        weights = torch.randn(size, generator=gen)  # any sign
        weights[::4] = 0
        p = torch.rand(size, generator=gen)
        p[0], p[1] = 0, 1
        made = {
            "n": torch.tensor([1.0, 2.0, 65536.0, 64.0, 1.5]).repeat(-(-size // 5))[:size],
            "p": p,
            "segment_weights": weights,
        }
        tables = {name: made[name] for name in self.tables}
        return problem, {"n": 8.0, **self.options, **self.solve, **tables}


def _members() -> dict[str, Feature]:
    members = {
        "cross_entropy": (None,),
        "dft": (None,),
        "power": (0.5, 2.0),
        "focal": (0.0, 0.5, 2.0),
        "maxrl": (1, 4, 16),
    }
    return {
        f"{member} {exponent}" if exponent is not None else member: Feature(
            {"member": member, "exponent": exponent}
        )
        for member, exponents in members.items()
        for exponent in exponents
    }


LORA = {"bias": True, "rank": 3}
FEATURES = {
    "confidence": Feature(),
    "N = 65536": Feature({"n": 65536.0}),
    **_members(),
    "sum": Feature({"reduction": "sum"}),
    "segment_mean": Feature({"reduction": "segment_mean"}),
    "length_mean": Feature({"reduction": "length_mean"}),
    "normalizer": Feature({"normalizer": 321}),
    "surrogate": Feature({"value": "surrogate"}, solve={"upstream": -1.7}),
    "external p": Feature({"value": "surrogate"}, tables=("p",)),
    "external p, weights, length_mean": Feature(
        {"value": "surrogate", "reduction": "length_mean"}, tables=("p", "segment_weights", "n")
    ),
    "N per segment": Feature(tables=("n",)),
    "segment weights": Feature(tables=("segment_weights",), solve={"upstream": -2.5}),
    "p gate": Feature({"p_threshold": 1e-3}),
    "weight gate": Feature({"weight_threshold": 0.9, "n": 256.0}),
    "p gate on external p": Feature({"p_threshold": 0.5, "value": "surrogate"}, tables=("p",)),
    "bias": Feature(problem={"bias": True}),
    "LoRA on the head": Feature(problem={"rank": 3}),
    "bias and LoRA, trained alone": Feature(problem=LORA, solve={"frozen_hidden": True}),
    "softcap": Feature({"softcap": 3.0}),
    "logit scale": Feature({"logit_scale": -0.25}),
    "temperature": Feature({"temperature": 0.7}),
    "softcap, scale, temperature, LoRA": Feature(
        {"softcap": 3.0, "logit_scale": 0.5, "temperature": 0.7}, problem=LORA
    ),
    "z-loss": Feature({"z_loss": 0.1}),
    "z-loss, length_mean, softcap, LoRA": Feature(
        {"z_loss": 0.1, "softcap": 3.0, "temperature": 0.7, "reduction": "length_mean"}, problem=LORA
    ),
    "skipping": Feature({"skip_below": 0.6, "n": 256.0}),
    "skipping zero weights": Feature({"skip_below": 0.0}, problem=LORA, tables=("segment_weights",)),
    "frozen head": Feature(solve={"frozen_head": True}),
    "frozen hidden states": Feature(solve={"frozen_hidden": True}),
    "chunks of 9": Feature({"chunk_rows": 9}),
    "chunks of 9, long segments": Feature({"chunk_rows": 9}, problem={"length": 24, **LORA}),
    "chunks of 9, long segments, z-loss": Feature(
        {"chunk_rows": 9, "z_loss": 0.1, "softcap": 3.0}, problem={"length": 24, **LORA}
    ),
    "chunks of 9, skipping": Feature({"chunk_rows": 9, "skip_below": 0.6, "n": 256.0}),
}

SMOOTH = {"member": "cross_entropy", "label_smoothing": 0.2}
SHAPED = {
    "smoothing": Feature(SMOOTH),
    "smoothing, length_mean": Feature({**SMOOTH, "reduction": "length_mean"}),
    "smoothing, segment weights": Feature(SMOOTH, tables=("segment_weights",), solve={"upstream": -1.7}),
    "smoothing, p gate, skipping": Feature({**SMOOTH, "p_threshold": 1e-3, "skip_below": 0.0}),
    "smoothing, external p gate": Feature(
        {**SMOOTH, "p_threshold": 0.5, "value": "surrogate"}, tables=("p",)
    ),
    "bonus": Feature({"entropy_bonus": 0.1}),
    "bonus, weights, length_mean": Feature(
        {"entropy_bonus": 0.1, "reduction": "length_mean"}, tables=("segment_weights", "n")
    ),
    "bonus, weight gate": Feature({"entropy_bonus": 0.1, "weight_threshold": 0.9, "n": 256.0}),
    "bonus, frozen head": Feature({"entropy_bonus": 0.1}, solve={"frozen_head": True}),
    "both, z-loss, LoRA": Feature({**SMOOTH, "entropy_bonus": 0.1, "z_loss": 0.1}, problem=LORA),
    "both, z-loss, softcap, LoRA": Feature(
        {**SMOOTH, "entropy_bonus": 0.1, "z_loss": 0.1, "softcap": 3.0, "temperature": 0.7}, problem=LORA
    ),
    "bonus, long segments": Feature({"entropy_bonus": 0.1}, problem={"length": 24}),
}
"""Label smoothing and the entropy bonus, which have no Triton kernel."""
