"""Training: what the stages that train share: the mixin over TRL's trainers, callbacks, guard, gates,
checkpoints, engines, the reference of preference runs, what is logged, and the comparison of the installed
libraries with the table of their settings (README.md).

Left out: the stages' own losses (`posttrain.sft`, `dpo`, `rlvr`), and evaluation, which is passed in as a
callable. May import base, recipe, data, rundir, generation, rewards, kernels, losses, models and rollouts.
"""
