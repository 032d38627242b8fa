import torch

from adapters.gpu import NEEDS_CUDA
from flare_adapters._torch._host import Host


def test_what_is_on_the_host_is_used_as_it_is() -> None:
    host = Host()
    weight = torch.nn.Parameter(torch.arange(6.0).reshape(2, 3))

    taken = host.take("weight", weight)
    host.wait()

    assert taken.data_ptr() == weight.data_ptr()
    assert not taken.requires_grad


@NEEDS_CUDA
def test_what_is_on_a_gpu_comes_through_the_same_pinned_memory_each_round() -> None:
    host = Host()
    weight = torch.arange(6.0, device="cuda")

    first = host.take("weight", weight)
    host.wait()
    assert first.tolist() == weight.tolist()
    second = host.take("weight", weight + 1)
    host.wait()

    assert second.is_pinned()
    assert second.data_ptr() == first.data_ptr()
    assert second.tolist() == (weight + 1).tolist()
