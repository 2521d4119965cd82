"""The run directory: the files that a run leaves, one module for each format.

`directory` has the paths, `run.json` and the start rule, `lock` the lock; `checkpoints`, `scores` and `gates`
read and write their files, whose rows `rows` checks; `rollouts` reads what a run sampled, `sweeps` which run
of a sweep has which values; `reading` loads a run or a pipeline as one value.
`README.md` lists the files and their keys. Left out: when something is written (training, rollouts, evaluate,
the stages) and how it is shown (report). May import data, recipe, base, types and errors; needs no torch.
"""
