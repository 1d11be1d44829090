"""The target: what a user writes, and the complete one that is made of it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from actune.errors import ActuneError, TargetError
from actune.targets.defaults import TokenBatches, default_loss, default_optimizer, token_batches


class Target(Protocol):
    """A training workload that a plan is tuned for.

    Only `model` must be there. A class may derive from this one or just have methods of these names; what it leaves
    out gets a default. It may also have `layers`, a sequence of FQNs: the modules that are to be treated as layers,
    where they are not to be discovered.
    """

    def model(self) -> nn.Module:
        """A new model, without activation checkpointing and not compiled; it may be built on the meta device."""
        ...

    def model_on(self, device: torch.device) -> nn.Module:
        """Instead of `model`, where modules depend on the device that steps run on (the CPU for a simulated one).

        The model need not be there yet. By default what `model` returns.
        """
        return self.model()

    def batch(self, step: int) -> Any:
        """The inputs of a step: the same for the same step. By default random tokens, on the CPU."""
        ...

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """A scalar, with the model's forward in it. By default cross entropy of each next token."""
        ...

    def optimizer(self, model: nn.Module) -> Optimizer | None:
        """Over the parameters that are trained. AdamW if this is left out or returns None."""
        return None

    def parallelize(self, model: nn.Module) -> nn.Module:
        """Applies FSDP2 or TP; called after activation checkpointing and compile. By default the model as it is.

        A target whose attribute of this name is None does not distribute its model; it may say so depending on whether
        torch.distributed has a process group of several.
        """
        return model


@contextmanager
def importable(folder: Path | None) -> Iterator[None]:
    """Puts a folder first on the import path for as long as the user's code runs; nothing for None."""
    if folder is None:
        yield
        return
    entry = str(folder)
    sys.path.insert(0, entry)
    try:
        yield
    finally:
        if entry in sys.path:  # the user's code may itself have changed the path
            sys.path.remove(entry)


CPU = torch.device("cpu")


class BoundTarget:
    """A target with everything there: the user's methods, and defaults for those it does not have.

    `model()` comes first: the default batch is made to fit what the model says about itself.

    Attributes:
        name: the target as named on the command line, for messages.
        layer_fqns: the layers that the target names; None if they are to be discovered.
    """

    def __init__(self, target: Any, *, name: str, folder: Path | None = None) -> None:
        """Binds a target.

        Args:
            target: an object with the method `model` and any of Target's others; or a callable without arguments
                that returns a new model.
            name: what to call it in messages.
            folder: importable while the target's methods run, for imports inside of them.

        Raises:
            TargetError: the object has neither form, or its `layers` are no sequence of FQNs.
        """
        self.name = name
        self._folder = folder
        # A model may happen to have a submodule called `model`, and a class has its methods unbound.
        is_target = hasattr(target, "model") and not isinstance(target, nn.Module) and not isinstance(target, type)
        build = target.model if is_target else target
        if not callable(build) or isinstance(build, nn.Module):
            raise TargetError(
                f"target '{name}': {type(target).__name__} has no method model(). Expected an object with "
                "`def model(self)` that returns a new nn.Module, or a callable that returns one."
            )
        self._build: Callable[[], Any] = build
        self._target = target if is_target else None
        self._methods = {
            method: _own_method(self._target, method, name=name)
            for method in ("model_on", "batch", "loss", "optimizer", "parallelize")
        }
        self._tokens: TokenBatches | None = None
        self.layer_fqns = _named_layers(target, name=name) if is_target else None

    @property
    def has_parallelize(self) -> bool:
        """Whether the target distributes its model itself, in this process as it is now."""
        return self._parallelize_method() is not None

    @property
    def can_parallelize(self) -> bool:
        """Whether the target distributes its model where there are several ranks; some offer it only then."""
        return self.has_parallelize or isinstance(getattr(type(self._target), "parallelize", None), property)

    def model(self, device: torch.device = CPU) -> nn.Module:
        """A new model, in training mode.

        Args:
            device: where its steps run, which a target may build it for; the model itself may be elsewhere.

        Raises:
            TargetError: the target's code raised, returned something else, or brings no batch() although the model
                does not say how many tokens it knows.
        """
        with self._user_code("model()"):
            build_on = self._methods["model_on"]
            model = self._build() if build_on is None else build_on(device)
        if not isinstance(model, nn.Module):
            raise TargetError(
                f"target '{self.name}': model() returned a value of type {type(model).__name__}. Expected an nn.Module."
            )
        if self._methods["batch"] is None:
            self._tokens = token_batches(model, target=self.name)
        return model.train()

    def batch(self, step: int) -> Any:
        """The inputs of a step, on the device that the target puts them on; the same for the same step.

        Raises:
            TargetError: the target's code raised.
            RuntimeError: the default batch was asked for before model().
        """
        method = self._methods["batch"]
        if method is not None:
            with self._user_code("batch()"):
                return method(step)
        if self._tokens is None:
            raise RuntimeError("call model() before batch(): the default batch is made to fit the model")
        return self._tokens.tokens(step)

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """A scalar. What the forward raises is not wrapped here: under a plan it may be the plan's doing.

        Raises:
            TargetError: the default loss is used and does not fit the batch or the model's output, or the target's own
                loss is no scalar tensor.
        """
        method = self._methods["loss"]
        if method is None:
            return default_loss(model, batch, target=self.name)
        loss = method(model, batch)
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            what = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            raise TargetError(f"target '{self.name}': loss() returned {what}. Expected a tensor with one element.")
        return loss

    def optimizer(self, model: nn.Module) -> Optimizer:
        """The target's own, or AdamW.

        Raises:
            TargetError: the target's code raised or returned something else; or no parameter is trained.
        """
        method = self._methods["optimizer"]
        optimizer = None
        if method is not None:
            with self._user_code("optimizer()"):
                optimizer = method(model)
        if optimizer is None:
            return default_optimizer(model, target=self.name)
        if not isinstance(optimizer, Optimizer):
            raise TargetError(
                f"target '{self.name}': optimizer() returned a value of type {type(optimizer).__name__}. Expected a "
                "torch.optim.Optimizer, or None for AdamW."
            )
        return optimizer

    def parallelize(self, model: nn.Module) -> nn.Module:
        """The model as the target distributes it; the same model without `parallelize`.

        Raises:
            TargetError: the target's code raised or returned something else.
        """
        method = self._parallelize_method()
        if method is None:
            return model
        with self._user_code("parallelize()"):
            parallel = method(model)
        if not isinstance(parallel, nn.Module):
            raise TargetError(
                f"target '{self.name}': parallelize() returned a value of type {type(parallel).__name__}. Expected "
                "the model: end it with `return model`."
            )
        return parallel

    def _parallelize_method(self) -> Callable[..., Any] | None:
        # Asked for each time: it may depend on a process group that was not there when the target was bound.
        return _own_method(self._target, "parallelize", name=self.name)

    @contextmanager
    def _user_code(self, what: str) -> Iterator[None]:
        with importable(self._folder), blame_target(self.name, what):
            yield


@contextmanager
def blame_target(name: str, what: str) -> Iterator[None]:
    """Turns what the user's code raises into a TargetError, with the error as its cause.

    Running out of memory passes as it is: whether that is the target's doing depends on the plan.
    """
    try:
        yield
    except (ActuneError, MemoryError, torch.OutOfMemoryError):
        raise
    except (Exception, SystemExit) as error:
        message = f"{type(error).__name__}: {error}".removesuffix(": ")
        raise TargetError(f"target '{name}': {what} raised {message}") from error


def _own_method(target: Any, method: str, *, name: str) -> Callable[..., Any] | None:
    """The target's method, None if it has none of its own: what comes from the class Target itself does not count."""
    own = getattr(target, method, None)
    if own is None or getattr(own, "__func__", None) is getattr(Target, method):
        return None
    if not callable(own):
        raise TargetError(
            f"target '{name}': its {method} is a value of type {type(own).__name__}. Expected a method; if it means "
            "something else, give it another name."
        )
    function: Callable[..., Any] = own
    return function


def _named_layers(target: Any, *, name: str) -> tuple[str, ...] | None:
    layers = getattr(target, "layers", None)
    if layers is None:
        return None
    if (
        isinstance(layers, str)
        or not isinstance(layers, Sequence)
        or not layers
        or not all(isinstance(fqn, str) and fqn for fqn in layers)
    ):
        raise TargetError(
            f"target '{name}': its layers are {layers!r}. Expected a sequence of FQNs of modules, such as "
            '["layers.0", "layers.1"]; without the attribute, layers are discovered. If it means something else, '
            "such as a number of layers, give it another name."
        )
    return tuple(layers)
