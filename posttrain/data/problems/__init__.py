"""Generators: rows that are made instead of read, each a problem whose answer is known by construction.

`catalogue` lists them and checks their options. `operands` has multiplication and addition over all pairs of
operands; a family (`base.Family`) is one small file each, so that a problem can be read beside its answer;
`reasoning_gym` reaches the package of that name. Left out: worked solutions of the families, curricula (a
mixture of sources of several levels is one).
"""
