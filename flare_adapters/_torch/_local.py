"""What the plan's ``[local]`` means at a site."""

from flare_adapters._torch._correction import GradientCorrection, NoCorrection
from flare_adapters._torch._feddyn import Dynamic
from flare_adapters._torch._proximal import Proximal
from flare_adapters._torch._scaffold import Scaffold
from flare_core import FedDyn, FedProx, Local, UnsupportedError
from flare_core import Scaffold as ScaffoldSettings


def correction(local: Local) -> GradientCorrection:
    """Return what the plan adds to the sites' gradients, if anything."""
    match local:
        case FedProx(mu=mu) if mu > 0:
            return Proximal(mu)
        case FedDyn(alpha=alpha):
            return Dynamic(alpha)
        case ScaffoldSettings():
            return Scaffold()
        case _:
            return NoCorrection()


def refuse_deepspeed(local: Local) -> None:
    """Raise: under DeepSpeed neither weights nor gradients are what they seem.

    It trains master weights of its own and steps inside ``backward``.

    Raises:
        UnsupportedError: Always.
    """
    instead = "expected another engine (DDP, FSDP2)"
    if correction(local).corrects:
        msg = (
            f"the plan's {local} corrects gradients before each optimizer step, but "
            f"DeepSpeed steps inside backward(): {instead}"
        )
        raise UnsupportedError(msg)
    msg = (
        "DeepSpeed keeps master weights of its own, which overwrite the global model "
        f"at the next step: {instead}"
    )
    raise UnsupportedError(msg)
