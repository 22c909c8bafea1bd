"""What a config can name, one table a kind; each takes entries of your own by assignment."""

from collections.abc import Iterator, Mapping
from importlib import import_module

from oml.registry.losses import LOSSES_REGISTRY
from oml.registry.miners import MINERS_REGISTRY
from oml.registry.models import EXTRACTORS_REGISTRY, PAIRWISE_MODELS_REGISTRY
from oml.registry.optimizers import OPTIMIZERS_REGISTRY
from oml.registry.overview import call_of
from oml.registry.registry import Registry
from oml.registry.samplers import SAMPLERS_CATEGORIES_BASED, SAMPLERS_REGISTRY
from oml.registry.schedulers import SCHEDULERS_REGISTRY
from oml.registry.transforms import TRANSFORMS_ALBU, TRANSFORMS_REGISTRY, TRANSFORMS_TORCH


class _Registries(Mapping[str, Registry]):
    """Those whose modules take long to import are imported when they are asked for."""

    def __init__(self, known: Mapping[str, Registry], later: Mapping[str, str]) -> None:
        self._known, self._later = dict(known), dict(later)

    def __getitem__(self, kind: str) -> Registry:
        if kind in self._known:
            return self._known[kind]
        module, _, name = self._later[kind].rpartition(".")
        return getattr(import_module(module), name)

    def __contains__(self, kind: object) -> bool:  # that of Mapping imports
        return kind in self._known or kind in self._later

    def __iter__(self) -> Iterator[str]:
        return iter(sorted({*self._known, *self._later}))

    def __len__(self) -> int:
        return len(self._known) + len(self._later)


#: folder of packaged configs -> the registry that builds them
REGISTRIES: Mapping[str, Registry] = _Registries(
    {
        "criterion": LOSSES_REGISTRY,
        "extractor": EXTRACTORS_REGISTRY,
        "miner": MINERS_REGISTRY,
        "optimizer": OPTIMIZERS_REGISTRY,
        "pairwise_model": PAIRWISE_MODELS_REGISTRY,
        "sampler": SAMPLERS_REGISTRY,
        "scheduler": SCHEDULERS_REGISTRY,
        "transforms": TRANSFORMS_REGISTRY,
    },
    later={
        "logger": "oml.registry.loggers.LOGGERS_REGISTRY",  # with Lightning
        "postprocessor": "oml.registry.postprocessors.POSTPROCESSORS_REGISTRY",  # with inference
    },
)


def show_registry() -> None:
    """Print what a config can name: for each group its keys, and the constructors with their signatures."""
    groups = {
        "Losses": [LOSSES_REGISTRY],
        "Miners": [MINERS_REGISTRY],
        "Models": [EXTRACTORS_REGISTRY, PAIRWISE_MODELS_REGISTRY],
        "Optimizers": [OPTIMIZERS_REGISTRY],
        "Postprocessors": [REGISTRIES["postprocessor"]],
        "Samplers": [SAMPLERS_REGISTRY],
        "Schedulers": [SCHEDULERS_REGISTRY],
        "Augmentations": [TRANSFORMS_REGISTRY],
    }
    for group, registries in groups.items():
        print(f"{group}:")  # noqa: T201 (what it is for)
        for name, constructor in (item for registry in registries for item in registry.items()):
            print(f"  {name}: {call_of(constructor)}")  # noqa: T201


__all__ = [
    "EXTRACTORS_REGISTRY",
    "LOSSES_REGISTRY",
    "MINERS_REGISTRY",
    "OPTIMIZERS_REGISTRY",
    "PAIRWISE_MODELS_REGISTRY",
    "REGISTRIES",
    "SAMPLERS_CATEGORIES_BASED",
    "SAMPLERS_REGISTRY",
    "SCHEDULERS_REGISTRY",
    "TRANSFORMS_ALBU",
    "TRANSFORMS_REGISTRY",
    "TRANSFORMS_TORCH",
    "show_registry",
]
