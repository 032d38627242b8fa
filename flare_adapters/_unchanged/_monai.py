"""MONAI: a Bundle's trainer gets the handler when its config is read."""

from collections.abc import Callable
from functools import wraps
from types import ModuleType
from typing import Any, final

from flare_adapters._unchanged._part import asked, take, warn

_HANDLER = {"_target_": f"{__name__}.FirstTrainer"}
_ID = "flare_handler"
_TRAINER, _HANDLERS = "train#trainer", "train#trainer#train_handlers"


@final
class FirstTrainer:
    """Stands among a trainer's handlers, and attaches an `FLHandler` to the first."""

    def attach(self, engine: Any) -> None:
        """Let the engine take part, if it is the first one that is made."""
        if take("This trainer"):
            from flare_adapters.monai import FLHandler  # noqa: PLC0415 - heavy

            FLHandler().attach(engine)


def federate_bundles(workflows: ModuleType) -> None:
    """Let the trainer of a Bundle take part, whoever runs it.

    Args:
        workflows: ``monai.bundle.workflows``, just imported.
    """
    workflow = workflows.ConfigWorkflow
    workflow.initialize = _federated(workflow.initialize)


def _federated(initialize: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(initialize)
    def federated(self: Any, *args: Any, **kwargs: Any) -> Any:
        if asked():
            add_handler(self.parser)
        return initialize(self, *args, **kwargs)

    return federated


def add_handler(parser: Any) -> None:
    """Put the handler before those of the trainer, unless the config has one.

    MONAI's own `patch_bundle_tracking` adds to ``train#handlers``, the end of which
    Bundles for several GPUs cut off on all ranks but one; and it writes a file.
    """
    parser.resolve_macro_and_relative_ids()
    trainer = parser.get(_TRAINER)
    if trainer is None or _has_handler(parser.get()):
        return
    if not isinstance(trainer, dict):
        warn(
            "%s of the Bundle is %r: expected a component with a _target_, to which a "
            "handler can be added; add flare_adapters.monai.FLHandler where it is made",
            _TRAINER,
            trainer,
        )
        return
    given = trainer.get("train_handlers") or []
    if isinstance(given, list):
        parser[_HANDLERS] = [dict(_HANDLER), *given]
    else:  # "@train#handlers", or an expression
        parser[_ID] = dict(_HANDLER)
        parser[_HANDLERS] = f"$[@{_ID}, *({given.removeprefix('$')})]"


def _has_handler(config: Any) -> bool:
    """Return whether the config names an `FLHandler`, or the one from here."""
    if isinstance(config, dict):
        return any(_has_handler(value) for value in config.values())
    if isinstance(config, list):
        return any(_has_handler(value) for value in config)
    names = ("FLHandler", _HANDLER["_target_"])
    return isinstance(config, str) and any(name in config for name in names)
