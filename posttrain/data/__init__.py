"""Data: from the sources of a recipe to batches of tokens, in an order that is a pure function of the recipe.

One word for one thing. A *source* is a file, a glob, a folder, here or in a store, a data set of the hub or a
generator (sources, readers, columnar, folders, remote, hub, forms, problems/). A *row* is one record of it, a
dict of columns with its place `where`. A *shape* (shapes/) says which *examples* a row means: an `Example` is
a prompt with its completion, or a conversation, whose columns are mapped. A *problem* (problems/) is a
generated question with a known answer; a generator makes one row of each. `template`, `tokenizers` and
`tokenize` turn an example into a `TokenRow` (tokens), with proof that its mask is right; `table`, `cache` and
`make_once` keep those of a source on disk, tokenised once; `order` and `mixture` say which row of which
source stands at a *position* of the run; `prepare` puts these together, `collate` makes batches, `manifest`
writes mixture.json. README.md begins, and links a page on each of sources, forms, drops and the cache.

Left out: what is trained on a batch (losses/, training/), how completions are judged (rewards/), sampling
(generation/). May import base/, recipe/, types and errors. Reading rows imports neither torch nor
transformers, because `posttrain check` does.
"""
