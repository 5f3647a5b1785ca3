"""The DDP communication hook: gradients become fixed point, integers are summed, the sum becomes gradients again."""

# No `from __future__ import annotations` here: DDP inspects the hook's annotations and wants types, not texts.
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._C._distributed_c10d import GradBucket  # what DDP asks the hook to be annotated with
from torch.futures import Future

from talkoo_core.errors import TalkooError
from talkoo_math.fixedpoint import dequantize, quantize


class Exchange:
    """Remembers, for the step under way, this rank's contribution and the aggregate, by parameter name (int64)."""

    def __init__(self, model: nn.Module, share: int, global_batch: int) -> None:
        self._names = {id(parameter): name for name, parameter in model.named_parameters()}
        self._share = share
        self._global_batch = global_batch
        self.contribution: dict[str, Tensor] = {}
        self.aggregate: dict[str, Tensor] = {}
        self.made_up: dict[str, Tensor] | None = None
        """What a forging rank sends in place of its gradient."""
        self.error: TalkooError | None = None
        """Why quantization refused; autograd may wrap what a hook raises, so the trainer looks here first."""

    def begin(self) -> None:
        self.contribution, self.aggregate, self.made_up, self.error = {}, {}, None, None

    def hook(self, _: object, bucket: GradBucket) -> Future[Tensor]:
        """Called by DDP once for each bucket. Buckets differ between runs of DDP; names do not."""
        names = [self._names[id(parameter)] for parameter in bucket.parameters()]
        gradients = bucket.gradients()
        try:
            own = {name: self._quantized(name, gradient) for name, gradient in zip(names, gradients, strict=True)}
        except TalkooError as error:
            self.error = error
            raise
        self.contribution.update(own)
        flat = torch.cat([own[name].reshape(-1) for name in names])
        # In DDP's own stream order; the callback runs when the sum is there.
        work = dist.all_reduce(flat, op=dist.ReduceOp.SUM, async_op=True)
        assert work is not None
        future = cast(Future[Any], work.get_future())

        def finish(done: Future[Any]) -> Tensor:
            done.value()  # raises what the network raised
            offset = 0
            for name, gradient in zip(names, gradients, strict=True):
                part = flat[offset : offset + gradient.numel()].reshape(gradient.shape)
                offset += gradient.numel()
                self.aggregate[name] = part
                gradient.copy_(dequantize(part, gradient.dtype))
            return bucket.buffer()

        return cast(Future[Tensor], future.then(finish))

    def _quantized(self, name: str, gradient: Tensor) -> Tensor:
        if self.made_up is not None:
            return self.made_up[name]
        return quantize(gradient, self._share, self._global_batch)
