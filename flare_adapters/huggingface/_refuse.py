"""What cannot take part, and why: silence would mean a wrong result."""

from peft import PeftType
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.optim import Optimizer
from transformers import TrainingArguments
from transformers.training_args import OptimizerNames

from flare_adapters._torch import LocalSession, refuse_deepspeed
from flare_adapters.huggingface._peft import adapters_of
from flare_core import UnsupportedError


def refuse_arguments(args: TrainingArguments, session: LocalSession) -> None:
    """Raise if the training is set to something that hides weights or gradients.

    Raises:
        UnsupportedError: If it is.
    """
    if args.deepspeed_plugin is not None:
        refuse_deepspeed(session.plan.local)
    parallelism = args.parallelism_config
    if parallelism is not None and parallelism.non_data_parallel_size > 1:
        msg = (
            f"TrainingArguments(parallelism_config={parallelism}) gives several ranks "
            "the same batch, whose examples would count several times: expected data "
            "parallelism only (DDP, FSDP2)"
        )
        raise UnsupportedError(msg)
    if args.world_size > 1 and session.plan.lora.takes_turns:
        msg = (
            f"the plan's lora.aggregate = {session.plan.lora.aggregate!r} freezes "
            f"LoRA weights from round to round, and this site has {args.world_size} "
            'ranks, which DDP and FSDP cannot do: expected "product", "fedavg" or '
            '"share_a", or one rank'
        )
        raise UnsupportedError(msg)
    if args.load_best_model_at_end and session.plan.lora.residual != "drop":
        msg = (
            f"TrainingArguments(load_best_model_at_end=True) loads LoRA weights of an "
            "older round without what the plan's lora.residual = "
            f"{session.plan.lora.residual!r} keeps beside them: expected False, and "
            "stop.metric in the plan, which keeps the best global model"
        )
        raise UnsupportedError(msg)
    optim = OptimizerNames(args.optim).value
    if session.corrects_gradients and ("lomo" in optim or "layerwise" in optim):
        msg = (
            f"the plan's {session.plan.local} corrects gradients before each optimizer "
            f"step, but TrainingArguments(optim={optim!r}) steps inside backward(): "
            'expected another optimizer or local.name = "none"'
        )
        raise UnsupportedError(msg)


def refuse_model(model: nn.Module) -> None:
    """Raise if the model's weights cannot be averaged.

    Raises:
        UnsupportedError: If they cannot.
    """
    if isinstance(model, FullyShardedDataParallel):
        msg = (
            "the model is sharded by FSDP version 1, which flattens its parameters: "
            'expected version 2, fsdp_config={"version": 2}, or DDP'
        )
        raise UnsupportedError(msg)
    for name, config in adapters_of(model).items():
        if config.peft_type == PeftType.ADALORA:
            msg = (
                f"PEFT adapter {name!r} is AdaLoRA, which gives each site ranks of "
                "its own, so that averages mean nothing: expected fixed ranks, e.g. "
                "LoraConfig"
            )
            raise UnsupportedError(msg)


def refuse_optimizer(optimizer: Optimizer) -> None:
    """Raise if the weights in training are not those of the model.

    Raises:
        UnsupportedError: If they are not.
    """
    if callable(getattr(optimizer, "eval", None)):
        msg = (
            f"optimizer {type(optimizer).__name__} is schedule-free: while it trains, "
            "the model holds other weights than it learns: expected another optimizer"
        )
        raise UnsupportedError(msg)


def refuse_unrecovered(session: LocalSession, *, recovers: bool) -> None:
    """Raise if a round was saved, and this training did not start from it.

    Raises:
        UnsupportedError: If so: its update would not be what was trained.
    """
    if not recovers:
        msg = (
            f"round {session.trained and session.trained.round_number} was trained by "
            "an earlier process of this site, and this one did not go on from it: "
            "expected Trainer.train, as it is in transformers 5; to begin the run "
            f"anew, remove the folder {session.trained_path.parent}"
        )
        raise UnsupportedError(msg)
