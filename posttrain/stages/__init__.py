"""Stages: one run from a checked recipe to a finished run directory, for stages that train and stages that
sample; the checks before it (`preflight`); pipelines of stages (`pipeline`, `schedule`); sweeps, which are
pipelines that are made (`grid`, `sweep`).

Left out: what makes one stage different from another (the stage modules `posttrain.sft`, `dpo`, `rlvr`,
`pairs`, `pass_rate`). May import every room except those modules, commands and cli; nothing below imports it.
Only this room, the stage modules, commands, recipe/ and rundir/directory take a whole recipe.
"""
