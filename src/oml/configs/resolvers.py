"""Interpolations that configs can use besides OmegaConf's and Hydra's own."""

from omegaconf import OmegaConf

#: ``${oml.glyphs:image_size,n_labels}`` is the folder of the built-in data set Glyphs, drawn on first use
GLYPHS_RESOLVER = "oml.glyphs"


def register_resolvers() -> None:
    """Let configs use them; may be called again."""
    OmegaConf.register_new_resolver(GLYPHS_RESOLVER, _glyphs, use_cache=True, replace=True)


def _glyphs(image_size: int, n_labels: int | None) -> str:
    from oml.datasets.glyphs import load_glyphs

    return str(load_glyphs(image_size=image_size, n_labels=n_labels).root)
