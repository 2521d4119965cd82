"""Rewards whose value comes from a model: a language model as judge (over HTTP), or a reward model.

`judge_words` has the wording of the questions and reads the replies, `judge_http` sends them. Left out:
training reward models, process reward models, and corpora, because the values depend on the model.
"""
