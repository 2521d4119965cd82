"""The other ranks of this launch, watched by a thread: where one is lost, the rest end with a sentence.

A collective of NCCL waits for a lost rank until its time-out, and one of gloo fails with an error about a
socket. So every rank puts its process into the store of the process group, and, before it fails, why. The
thread looks at the store and at the processes of its own host twice a second. Left out: a rank of another
host that is killed and cannot say so (there the launcher ends the ranks), and the time before the process
group exists, while rows are prepared.

A signal may reach one rank only. The thread tells the others, which would otherwise finish what they have
begun, the scores of a checkpoint or a batch of completions, while that rank waits.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from itertools import count

import psutil
import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import _get_default_store

from posttrain.base.disk import no_space
from posttrain.base.exit_codes import say_error
from posttrain.base.process import rank, runs, world_size
from posttrain.base.stop import StopRequest, stop_main_thread
from posttrain.errors import PosttrainError, WorkError

POLL_S = 0.5
GRACE_S = 3.0
"""Seconds after a loss in which the main thread may still end by itself, with an error of all ranks."""
PATIENCE_S = 5.0
"""Seconds after an error that a lost rank may have caused in which the loss may show."""
LOST = "lost"
ASKED = "asked to stop"
_blocks = count()
"""Of `watched` in this process: each has keys of its own in the store."""


class PeerLost(WorkError):
    """Another rank failed or was killed."""


class Peers:
    """The other ranks. `end(sentence)` ends this process, whatever its main thread does; `stop` is the
    request to this rank."""

    def __init__(self, store: dist.Store, end: Callable[[str], None], stop: StopRequest) -> None:
        self.store, self.end, self.stop = store, end, stop
        self.own = {"pid": os.getpid(), "host": socket.gethostname(), "begun": psutil.Process().create_time()}
        self.store.set(str(rank()), json.dumps(self.own))
        self.unknown = set(range(world_size())) - {rank()}
        self.here: dict[int, psutil.Process] = {}
        self.sentence: str | None = None
        self.leaving = threading.Event()
        """The main thread has left the work."""
        self._turn = threading.Lock()
        threading.Thread(target=self._watch, daemon=True, name="peers").start()

    def gone(self) -> bool:
        """Whether a rank of this host has ended. Does not ask the store: a signal handler may call it."""
        return self.sentence is not None or any(not runs(process) for process in list(self.here.values()))

    def lost(self, wait_s: float = 0.0) -> str | None:
        """The sentence about a lost rank, the same on all ranks; None where none is lost within `wait_s`."""
        until = time.monotonic() + wait_s
        while (found := self._look()) is None and time.monotonic() < until:
            time.sleep(POLL_S / 5)
        return found

    def tell(self, what: str) -> None:
        """Before this rank ends: what happened to it. The first to tell is the one that counts."""
        self._settle(f"{described(rank(), self.own)} {what}")

    def _look(self) -> str | None:
        with self._turn:
            if self.sentence is not None:
                return self.sentence
            dead = next(((r, p) for r, p in self.here.items() if not runs(p)), None)
            if dead is not None and self._has_left(dead[0]):
                del self.here[dead[0]]
                dead = None
            with contextlib.suppress(RuntimeError):  # the store is gone with the rank that held it
                if self.store.check([LOST]):
                    self.sentence = self.store.get(LOST).decode()
                    return self.sentence
                self._meet()
            if dead is not None:
                where = described(dead[0], {"pid": dead[1].pid, "host": self.own["host"]})
                self._settle(f"{where} was killed or crashed")
            return self.sentence

    def leave(self) -> None:
        """This rank has done its work: it may end before others."""
        self.leaving.set()
        with contextlib.suppress(RuntimeError):
            self.store.set(f"{rank()} has left", "")

    def _has_left(self, other: int) -> bool:
        with contextlib.suppress(RuntimeError):
            return self.store.check([f"{other} has left"])
        return False

    def _settle(self, sentence: str) -> None:
        with contextlib.suppress(RuntimeError):
            sentence = self.store.compare_set(LOST, "", sentence).decode()
        self.sentence = sentence

    def _meet(self) -> None:
        """Takes in the ranks of this host that have come; in containers they may not see each other."""
        for other in sorted(self.unknown):
            if not self.store.check([str(other)]):
                continue
            self.unknown.remove(other)
            found = json.loads(self.store.get(str(other)))
            if found["host"] != self.own["host"]:
                continue
            with contextlib.suppress(psutil.Error):
                process = psutil.Process(found["pid"])
                if abs(process.create_time() - found["begun"]) < 1:
                    self.here[other] = process

    def _watch(self) -> None:
        while not self.leaving.wait(POLL_S):
            sentence = self._look()
            if sentence is not None and not self.leaving.wait(GRACE_S):
                self.end(sentence)
            with contextlib.suppress(RuntimeError):
                self._pass_on()

    def _pass_on(self) -> None:
        """Asks the other ranks to stop where this one was asked, and this one where another was.

        While nothing can be saved yet, a signal ends its rank at once, and the others learn of the loss.
        """
        if self.stop.requested:
            self.store.set(ASKED, "")
        elif self.stop.can_save and self.store.check([ASKED]):
            stop_main_thread()


def described(number: int, process: dict) -> str:
    """`rank 1 (process 123 on host a)`."""
    return f"rank {number} (process {process['pid']} on host {process['host']})"


@contextlib.contextmanager
def watched(
    stop: StopRequest, advice: Callable[[], str], record: Callable[[WorkError], None]
) -> Iterator[None]:
    """Watches the other ranks while the block runs, and lets them know if it fails.

    `advice()` closes the sentence about a lost rank; `record(error)` is called before this process ends
    without its main thread, which may wait for ever in a collective.

    Raises:
        PeerLost: in place of the error that a lost rank caused in the block.
    """
    if world_size() == 1 or not dist.is_initialized():
        yield
        return

    def end(sentence: str) -> None:
        error = PeerLost(f"{sentence}; {advice()}")
        say_error(error)
        record(error)
        os._exit(1)

    store = dist.PrefixStore(f"posttrain/{next(_blocks)}", _get_default_store().clone())
    peers = Peers(store, end, stop)
    stop.is_void = peers.gone
    try:
        yield
        peers.leave()
    except PosttrainError as error:
        # an error of a collective may have been turned into a sentence about what was being done
        wrapped = isinstance(error, WorkError) and isinstance(error.__cause__, RuntimeError)
        if wrapped and (sentence := peers.lost(PATIENCE_S)):
            raise PeerLost(f"{sentence}; {advice()}") from None
        peers.tell(f"failed: {error}")
        raise
    except KeyboardInterrupt:
        if not stop.requested and (sentence := peers.lost(PATIENCE_S)):  # by the launcher, after the loss
            raise PeerLost(f"{sentence}; {advice()}") from None
        peers.tell("was interrupted")
        raise
    except BaseException as error:
        ours = isinstance(error, torch.OutOfMemoryError) or not isinstance(error, RuntimeError)
        if sentence := peers.lost(0.0 if ours else PATIENCE_S):
            raise PeerLost(f"{sentence}; {advice()}") from None
        memory = isinstance(error, MemoryError | torch.OutOfMemoryError)
        reason = "out of memory" if memory else no_space(error) or f"{type(error).__name__}: {error}"
        peers.tell(f"failed: {reason}".partition("\n")[0])
        raise
    finally:
        peers.leaving.set()
