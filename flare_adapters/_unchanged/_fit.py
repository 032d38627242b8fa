"""The callback that lets the first `Trainer.fit` of a script take part."""

from lightning.pytorch import Callback, LightningModule, Trainer

from flare_adapters._unchanged._part import take


class FirstFit(Callback):
    """Brings an `FLCallback` to a fit; one of the user's own keeps it away."""

    def __init__(self) -> None:
        self._brought: list[Callback] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Add the callback behind this one: its own ``setup`` is called next."""
        if stage != "fit" or not take("This fit"):
            return
        from flare_adapters.lightning import FLCallback  # noqa: PLC0415 - not before

        self._brought = [FLCallback()]
        place = trainer.callbacks.index(self) + 1
        trainer.callbacks[place:place] = self._brought

    def teardown(
        self, trainer: Trainer, pl_module: LightningModule, stage: str
    ) -> None:
        """Leave the Trainer as it was."""
        while self._brought:
            trainer.callbacks.remove(self._brought.pop())
