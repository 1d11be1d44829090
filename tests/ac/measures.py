"""Truths of PyTorch itself: FLOPs by its counter, kept bytes by finalizers on storages, recomputed modules by hooks."""

import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import FlopCounterMode


class LiveBytes(TorchDispatchMode):
    """Bytes of the storages that ops made and that are still alive."""

    def __init__(self):
        super().__init__()
        self.live_bytes = 0
        self._seen = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        known = {t.untyped_storage()._cdata for t in tree_iter((args, kwargs)) if isinstance(t, torch.Tensor)}
        out = func(*args, **(kwargs or {}))
        for tensor in tree_iter(out):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in known and storage._cdata not in self._seen:
                    self._seen.add(storage._cdata)
                    self.live_bytes += storage.nbytes()
                    weakref.finalize(storage, self._freed, storage._cdata, storage.nbytes())
        return out

    def _freed(self, key, size_bytes):
        self._seen.discard(key)
        self.live_bytes -= size_bytes


def backward_flops(model, x):
    """FLOPs of the backward, recomputation included.

    The counter is on in forward too: it decomposes ops, and SAC must see the same ops in both directions.
    """
    with FlopCounterMode(display=False) as counter:
        loss = model(x).sum()
        forward_flops = counter.get_total_flops()
        loss.backward()
    return counter.get_total_flops() - forward_flops


def kept_bytes(model, x):
    """Bytes kept from forward to backward beyond the loss itself."""
    with LiveBytes() as mode:
        loss = model(x).sum()
        kept = mode.live_bytes - loss.untyped_storage().nbytes()
        loss.backward()
    return kept


def recomputed_matmuls(model, x):
    """FQNs below the block of the Linears whose matmul runs again in backward.

    A Linear's forward hook fires when its module is recomputed, even where SAC hands out the kept output; so matmuls
    are told apart by the weight that they read.
    """
    weights = {m.weight.data_ptr(): fqn.rpartition(".")[2] for fqn, m in model.named_modules() if hasattr(m, "weight")}

    class Watch(TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.runs = []

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            # A forward matmul is x @ W.t(): its right-hand side is the transposed view of the weight.
            if func is torch.ops.aten.mm.default and args[1].data_ptr() in weights and not args[1].is_contiguous():
                self.runs.append(weights[args[1].data_ptr()])
            return func(*args, **(kwargs or {}))

    loss = model(x).sum()
    with Watch() as watch:
        loss.backward()
    return watch.runs


def gradients(model, x):
    x = x.detach().clone().requires_grad_()
    model.zero_grad(set_to_none=True)
    out = model(x)
    out.sum().backward()
    return {"out": out.detach(), "x": x.grad, **{n: p.grad.clone() for n, p in model.named_parameters()}}
