"""A model on a GPU: what a round costs there, and what it must not touch."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from adapters.gpu import GPU, NEEDS_CUDA, on_host, places, tensors
from adapters.sites import assert_equal
from flare_adapters._torch import (
    LocalSession,
    options,
    random_state,
    set_random_state,
)
from flare_adapters._torch._host import Host
from flare_adapters._torch._ranks import Ranks
from flare_adapters._torch._select import choose, members
from flare_adapters._torch._state import gather, scatter
from flare_core import FedProx, Plan, Schedule
from support import RunServer, SiteFile

pytestmark = [NEEDS_CUDA, pytest.mark.usefixtures("deterministic")]
MIB = 2**20
SMALL = MIB // 4
"""What a round may take for the sum of its losses, and the like."""


class Large(nn.Module):
    """Almost all of it is one matrix of 16 MiB."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.wide = nn.Linear(2048, 2048, bias=False)
        self.head = nn.Sequential(nn.BatchNorm1d(2048), nn.Linear(2048, 1))

    def forward(self, features: Tensor) -> Tensor:
        found: Tensor = self.head(self.wide(features))
        return found


class Played:
    """A site whose model is on the GPU, in the hands of a test.

    Args:
        file: Its site file.
        model: Its model.
        optimizer: What trains it.
    """

    def __init__(
        self, file: Path, model: nn.Module, optimizer: torch.optim.Optimizer
    ) -> None:
        self.model, self.optimizer = model, optimizer
        self.session = LocalSession(options(file, None, 1, "auto", "keep"))
        self.session.join(model, playable=100, horizon="", optimizers=[optimizer])
        self._step = 0

    def step(self) -> None:
        """Train a batch."""
        self.optimizer.zero_grad()
        features = torch.randn(8, 2048, device=GPU)
        loss = self.model(features).square().mean()
        loss.backward()
        self.session.adjust_gradients(self.optimizer)
        self.optimizer.step()
        self.session.saw(8, loss)
        self._step += 1
        self.session.at_step(self._step)

    def exchange(self) -> None:
        """Hand in, and load the next global model."""
        self.session.exchange([self.optimizer])


@pytest.fixture(params=[0.0, 0.5], ids=["fedavg", "fedprox"])
def played(
    request: pytest.FixtureRequest, run_server: RunServer, site_file: SiteFile
) -> Iterator[Played]:
    plan = Plan(
        rounds=5,
        schedule=Schedule(every_n_steps=1),
        local=FedProx(mu=request.param),
    )
    file = site_file("a", run_server(plan).endpoint)
    model = Large().to(GPU)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    found = Played(file, model, optimizer)
    yield found
    found.session.leave("the test is over")


def pinned() -> tuple[int, int]:
    """Return how often pinned memory was allocated, and how much there is."""
    found = torch.cuda.host_memory_stats()
    return found["num_host_alloc"], found["allocated_bytes.current"]


def test_a_round_takes_no_memory_of_the_size_of_a_model(played: Played) -> None:
    played.step()
    played.exchange()
    played.step()
    before, on_device = pinned(), torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()

    played.exchange()

    assert torch.cuda.max_memory_allocated() - on_device < SMALL
    assert torch.cuda.memory_allocated() - on_device < SMALL
    assert pinned() == before
    model = sum(one.nbytes for one in tensors(played.model))
    assert model > 16 * MIB
    assert before[1] >= model


def test_weights_and_moments_stay_where_they_are(played: Played) -> None:
    played.step()
    weights, state = places(played.model), played.optimizer.state_dict()["state"]
    moments = {
        (number, name): one.data_ptr()
        for number, of_one in state.items()
        for name, one in of_one.items()
    }
    values = on_host(state)

    played.exchange()

    assert places(played.model) == weights
    after = played.optimizer.state_dict()["state"]
    assert moments == {
        (number, name): one.data_ptr()
        for number, of_one in after.items()
        for name, one in of_one.items()
    }
    assert_equal(on_host(after), values)


class Odd(nn.Module):
    """Tensors of many types, sizes and layouts."""

    def __init__(self, *, filled: bool) -> None:
        super().__init__()
        torch.manual_seed(1)
        value = torch.randn(6, 4, 3, 3, device=GPU) if filled else None
        self.channels_last = nn.Parameter(
            self._like(value, (6, 4, 3, 3)).to(memory_format=torch.channels_last)
        )
        transposed = torch.randn(5, 3, device=GPU) if filled else None
        self.transposed = nn.Parameter(self._like(transposed, (5, 3)).t())
        for dtype in (
            torch.bfloat16,
            torch.float16,
            torch.float64,
            torch.float8_e4m3fn,
            torch.complex64,
            torch.int64,
            torch.bool,
        ):
            value = torch.randn(7, device=GPU) * 8 if filled else torch.zeros(7)
            self.register_buffer(str(dtype).replace(".", "_"), value.to(GPU, dtype))
        self.register_buffer("scalar", torch.tensor(3 if filled else 0, device=GPU))
        self.register_buffer("nothing", torch.zeros(0, 3, device=GPU))
        self.register_buffer("on_the_host", torch.ones(2) if filled else torch.zeros(2))

    def _like(self, value: Tensor | None, shape: tuple[int, ...]) -> Tensor:
        return torch.zeros(shape, device=GPU) if value is None else value


def test_every_type_and_layout_arrives_bit_for_bit() -> None:
    there, here = Odd(filled=True), Odd(filled=False)
    chosen = choose(members(there), "all")

    weights = gather(members(there), chosen, Ranks(), Host())
    scatter(weights, members(here), chosen, Ranks())

    assert_equal(dict(here.state_dict()), dict(there.state_dict()))
    assert here.transposed.stride() == there.transposed.stride()
    assert here.channels_last.is_contiguous(memory_format=torch.channels_last)


def test_what_the_gpu_is_still_computing_is_waited_for() -> None:
    model = nn.Linear(4, 4, device=GPU)
    found = members(model)
    chosen = choose(found, "all")
    host = Host()
    gather(found, chosen, Ranks(), host)
    torch.cuda.synchronize()

    with torch.no_grad():
        torch.cuda._sleep(500_000_000)
        model.weight.fill_(7.0)
    weights = gather(found, chosen, Ranks(), host)

    assert (weights["weight"] == 7.0).all()


def test_a_model_in_half_precision_is_averaged_as_it_is(
    run_server: RunServer, site_file: SiteFile
) -> None:
    server = run_server(Plan(rounds=1))
    file = site_file("a", server.endpoint)
    model = nn.Linear(64, 64, device=GPU, dtype=torch.bfloat16)
    before = on_host(model.state_dict())

    session = LocalSession(options(file, None, None, "auto", "keep"))
    session.join(model, playable=1, horizon="")
    session.saw(1)
    session.exchange()
    session.leave("")

    assert server.result().rounds == 1
    assert_equal(on_host(model.state_dict()), before)


def test_random_numbers_of_the_gpu_go_on_where_they_were() -> None:
    torch.cuda.manual_seed(3)
    torch.rand(5, device=GPU)
    state = random_state()
    expected = torch.rand(5, device=GPU)
    torch.rand(50, device=GPU)

    set_random_state(state)

    assert torch.equal(torch.rand(5, device=GPU), expected)


def test_a_machine_may_have_fewer_gpus_after_a_restart() -> None:
    torch.cuda.init()  # else there is no state yet, whatever was seeded
    torch.cuda.manual_seed(4)
    state = json.loads(random_state())
    expected = torch.rand(5, device=GPU)
    state["cuda"] *= 9

    set_random_state(json.dumps(state).encode())

    assert torch.equal(torch.rand(5, device=GPU), expected)


USES_NO_GPU = """
import torch
from flare_adapters._torch import random_state, set_random_state
set_random_state(random_state())
assert torch.cuda.is_available()
assert not torch.cuda.is_initialized()
"""


def test_a_training_on_the_cpu_leaves_the_gpu_alone() -> None:
    subprocess.run([sys.executable, "-c", USES_NO_GPU], check=True)


@pytest.mark.filterwarnings("ignore")  # a compiler has much to say
@pytest.mark.timeout(300)  # and takes its time
def test_a_cuda_graph_computes_with_the_global_model() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 1)).to(GPU)
    compiled: Any = torch.compile(model, mode="reduce-overhead")
    batch = torch.randn(8, 16, device=GPU)
    for _ in range(3):  # the graph is recorded by then
        with torch.no_grad():
            compiled(batch)
    found = members(compiled)
    chosen = choose(found, "all")
    other = nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 1)).to(GPU)

    weights = gather(members(other), choose(members(other), "all"), Ranks(), Host())
    scatter(weights, found, chosen, Ranks())

    assert set(chosen) == set(model.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(compiled(batch), other(batch))
