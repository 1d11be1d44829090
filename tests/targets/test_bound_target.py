from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from actune.errors import TargetError, UsageError
from actune.targets import BoundTarget, Target


class Language(nn.Module):
    """Tokens to logits; says its vocabulary by its embedding."""

    def __init__(self, vocabulary: int = 32, width: int = 8) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.head = nn.Linear(width, vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        out: Tensor = self.head(self.embedding(tokens))
        return out


class TwoEmbeddings(Language):
    def __init__(self) -> None:
        super().__init__()
        self.positions = nn.Embedding(16, 8)


def bound(target: Any) -> BoundTarget:
    return BoundTarget(target, name="mine")


def test_a_callable_that_builds_a_model_is_enough() -> None:
    target = bound(Language)
    model = target.model().eval()
    assert target.model().training
    batch = target.batch(3)
    assert batch.shape == (4, 257)
    assert torch.equal(batch, target.batch(3))
    assert not torch.equal(batch, target.batch(4))
    expected = nn.functional.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
    assert torch.equal(target.loss(model, batch), expected)
    optimizer = target.optimizer(model)
    assert isinstance(optimizer, torch.optim.AdamW)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 3
    assert target.parallelize(model) is model
    assert target.layer_fqns is None


def test_the_users_methods_are_used() -> None:
    class Mine:
        layers = ("embedding", "head")

        def model(self) -> nn.Module:
            return Language()

        def batch(self, step: int) -> Tensor:
            return torch.full((1, 3), step)

        def loss(self, model: nn.Module, batch: Tensor) -> Tensor:
            out: Tensor = model(batch).sum()
            return out

        def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
            return torch.optim.SGD(model.parameters(), lr=1.0)

        def parallelize(self, model: nn.Module) -> nn.Module:
            return nn.Sequential(model)

    target = bound(Mine())
    model = target.model()
    assert torch.equal(target.batch(2), torch.full((1, 3), 2))
    assert torch.equal(target.loss(model, target.batch(2)), model(target.batch(2)).sum())
    assert isinstance(target.optimizer(model), torch.optim.SGD)
    assert isinstance(target.parallelize(model), nn.Sequential)
    assert target.layer_fqns == ("embedding", "head")


def test_what_a_derived_class_leaves_out_gets_the_default() -> None:
    class Mine(Target):  # batch and loss are left to their defaults, which a type checker can't know
        def model(self) -> nn.Module:
            return Language()

    target = bound(Mine())  # type: ignore[abstract]
    model = target.model()
    assert target.loss(model, target.batch(0)).requires_grad
    assert isinstance(target.optimizer(model), torch.optim.AdamW)


@pytest.mark.parametrize(
    "config", [{"vocab_size": 7, "block_size": 9}, SimpleNamespace(vocab_size=7, max_position_embeddings=9)]
)
def test_the_config_comes_before_the_embedding(config: Any) -> None:
    def build() -> nn.Module:
        model = Language()
        model.config = config
        return model

    target = bound(build)
    target.model()
    assert target.batch(0).shape == (4, 10)
    assert target.batch(0).max() < 7


def test_of_two_embeddings_the_one_that_mirrors_the_head_is_that_of_tokens() -> None:
    target = bound(TwoEmbeddings)
    target.model()
    assert target.batch(0).max() == 31


def test_a_model_that_does_not_say_its_vocabulary_needs_a_batch() -> None:
    with pytest.raises(
        TargetError, match=r"neither config\.vocab_size nor vocab_size, and no nn\.Embedding.*def batch"
    ):
        bound(lambda: nn.Linear(2, 2)).model()


def test_the_default_batch_needs_the_model_first() -> None:
    with pytest.raises(RuntimeError, match="call model"):
        bound(Language).batch(0)


class WithBatch:
    def __init__(self, model: nn.Module, batch: Any) -> None:
        self._model, self._batch = model, batch

    def model(self) -> nn.Module:
        return self._model

    def batch(self, step: int) -> Any:
        return self._batch


class OwnLoss(nn.Module):
    def forward(self, x: Tensor, labels: Tensor) -> Any:
        return SimpleNamespace(loss=(x - labels).sum())


def test_a_models_own_loss_is_used_where_the_batch_has_labels() -> None:
    target = bound(WithBatch(OwnLoss(), {"x": torch.full((2,), 3.0), "labels": torch.ones(2)}))
    assert target.loss(target.model(), target.batch(0)).item() == 4.0


class TakesKeywords(nn.Module):
    def forward(self, **batch: Tensor) -> Tensor:
        return batch["input"]


TOKENS = torch.zeros(2, 4, dtype=torch.int64)


@pytest.mark.parametrize(
    ("model", "batch", "message"),
    [
        (Language(), torch.zeros(2, 4), r"a float32 tensor of shape \(2, 4\)"),
        (Language(), (TOKENS, TOKENS), "of type tuple"),
        (Language(), TOKENS[:, :1], r"int64 tensor of shape \(2, 1\)"),
        (nn.Embedding(5, 8), TOKENS[0], r"int64 tensor of shape \(4,\)"),
        (nn.Sequential(nn.Embedding(5, 8), nn.Flatten()), TOKENS, r"shape \(2, 3\) the model returns .* \(2, 24\)"),
        (TakesKeywords(), {"input": TOKENS, "labels": TOKENS}, r"returns no `\.loss` for a batch with labels"),
    ],
)
def test_what_the_default_loss_can_not_use(model: nn.Module, batch: Any, message: str) -> None:
    target = bound(WithBatch(model, batch))
    with pytest.raises(TargetError, match=rf"(?s){message}.*Add `def loss"):
        target.loss(target.model(), target.batch(0))


@pytest.mark.parametrize("layers", [4, "layers.0", [], [1, 2], [""]])
def test_layers_must_be_fqns(layers: Any) -> None:
    with pytest.raises(TargetError, match="Expected a sequence of FQNs"):
        bound(SimpleNamespace(model=Language, layers=layers))


@pytest.mark.parametrize("target", [3, SimpleNamespace(), SimpleNamespace(model=4), Language()])
def test_what_is_no_target(target: Any) -> None:
    with pytest.raises(TargetError, match=r"no method model\(\)"):
        bound(target)


def test_a_method_that_is_none_is_named() -> None:
    with pytest.raises(TargetError, match=r"its batch is a value of type int.*another name"):
        bound(SimpleNamespace(model=Language, batch=4))


@pytest.mark.parametrize("method", ["model", "batch", "optimizer", "parallelize"])
def test_what_a_method_raises_is_kept_as_the_cause(method: str) -> None:
    def fail(*_: Any) -> None:
        raise KeyError("wte")

    target = bound(SimpleNamespace(**{"model": Language, method: fail}))
    arguments: dict[str, tuple[Any, ...]] = {"model": (), "batch": (0,)}
    with pytest.raises(TargetError, match=rf"target 'mine': {method}\(\) raised KeyError: 'wte'") as caught:
        getattr(target, method)(*arguments.get(method, (Language(),)))
    assert isinstance(caught.value.__cause__, KeyError)


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError(), UsageError("as it is")])
def test_running_out_of_memory_is_not_blamed_on_the_target(error: Exception) -> None:
    def fail() -> None:
        raise error

    with pytest.raises(type(error)):
        bound(SimpleNamespace(model=fail)).model()


@pytest.mark.parametrize(
    ("method", "value", "message"),
    [
        ("model", 3, r"model\(\) returned a value of type int"),
        ("loss", torch.zeros(2), r"loss\(\) returned a tensor of shape \(2,\)"),
        ("loss", 1.0, r"loss\(\) returned float"),
        ("optimizer", 3, r"optimizer\(\) returned a value of type int"),
        ("parallelize", None, r"parallelize\(\) returned a value of type NoneType.*return model"),
    ],
)
def test_what_a_method_may_not_return(method: str, value: Any, message: str) -> None:
    target = bound(SimpleNamespace(**{"model": Language, method: lambda *_: value}))
    arguments = {"model": (), "loss": (Language(), TOKENS)}.get(method, (Language(),))
    with pytest.raises(TargetError, match=message):
        getattr(target, method)(*arguments)


def test_an_optimizer_that_is_none_is_adamw() -> None:
    target = bound(SimpleNamespace(model=Language, optimizer=lambda _: None))
    assert isinstance(target.optimizer(Language()), torch.optim.AdamW)


def test_only_trained_parameters_are_optimized() -> None:
    model = Language()
    model.embedding.requires_grad_(False)
    assert len(bound(Language).optimizer(model).param_groups[0]["params"]) == 2
    with pytest.raises(TargetError, match="no parameter of Language requires a gradient"):
        bound(Language).optimizer(model.requires_grad_(False))


def test_a_model_for_the_device_of_its_steps() -> None:
    class Mine(Target):
        def model(self) -> nn.Module:
            return Language()

        def model_on(self, device: torch.device) -> nn.Module:
            return Language(width=4 if device.type == "cuda" else 2)

    target = bound(Mine())
    assert target.model(torch.device("cuda")).get_submodule("head").in_features == 4
    assert target.model().get_submodule("head").in_features == 2
    assert bound(Language).model(torch.device("cuda")).get_submodule("head").in_features == 8


def test_parallelize_may_come_with_the_process_group() -> None:
    mine = SimpleNamespace(model=Language, parallelize=None)
    target = bound(mine)
    assert not target.has_parallelize
    assert isinstance(target.parallelize(target.model()), Language)
    mine.parallelize = lambda model: nn.Sequential(model)
    assert target.has_parallelize
    assert isinstance(target.parallelize(target.model()), nn.Sequential)
