"""Models: loading, adapters, and the fused output head, which computes losses without T x V logits.

Left out: what is trained and how (`posttrain.training`), sampling (`posttrain.generation`). May import the
kernels, `posttrain.losses` and the rooms below.
"""
