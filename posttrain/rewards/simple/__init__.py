"""Rewards that are pure functions of the text and the row: words, choices, patterns, formats, lengths, steps.

`visible` has what they share: the text after the thinking, and the answer that it marks. `combine` and
`steps` are built from other rewards. Left out: mathematics, programs and instructions, which have folders of
their own.
"""
