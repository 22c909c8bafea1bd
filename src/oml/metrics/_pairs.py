"""Pairs of a query and a gallery, of one item or not, for what is told of all of them."""

from typing import NamedTuple

import torch
from jaxtyping import Bool
from torch import Tensor

from oml.functional.distances import elementwise_dist


class Pairs(NamedTuple):
    """What functions of all pairs take."""

    queries: Tensor
    galleries: Tensor
    query_labels: Tensor
    gallery_labels: Tensor
    query_items: Tensor
    gallery_items: Tensor

    @property
    def same_item(self) -> Bool[Tensor, "query gallery"]:
        """Which are no pairs. Dense."""
        return self.query_items[:, None] == self.gallery_items

    def drawn_distances(self, n_pairs: int, seed: int) -> list[Tensor]:
        """Those of pairs of one label and of others, of up to ``n_pairs`` of the former and of all, at random."""
        labels, order = self.gallery_labels.sort()
        first = torch.searchsorted(labels, self.query_labels)
        n_equal = torch.searchsorted(labels, self.query_labels, right=True) - first
        generator = torch.Generator().manual_seed(seed)
        distances = []
        for equal, counts in ((True, n_equal), (False, torch.full_like(n_equal, len(labels)))):
            ends = counts.cumsum(0)
            n_all = int(ends[-1])
            drawn = torch.arange(n_all) if n_all <= n_pairs else torch.randint(n_all, (n_pairs,), generator=generator)
            query = torch.searchsorted(ends, drawn, right=True)
            gallery = drawn - ends[query] + counts[query]
            gallery = order[first[query] + gallery] if equal else gallery
            right = self.query_labels[query] == self.gallery_labels[gallery]
            kept = (right == equal) & (self.query_items[query] != self.gallery_items[gallery])
            distances.append(elementwise_dist(self.queries[query[kept]], self.galleries[gallery[kept]]))
        return distances
