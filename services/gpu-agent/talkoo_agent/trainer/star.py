"""A process group whose ranks need to reach rank 0 only: everything goes through the store that rank 0 keeps.

For gangs of which not every node can dial every other, as gloo's mesh demands. Sums are of integers, so they have the
same bits as a mesh's. For a sum of n bytes a rank sends n and receives n; all of that passes through rank 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C import _distributed_c10d as c10d
from torch._C._distributed_c10d import Store  # torch.distributed has it without saying so
from torch.futures import Future

NAME = "star"
CHUNK_BYTES = 4 << 20
"""The store takes values of up to 8 MiB."""
DTYPES: tuple[torch.dtype, ...] = (torch.int64, torch.int32, torch.uint8)
"""Of which a sum has one value in every order."""


class StarGroup(dist.ProcessGroup):
    """Operations are numbered, and every rank does the same ones in the same order. Each is done when it returns.

    Raises what the store raises when a peer is lost: DistError. `timeout` bounds each wait.
    """

    def __init__(self, store: Store, rank: int, size: int, timeout: timedelta) -> None:
        super().__init__(rank, size)  # type: ignore[call-arg]  # torch declares one of two
        self._store, self._rank, self._size, self._timeout = store, rank, size, timeout
        self._number = 0

    def allreduce(  # type: ignore[override]  # C++ calls it in this way only; torch declares more
        self, tensors: Sequence[Tensor], opts: Any = None
    ) -> dist.Work:
        """In place. Raises TypeError for anything but a sum of integers."""
        (tensor,) = tensors
        if tensor.dtype not in DTYPES or (opts is not None and opts.reduceOp != dist.ReduceOp.SUM):
            raise TypeError(f"a star sums integers, not {tensor.dtype}")
        number = self._next()
        if self._rank == 0:
            total = tensor.detach().cpu()
            for rank in range(1, self._size):
                total = total + self._take(number, rank, tensor, readers=1)
            self._give(number, 0, total)
            tensor.copy_(total)
        else:
            self._give(number, self._rank, tensor)
            tensor.copy_(self._take(number, 0, tensor, readers=self._size - 1))
        return _done([tensor])

    def broadcast(  # type: ignore[override]
        self, tensors: Sequence[Tensor], opts: Any = None
    ) -> dist.Work:
        (tensor,) = tensors
        root, number = (0 if opts is None else int(opts.rootRank)), self._next()
        if self._rank == root:
            self._give(number, root, tensor)
        else:
            tensor.copy_(self._take(number, root, tensor, readers=self._size - 1))
        return _done([tensor])

    def allgather(  # type: ignore[override]
        self, output: Sequence[Sequence[Tensor]], tensors: Sequence[Tensor], _: Any = None
    ) -> dist.Work:
        (tensor,), (found,), number = tensors, output, self._next()
        self._give(number, self._rank, tensor)
        for rank, target in enumerate(found):
            own = rank == self._rank
            target.copy_(tensor if own else self._take(number, rank, target, readers=self._size - 1))
        return _done(list(found))

    def barrier(self, _: Any = None) -> dist.Work:
        return self.allreduce([torch.zeros(1, dtype=torch.int64)])

    def getBackendName(self) -> str:  # noqa: N802  # named by torch
        return NAME

    def _next(self) -> int:
        self._number += 1
        return self._number

    def _give(self, number: int, rank: int, tensor: Tensor) -> None:
        data = _bytes_of(tensor)
        for chunk in range(_chunks(len(data))):
            part = data[chunk * CHUNK_BYTES : (chunk + 1) * CHUNK_BYTES].tobytes()
            self._store.set(_key(number, rank, chunk), part)  # type: ignore[arg-type]  # it takes bytes, too

    def _take(self, number: int, rank: int, like: Tensor, readers: int) -> Tensor:
        """What `rank` gave; the last of so many readers takes it off the store."""
        size = like.numel() * like.element_size()
        data = bytearray(size)
        for chunk in range(_chunks(size)):
            key = _key(number, rank, chunk)
            self._store.wait([key], self._timeout)
            start = chunk * CHUNK_BYTES
            part = self._store.get(key)
            if len(part) != min(CHUNK_BYTES, size - start):
                raise dist.DistNetworkError(f"rank {rank} sent {len(part)} bytes, another tensor than this rank's")
            data[start : start + len(part)] = part
        if readers == 1 or self._store.add(_key(number, rank, "readers"), 1) == readers:
            self._forget(number, rank, size, readers)
        return torch.frombuffer(data, dtype=like.dtype).reshape(like.shape) if size else torch.empty_like(like)

    def _forget(self, number: int, rank: int, size: int, readers: int) -> None:
        keys = [_key(number, rank, chunk) for chunk in range(_chunks(size))]
        for key in [*keys, *([_key(number, rank, "readers")] if readers > 1 else [])]:
            self._store.delete_key(key)


def register() -> None:
    """Make `init_process_group(backend=NAME)` mean this, once in a process."""
    if NAME not in dist.Backend.backend_list:
        dist.Backend.register_backend(NAME, StarGroup, devices=["cpu", "cuda"])


def _done(result: list[Tensor]) -> dist.Work:
    future: Future[list[Tensor]] = Future()
    future.set_result(result)
    work: dist.Work = c10d._create_work_from_future(future)  # type: ignore[attr-defined]
    return work


def _bytes_of(tensor: Tensor) -> memoryview:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return memoryview(flat.view(torch.uint8).numpy().data) if flat.numel() else memoryview(b"")


def _chunks(size: int) -> int:
    return -(-size // CHUNK_BYTES)


def _key(number: int, rank: int, part: int | str) -> str:
    return f"star/{number}/{rank}/{part}"
