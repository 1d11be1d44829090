"""Records the ops of a few layers while a step runs: what each reads and makes, what autograd keeps, how long it takes.

Ops are seen by a dispatch mode, as SAC sees them; what autograd keeps by the hooks on saved tensors.
"""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.checkpoint import SAC_IGNORED_OPS

from actune.ac.fsdp import is_sharded
from actune.ac.module_path import ModulePath
from actune.ac.ops import MATMULS, Op, draws_random_numbers, op_name, written_arguments
from actune.ac.regions import resolve_rules
from actune.ac.routing import find_routing
from actune.ac.sac import Keeps
from actune.errors import PlanError
from actune.measure.flops import op_flops
from actune.measure.marks import Mark
from actune.measure.recording import StepTimer
from actune.op_trace import OpRecord, OutputStorage, Phase
from actune.plan import WHOLE_LAYER, Treatment

_CHOOSING = frozenset(
    {"topk", "sort", "argsort", "argmax", "argmin", "max", "min", "kthvalue", "mode", "median", "multinomial"}
)

# A fake tensor, and a subclass, are asked for their device and shape through the dispatcher. That is no work.
_QUESTIONS = SAC_IGNORED_OPS - {torch.ops.aten.detach.default}


@dataclass(slots=True)
class _Seen:
    """An op as it was seen; `stretch` is the timer's that it ran in."""

    phase: Phase
    op_name: str
    module_fqn: str
    occurrence: int
    reads: tuple[int, ...]
    writes: tuple[int, ...]
    outputs: tuple[OutputStorage, ...]
    kept_by_sac: bool
    flops: int | None
    random: bool
    chooses: bool
    stretch: int


@dataclass
class LayerRecording:
    """The first call of a layer in a step.

    Attributes:
        fqn: the layer's.
        call: its number among the calls of all layers; None before it was called.
        recomputed_ops: see `actune.op_trace.LayerTrace`.
        input_bytes: likewise.
        output_storages: likewise.
    """

    fqn: str
    module: nn.Module
    call: int | None = None
    recomputed_ops: int = 0
    input_bytes: int = 0
    output_storages: tuple[int, ...] = ()
    _ops: list[_Seen] = field(default_factory=list)
    _occurrences: Counter[tuple[str, str]] = field(default_factory=Counter)
    _packed: set[int] = field(default_factory=set)
    _modules_of_nodes: list[tuple[int, str]] = field(default_factory=list)
    _backward_module: str = WHOLE_LAYER

    def __post_init__(self) -> None:
        self.path = ModulePath(self.module)
        rules = resolve_rules(Treatment("selective"), self.module, self.fqn, find_routing(self.module))
        self._keeps: Keeps | None = Keeps(rules, self.path)
        self._router_modules = rules.router_modules
        self._is_inside = False
        self._is_sharded = is_sharded(self.module)
        self._numbers: dict[int, int] = {}
        # A weak reference keeps a storage's address from being used again, so that an address is one storage.
        self._references: list[StorageWeakRef] = []

    def number_of(self, tensor: Tensor) -> int:
        """The number of the tensor's storage."""
        reference = StorageWeakRef(tensor.untyped_storage())
        if reference.cdata not in self._numbers:
            self._numbers[reference.cdata] = len(self._numbers)
            self._references.append(reference)
        return self._numbers[reference.cdata]

    def is_layers_own(self, mark: Mark) -> bool:
        """Whether what runs is the layer's: FSDP2's hooks on it gather and shard, which no checkpoint does again."""
        return self._is_inside or not self._is_sharded or mark.kind != "forward"

    def note_input(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        """A forward pre-hook of the layer."""
        self._is_inside = True
        if not self._ops:
            storages = {self.number_of(tensor): tensor for tensor in _tensors((args, kwargs))}
            self.input_bytes = sum(tensor.untyped_storage().nbytes() for tensor in storages.values())

    def note_output(self, module: nn.Module, args: Any, output: Any) -> None:
        """A forward hook of the layer."""
        self._is_inside = False
        if not self.output_storages:
            self.output_storages = self._storages(output)

    def note_packed(self, tensor: Tensor) -> None:
        """Autograd keeps a tensor: all ops up to here are needed to make what it keeps."""
        self._packed.add(self.number_of(tensor))
        self.recomputed_ops = len(self._ops)

    def note_op(
        self, phase: Phase, op: Op, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any, *, stretch: int
    ) -> None:
        """An op that has run."""
        reads = self._storages((args, kwargs))
        made_from = len(self._numbers)
        outputs = {self.number_of(tensor): tensor.untyped_storage().nbytes() for tensor in _tensors(output)}
        name = op_name(op)
        written = [args[position] if position < len(args) else kwargs.get(n) for position, n in written_arguments(op)]
        if phase == "forward":
            module_fqn = self.path.innermost()
            occurrence = self._count(op, module_fqn, name)
            kept_by_sac = self._is_kept_by_sac(op, output, args, kwargs)
            # The op's own node was made just before the op was dispatched.
            self._modules_of_nodes.append((torch._C._autograd._get_sequence_nr() - 1, module_fqn))
        else:
            module_fqn, occurrence, kept_by_sac = self._module_in_backward(), 0, False
        self._ops.append(
            _Seen(
                phase,
                name,
                module_fqn,
                occurrence,
                reads,
                self._storages(written),
                tuple(OutputStorage(number, size, number >= made_from) for number, size in outputs.items()),
                kept_by_sac,
                op_flops(op, args, kwargs, output),
                draws_random_numbers(op, args, kwargs),
                _chooses(name, args, kwargs, output) or (phase == "forward" and self._makes_scores(op, module_fqn)),
                stretch,
            )
        )

    def _is_kept_by_sac(self, op: Op, output: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        try:
            return self._keeps is not None and self._keeps(op, output, args, kwargs)
        except PlanError:
            self._keeps = None  # SAC with its defaults refuses this layer
            return False

    def _makes_scores(self, op: Op, module_fqn: str) -> bool:
        return op in MATMULS and module_fqn in self._router_modules

    def _count(self, op: Op, module_fqn: str, name: str) -> int:
        if op in SAC_IGNORED_OPS or written_arguments(op):
            return 0
        self._occurrences[module_fqn, name] += 1
        return self._occurrences[module_fqn, name]

    def _module_in_backward(self) -> str:
        node = torch._C._current_autograd_node()
        place = 0 if node is None else bisect.bisect_right(self._modules_of_nodes, node._sequence_nr(), key=_number)
        # Accumulating a gradient has no place of its own: its number is beyond all others.
        if place > 0 and node._sequence_nr() <= self._modules_of_nodes[-1][0]:
            self._backward_module = self._modules_of_nodes[place - 1][1]
        return self._backward_module

    def _storages(self, values: Any) -> tuple[int, ...]:
        return tuple(dict.fromkeys(self.number_of(tensor) for tensor in _tensors(values)))

    def records(self, stretches_s: list[float]) -> tuple[OpRecord, ...]:
        """What was seen, with the time of the stretches."""
        return tuple(
            OpRecord(
                seen.phase,
                seen.op_name,
                seen.module_fqn,
                seen.occurrence,
                seen.reads,
                seen.writes,
                seen.outputs,
                sum(o.storage_bytes for o in seen.outputs if o.is_new and o.storage in self._packed),
                seen.kept_by_sac,
                stretches_s[seen.stretch],
                seen.flops,
                seen.random,
                seen.chooses,
                varies=False,
                optional=False,
            )
            for seen in self._ops
        )


class OpRecorder(TorchDispatchMode):
    """Records ops of layers within a `with` block that holds a forward and its backward.

    Attributes:
        recordings: by FQN of the layer.
    """

    supports_higher_order_operators = True

    def __init__(self, layers: Mapping[str, nn.Module], running: Callable[[], Mark], timer: StepTimer) -> None:
        """Args:
        layers: those to record, by FQN; plain modules without a region.
        running: the mark of the stretch that runs, see `actune.measure.marks`.
        timer: times each op apart; a stretch of its own lies between any two.
        """
        super().__init__()  # type: ignore[no-untyped-call]
        self.recordings = {fqn: LayerRecording(fqn, module) for fqn, module in layers.items()}
        self._running = running
        self._timer = timer
        self._timer_marks = 0
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        for recording in self.recordings.values():
            recording.path.attach()
            self._stack.callback(recording.path.detach)
            module = recording.module
            before = module.register_forward_pre_hook(recording.note_input, with_kwargs=True)
            self._stack.callback(before.remove)
            self._stack.callback(module.register_forward_hook(recording.note_output).remove)
        self._stack.enter_context(saved_tensors_hooks(self._pack, _unpack))
        self._stack.enter_context(self._timer)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *exc: Any) -> None:
        super().__exit__(*exc)  # type: ignore[no-untyped-call]
        self._stack.close()

    def __torch_dispatch__(self, op: Op, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        """Runs the op, and notes it if a recorded layer runs."""
        kwargs = kwargs or {}
        mark = self._running()
        recording = self._recording_at(mark)
        if recording is None or op in _QUESTIONS:
            return op(*args, **kwargs)
        self._timer.mark()
        output = op(*args, **kwargs)
        self._timer.mark()
        phase: Phase = "forward" if mark.kind == "forward" else "backward"
        recording.note_op(phase, op, args, kwargs, output, stretch=self._timer_marks + 1)
        self._timer_marks += 2
        return output

    def _recording_at(self, mark: Mark) -> LayerRecording | None:
        recording = self.recordings.get(mark.layer_fqn)
        if recording is not None and recording.call is None:
            recording.call = mark.call
        if recording is None or recording.call != mark.call or not recording.is_layers_own(mark):
            return None
        return recording

    def _pack(self, tensor: Tensor) -> Tensor:
        mark = self._running()
        recording = self._recording_at(mark)
        if recording is not None and mark.kind == "forward":
            recording.note_packed(tensor)
        return tensor


def _unpack(tensor: Tensor) -> Tensor:
    return tensor


def _number(entry: tuple[int, str]) -> int:
    return entry[0]


def _chooses(name: str, args: Any, kwargs: Any, output: Any) -> bool:
    return (
        name in _CHOOSING
        and any(tensor.is_floating_point() for tensor in _tensors((args, kwargs)))
        and any(not tensor.is_floating_point() for tensor in _tensors(output))
    )


def _tensors(values: Any) -> Iterator[Tensor]:
    return (value for value in tree_iter(values) if isinstance(value, Tensor))
