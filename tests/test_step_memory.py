"""The estimate of a step's memory: by hand, and against what the CPU's allocator hands out in a real step."""

import pytest
import torch
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils._python_dispatch import TorchDispatchMode

from evaluation import step_memory

OPERATION = "one operation"


def test_a_linear_layer_by_hand():
    def prepare():
        weight = torch.ones(1000, 1000, requires_grad=True)
        x = torch.ones(500, 1000)
        optimiser = torch.optim.SGD([weight], lr=0.1, momentum=0.9)

        def step():
            optimiser.zero_grad()
            (x @ weight).sum().backward()
            optimiser.step()

        return step

    memory = step_memory.step_memory(prepare)
    weight, x = 4_000_000, 2_000_000
    assert memory.before == weight + x
    assert memory.between == 3 * weight + x  # gradient and momentum
    assert memory.peak == pytest.approx(3 * weight + x, rel=0.01)  # the second gradient comes when the product is gone


class Marked(TorchDispatchMode):
    """Lets the profile say when each operation ends.

    What an operation takes for itself meanwhile depends on the kernels that the processor has.
    """

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        with record_function(OPERATION):
            return function(*args, **(kwargs or {}))


@pytest.fixture
def one_thread():
    """Allocations of other threads come into the profile in another order, or not at all."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dynamic", [False, True])
def test_what_the_allocator_hands_out(dynamic, precision, one_thread):
    def prepare():
        return step_memory.prepare_ssdd(2, dynamic, precision, crop=96, width=1 / 8, dilation=2)

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled, Marked():
        step = prepare()
        step()
        step()
    events = profiled.profiler.kineto_results.events()
    changes = [(event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]"]
    ends = [(event.end_ns(), 0) for event in events if event.name() == OPERATION]
    now = peak = 0
    for _, change in sorted(changes + ends):
        now += change
        peak = max(peak, now) if change == 0 else peak
    assert len(ends) > 100
    assert step_memory.step_memory(prepare).peak == pytest.approx(peak, rel=0.01)


def test_the_printed_table(monkeypatch, capsys):
    asked = []

    def recorded(*chosen):
        asked.append(chosen)
        return step_memory.StepMemory(2**29, 2**30, len(asked) * 2**30)

    monkeypatch.setattr(step_memory, "prepare_ssdd", recorded)
    monkeypatch.setattr(step_memory, "step_memory", lambda prepare: prepare())
    step_memory.main(["--batches", "1", "3"])
    rows = capsys.readouterr().out.splitlines()[2:]
    assert len(asked) == 8 and rows[8] == "" and len(rows) == 8 + 3 + 4
    # Static in float32 with 1 and 3 images takes 1 and 2 GiB, half a GiB an image: of 12 GB 10.5 are left.
    assert rows[11] == "| static | float32 | 18 | 40 | 145 |"
    assert rows[0] == "| static | float32 | 1 | 0.50 | 1.00 |" and asked[0] == (1, False, torch.float32)
    assert rows[7] == "| dynamic | bfloat16 | 3 | 0.50 | 8.00 |" and asked[7] == (3, True, torch.bfloat16)
