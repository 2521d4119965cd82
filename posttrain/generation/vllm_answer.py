"""What an engine answered is checked before it becomes a completion.

A policy is trained on token ids and log-probabilities that another program sent. Ids outside the vocabulary,
more tokens than were requested, or log-probabilities of other tokens would end in an error far from here, or
in none at all. Left out: whether the log-probabilities are the policy's (`rollouts/mismatch.py`).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from json import JSONDecodeError

from posttrain.errors import WorkError

BARE = (TypeError, LookupError, AttributeError, ValueError)
"""What reading an answer of another form raises: its text names neither the answer nor what is missing."""


def refuse_answer(
    whose: str, ids: Sequence[int], log_probs: Sequence[object], most: int, rows: int, stops: Collection[int]
) -> None:
    """Raises `WorkError` for a completion that no engine may give.

    `whose`: how its sentence begins, the engine and the prompt. `ids` [n], `log_probs` [n]: of the sampled
    tokens. `most`: `Sampling.max_new_tokens`. `rows`: size of the vocabulary. `stops`: the end tokens.
    """
    if wrong := _wrong(ids, log_probs, most, rows, stops):
        raise WorkError(f"{whose} {wrong}")


def _wrong(
    ids: Sequence[int], log_probs: Sequence[object], most: int, rows: int, stops: Collection[int]
) -> str | None:
    if not ids:
        return "without a token; a completion has at least one, and an end token counts"
    if len(ids) > most:
        return f"with {len(ids)} tokens; at most {most} were requested (rollout.max_new_tokens)"
    if strange := [i for i in ids if not isinstance(i, int) or not 0 <= i < rows]:
        return (
            f"with the token id {strange[0]!r}, but the policy's vocabulary has {rows} rows; serve the model "
            "that the policy starts from"
        )
    if len(log_probs) != len(ids):
        return f"with {len(ids)} tokens but {len(log_probs)} log-probabilities; each token needs its own"
    if ended := [place for place, i in enumerate(ids[:-1]) if i in stops]:
        after = len(ids) - ended[0] - 1
        return f"with {after} token(s) after the end token {ids[ended[0]]}, which stop_token_ids names"
    return None


def explained(error: Exception) -> str:
    """What went wrong in TRL's client of a server, as the end of a sentence."""
    # errors of requests are OSErrors, some of them ValueErrors too, and explain themselves
    bare = isinstance(error, BARE) and not isinstance(error, OSError)
    if not bare and not isinstance(error, JSONDecodeError):
        return str(error)
    return (
        f"TRL's client cannot read the answer ({type(error).__name__}: {error}); serve with a vLLM version "
        "that this TRL supports, which gives token_ids and a log-probability of each token"
    )
