"""A sound target that goes wrong under a plan: in a recomputation, or wherever the fault belongs."""

import json
import os
import resource
import shutil
import signal
import stat
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import torch
from torch import nn


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(16, 64), nn.Linear(64, 16)

    def forward(self, x):
        return x + self.down(torch.relu(self.up(x)))


class Sound:
    """Counts the second layer's forwards in a step: under a plan that recomputes it, there are two."""

    def model(self):
        model = nn.Sequential(*(Layer() for _ in range(3)))
        model[1].up.register_forward_pre_hook(self.count)
        return model

    def count(self, module, inputs):
        self.forwards += 1
        if self.forwards > 1:
            self.misbehave()

    def misbehave(self):
        pass

    def batch(self, step):
        return torch.randn(64, 16, generator=torch.Generator().manual_seed(step))

    def loss(self, model, batch):
        self.forwards = 0
        return model(batch).square().mean()


class Segfaults(Sound):
    def misbehave(self):
        os.kill(os.getpid(), signal.SIGSEGV)


class Stops(Sound):
    def misbehave(self):
        os.kill(os.getpid(), signal.SIGSTOP)


class RunsOutOfAddressSpace(Sound):
    """A real one: the system refuses the allocator more."""

    def misbehave(self):
        in_use_bytes = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (in_use_bytes + 2**27, resource.RLIM_INFINITY))
        torch.empty(2**28).sum()


class FillsMemory(Sound):
    """Takes more and more, until the system ends it or 3 GiB are reached."""

    def misbehave(self):
        kept = [torch.ones(2**24) for _ in range(48)]
        raise AssertionError(f"{len(kept)} blocks of 64 MiB, and nobody minded")


class HangsInBackward(Sound):
    """Not in a recomputation, but in the backward itself, which may run in a thread of torch's."""

    class Hang(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, target):
            ctx.target = target
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            if ctx.target.forwards > 1:
                ctx.target.wait_in_backward()
            return gradient, None

    def wait_in_backward(self):
        time.sleep(1000)

    def count(self, module, inputs):
        self.forwards += 1
        return (self.Hang.apply(inputs[0], self),)


@torch.library.custom_op("actune_tests::slow_to_compile", mutates_args=())
def slow_to_compile(x: torch.Tensor) -> torch.Tensor:
    return x.clone()


@slow_to_compile.register_fake
def wait_in_compile(x):
    time.sleep(1000)


class HangsInCompile(Sound):
    def model(self):
        class Slow(Layer):
            def forward(self, x):
                return slow_to_compile(x.detach()) + super().forward(x)

        return nn.Sequential(*(Slow() for _ in range(3)))


def pipes():
    """What this process may write to beside its log: the worker's own pipe is one of them."""
    for name in os.listdir("/proc/self/fd"):
        number = int(name)
        try:
            is_pipe = stat.S_ISFIFO(os.fstat(number).st_mode)
            flags = int(Path(f"/proc/self/fdinfo/{name}").read_text().split("flags:")[1].split()[0], 8)
        except OSError:
            continue
        if is_pipe and flags & os.O_ACCMODE == os.O_WRONLY:
            yield number


def write_to_pipes(content):
    for number in list(pipes()):
        os.write(number, content)


class WritesGarbage(Sound):
    def misbehave(self):
        write_to_pipes(b"\x00\xff{]garbage\n")


class WritesHalfAReply(Sound):
    def misbehave(self):
        write_to_pipes(b'{"measurement":{"outcome":"ok","peak_')
        os._exit(0)


class ForgesLaterReplies(Sound):
    """Two of a request that is yet to come."""

    def misbehave(self):
        self.misbehave = lambda: None
        reply = {"kind": "measured", "measurement": {"outcome": "ok", "peak_bytes": 1}}
        write_to_pipes(2 * (json.dumps({"number": 99, "reply": reply}).encode() + b"\n"))


class ForgesAReply(Sound):
    """A whole reply, before the worker's own: what follows is one too many."""

    def misbehave(self):
        self.misbehave = lambda: None
        reply = {"kind": "measured", "measurement": {"outcome": "ok", "peak_bytes": 1}}
        write_to_pipes(json.dumps({"number": 3, "reply": reply}).encode() + b"\n")


class ClosesEverything(Sound):
    def misbehave(self):
        os.closerange(0, 256)


class LeavesDaemons(Sound):
    """A child in a session of its own, which no process group reaches."""

    def misbehave(self):
        self.misbehave = lambda: None
        if os.fork() == 0:
            os.setsid()
            time.sleep(1000)
            os._exit(0)


class LeaksFiles(Sound):
    def __init__(self):
        self.files = []

    def misbehave(self):
        self.files += [os.open("/dev/null", os.O_RDONLY) for _ in range(50)]


class LeaksAllFiles(Sound):
    """Under a low limit, until nothing more can be opened."""

    def misbehave(self):
        self.misbehave = lambda: None
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
        with suppress(OSError):
            while True:
                os.open("/dev/null", os.O_RDONLY)


class LosesItsLogs(Sound):
    def misbehave(self):
        shutil.rmtree(os.environ["ACTUNE_TEST_LOGS"])
        os.kill(os.getpid(), signal.SIGKILL)


class TakesStdin(Sound):
    """Reads what is there, has a child read, and puts something else in its place."""

    def misbehave(self):
        self.misbehave = lambda: None
        if sys.stdin.read() or subprocess.run(["cat"], capture_output=True, check=True).stdout:
            raise AssertionError("there was something to read")
        os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
        os.close(0)


class LeaksMemory(Sound):
    def __init__(self):
        self.tensors = []

    def misbehave(self):
        self.tensors.append(torch.ones(2**20))


class RunsOutOfFiles(Sound):
    def misbehave(self):
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        while True:
            os.open("/dev/null", os.O_RDONLY)


class RaisesMemoryError(Sound):
    def misbehave(self):
        raise MemoryError


class RecursesWithoutEnd(Sound):
    def misbehave(self):
        self.misbehave()


class InterruptsItself(Sound):
    def misbehave(self):
        raise KeyboardInterrupt


class SysExits(Sound):
    def misbehave(self):
        sys.exit(3)
