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
UNSAID = ("unexpected pos", "PytorchStreamWriter failed")
"""What torch.save says where its writes fail; it does not say why, and without space is what it means."""


def no_space(error: BaseException) -> str | None:
    """`the disk is full`, or that a quota or limit is reached, if that is why `error` arose; else None."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in NO_SPACE:
            return NO_SPACE[seen.errno]
        text = str(seen)
        for number, words in NO_SPACE.items():  # safetensors, arrow: "... (os error 28)"
            if os.strerror(number) in text or f"os error {number})" in text:
                return words
        if isinstance(seen, RuntimeError) and any(part in text for part in UNSAID):
            return NO_SPACE[errno.ENOSPC]
        seen = seen.__cause__ or seen.__context__
    return None


def why_unwritten(error: BaseException) -> str:
    """Why a file could not be written: `no_space`, or the system's own words."""
    own = error.strerror if isinstance(error, OSError) else None
    return no_space(error) or own or (str(error).strip() or type(error).__name__).splitlines()[0]
