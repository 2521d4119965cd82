"""Groups of completions with verdicts: sampling, scoring, training batches, preference pairs, success rates.

A completion is what was sampled, a group the completions of one prompt, a rollout a completion with its
verdicts as a line of a run's `rollouts/`; README.md has the recipe sections and the file formats. Left out:
optimizer steps (`posttrain.rlvr`), the loop over chunks (`posttrain.stages.sample`), reading rollouts for
people (`posttrain.rundir.rollouts`). May import generation, rewards, data, losses and the rooms below.
"""
