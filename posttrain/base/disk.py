"""Why a file could not be written, in words: a full disk is called one, whichever library met it.

Left out: which errors are shown without a traceback (exit_codes.py).
"""

from __future__ import annotations

import errno
import os

NO_SPACE = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file would be larger than the limit of this system (ulimit -f)",
}
BROKEN = {errno.EIO, errno.EROFS, errno.ESTALE, errno.EACCES, errno.EPERM}
"""Errors that rule out a full disk: the messages of the libraries around them are then not searched."""
QUIET = ("unexpected pos", "PytorchStreamWriter failed", "iostream error")
"""What torch.save reports when a write fails. It gives no reason, and the disk is nearly always full."""


def no_space(error: BaseException) -> str | None:
    """`the disk is full`, or that a quota or limit is reached, if that is why `error` arose; else None.

    The number of a system error decides, wherever in the chain it is; what libraries say without one is read.
    """
    chain: list[BaseException] = []
    seen: BaseException | None = error
    while seen is not None and seen not in chain:
        chain.append(seen)
        seen = seen.__cause__ or seen.__context__
    numbers = {each.errno for each in chain if isinstance(each, OSError)}
    for number, words in NO_SPACE.items():
        if number in numbers:
            return words
    if numbers & BROKEN:
        return None
    for each in chain:
        text = str(each)
        for number, words in NO_SPACE.items():  # safetensors, arrow: "... (os error 28)"
            named = number != errno.EFBIG and os.strerror(number) in text  # EFBIG reads like HTTP's 413
            if named or f"os error {number})" in text or f"[Errno {number}]" in text:
                return words
        if isinstance(each, RuntimeError) and any(part in text for part in QUIET):
            return NO_SPACE[errno.ENOSPC]
    return None


def why_unwritten(error: BaseException) -> str:
    """Why a file could not be written: `no_space`, or the system's own words."""
    own = error.strerror if isinstance(error, OSError) else None
    return no_space(error) or own or (str(error).strip() or type(error).__name__).splitlines()[0]
