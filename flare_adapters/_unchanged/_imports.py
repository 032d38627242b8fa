"""Acts on a module right after somebody has imported it, and on no other.

Every Python process of a site loads this when it starts: so nothing is derived from
the classes of `importlib.abc`, which would cost as much as all the rest.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, TypeAlias, final

from flare_adapters._unchanged._huggingface import federate_trainer
from flare_adapters._unchanged._monai import federate_bundles
from flare_adapters._unchanged._part import asked

Act: TypeAlias = Callable[[ModuleType], None]


def install() -> None:
    """Watch the imports of this process, if its script is to be federated."""
    if asked():
        acts: dict[str, Act] = {
            "monai.bundle.workflows": federate_bundles,
            "transformers.trainer": federate_trainer,
        }
        sys.meta_path.insert(0, Watch(acts))


@final
class Watch:
    """Finds nothing by itself: has others find a module, and acts once it is loaded.

    Args:
        acts: What to do, by the full name of a module.
    """

    def __init__(self, acts: Mapping[str, Act]) -> None:
        self._acts = acts

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,
        target: ModuleType | None = None,
    ) -> ModuleSpec | None:
        """Return what another finder finds, with the act to follow."""
        act = self._acts.get(fullname)
        if act is None:
            return None
        others = [one for one in sys.meta_path if one is not self]
        found = (one.find_spec(fullname, path, target) for one in others)
        spec = next((one for one in found if one is not None), None)
        if spec is not None and spec.loader is not None:
            spec.loader = _Then(spec.loader, act)  # type: ignore[assignment] # see above
        return spec


@final
class _Then:
    """Loads as another loader does, leaves the module to that one, and acts."""

    def __init__(self, loader: Any, act: Act) -> None:
        self._loader = loader
        self._act = act

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        made: ModuleType | None = self._loader.create_module(spec)
        return made

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        self._act(module)
