"""Searches on small data, for tests of what re-ranks their results."""

from typing import Any

import torch
from torch import Tensor

from oml.retrieval import RetrievalResults

ROLES = ("shared", "separate", "mixed")


def roles_of(n: int, kind: str, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Which items are queries and which galleries; there is one of each at least."""
    everyone = torch.ones(n, dtype=torch.bool)
    if kind == "shared":
        return everyone, everyone
    is_query = torch.rand(n, generator=generator) < 0.5
    is_gallery = ~is_query if kind == "separate" else torch.rand(n, generator=generator) < 0.7
    is_query[0] = is_gallery[-1] = True
    if kind == "separate":
        is_gallery[0] = is_query[-1] = False
    return is_query, is_gallery


def searched(
    n: int, roles: str, top_k: int, n_sequences: int = 0, seed: int = 0, dim: int = 3
) -> tuple[RetrievalResults, Tensor]:
    """Results and embeddings on a grid without zero vectors: ties and copies are common."""
    generator = torch.Generator().manual_seed(seed)
    embeddings = torch.randint(-2, 3, (n, dim), generator=generator).float()
    embeddings[:, 0] += 3
    is_query, is_gallery = roles_of(n, roles, generator)
    sequences = torch.randint(n_sequences, (n,), generator=generator) - 1 if n_sequences else None
    given: dict[str, Any] = {"top_k": top_k, "sequences": sequences, "on_missing": "keep"}
    labels = torch.randint(3, (n,), generator=generator)
    return RetrievalResults.from_embeddings(embeddings, labels, is_query, is_gallery, **given), embeddings


def is_to_find(results: RetrievalResults) -> Tensor:
    """(query, gallery): neither the query itself nor of its sequence."""
    allowed = results.query_ids[:, None] != results.gallery_ids
    if results.query_sequences is not None and results.gallery_sequences is not None:
        same = results.query_sequences[:, None] == results.gallery_sequences
        allowed &= ~(same & (results.query_sequences >= 0)[:, None])
    return allowed
