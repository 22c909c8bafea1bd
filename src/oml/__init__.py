"""OML: train, validate, re-rank, search and ship models that produce embeddings."""

__version__ = "1.0.0.dev0"
