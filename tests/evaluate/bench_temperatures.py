"""What the controls of an exact task cost: five temperatures in one pass against one.

    python tests/evaluate/bench_temperatures.py

One process, the two alternating; the median of the ratios over the rounds. The quickstart's model, and one
of the shape of SmolLM-135M with a third of its layers.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from statistics import median

import torch

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]
FIVE = (1.0, 0.5, 0.7, 1.5, 2.0)


def main(rounds: int = 9) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    from posttrain.evaluate.exact import answer_log_probs

    torch.manual_seed(0)
    for vocabulary, width, layers, heads, problems in ((16, 128, 3, 4, 1000), (49_152, 576, 10, 9, 64)):
        size = {"hidden_size": width, "intermediate_size": 8 * width // 3, "num_hidden_layers": layers}
        size |= {"num_attention_heads": heads, "max_position_embeddings": 128}
        model = LlamaForCausalLM(LlamaConfig(vocab_size=vocabulary, **size))
        prompts = [torch.randint(vocabulary, (24,)).tolist() for _ in range(problems)]
        answers = [torch.randint(vocabulary, (5,)).tolist() for _ in range(problems)]
        ratios = []
        for _ in range(rounds):
            seconds = []
            for temperatures in ((1.0,), FIVE):
                begun = time.perf_counter()
                answer_log_probs(model, prompts, answers, 64, temperatures)
                seconds.append(time.perf_counter() - begun)
            ratios.append(seconds[1] / seconds[0])
        print(f"width {width}, vocabulary {vocabulary:,}: {median(ratios):.3f} times one")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
