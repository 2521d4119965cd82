"""Losses, advantages and importance weights as pure functions of tensors; README.md has the reference.

`confidence` maps a recipe's `loss:` to arguments of the kernels, `preference` has the losses of pairs,
`advantage` the credit of completions in a group, `importance` the weights of completions from another
program. Left out: models, data, anything stateful. May import the kernels, `posttrain.recipe` and what lies
below it.
"""
