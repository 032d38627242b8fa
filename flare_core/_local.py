"""What sites add to their training, beside what their scripts do."""

from typing import Annotated, TypeAlias

import msgspec


class _AtTheSites(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
    tag_field="name",
):
    """The table ``[local]`` of a plan, told apart by its name."""


class Plain(_AtTheSites, frozen=True, tag="none"):
    """Sites train as their scripts say."""


class FedProx(_AtTheSites, frozen=True, tag="fedprox"):
    r"""Sites add the gradient of a term that pulls them to the global model.

    It is that of :math:`\frac{\mu}{2}\|w - w_t\|^2` (Li et al., MLSys 2020, equation 2,
    https://arxiv.org/abs/1812.06127).

    Attributes:
        mu: Weight of the term; with 0 nothing is added.  The paper tries 0.001 to 1.
    """

    mu: Annotated[float, msgspec.Meta(ge=0)] = 0.01


class Scaffold(_AtTheSites, frozen=True, tag="scaffold"):
    r"""Sites correct each gradient by what theirs differs from that of all.

    A site adds :math:`c - c_i` to its gradients.  After :math:`K` steps of rate
    :math:`\eta`, its control becomes :math:`c_i - c + (x - y_i) / (K \eta)`, and the
    one of all, :math:`c`, moves by the mean of what the controls of the sites moved, a
    site that is missing by nothing (Karimireddy et al., ICML 2020, Algorithm 1, option
    II, https://arxiv.org/abs/1910.06378).  That is for plain SGD.  All sites count
    alike: what is found is the minimum of the mean of their losses, however many
    examples each has.
    """


class FedDyn(_AtTheSites, frozen=True, tag="feddyn"):
    r"""Sites minimise what has its minimum, in the end, where all of them have it.

    It is :math:`f_i(w) - \langle h_i, w \rangle + \frac{\alpha}{2}\|w - x\|^2`, and
    after a round that led to :math:`y_i` the site's :math:`h_i` becomes
    :math:`h_i - \alpha (y_i - x)`: the gradient of its own loss there, if the round was
    long enough (Acar et al., ICLR 2021, Algorithm 1,
    https://arxiv.org/abs/2111.04263).  It has a half at the server, which takes the
    place of a strategy.  All sites count alike, and all of them in every round.

    Attributes:
        alpha: How strongly sites are pulled to the global model.  The paper tries 0.001
            to 0.1.
    """

    alpha: Annotated[float, msgspec.Meta(gt=0)] = 0.1


Local: TypeAlias = Plain | FedProx | Scaffold | FedDyn
