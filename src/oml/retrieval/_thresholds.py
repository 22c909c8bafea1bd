"""Thresholds of all pairs of a query and a gallery, by embeddings or by what was retrieved."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from oml.functional.calibration import share_interval
from oml.functional.match_rates import match_rates, match_thresholds
from oml.functional.pair_blocks import measured
from oml.functional.verification import n_admitted_at
from oml.retrieval._calibration_records import MatchThreshold
from oml.retrieval.results import RetrievalResults


class PairsOf:
    """All pairs of some queries and some galleries that are not of one item."""

    def __init__(
        self, results: RetrievalResults, embeddings: Tensor | None, queries: Tensor, galleries: Tensor
    ) -> None:
        self.results, self.embeddings = results, embeddings
        self.queries, self.galleries = queries.nonzero().squeeze(1), galleries.nonzero().squeeze(1)
        query_items, gallery_items = results.query_and_gallery_items()
        self.items = query_items[self.queries], gallery_items[self.galleries]
        ordered = self.items[1].sort().values
        n_own = torch.searchsorted(ordered, self.items[0], right=True) - torch.searchsorted(ordered, self.items[0])
        self.n_positives = results.n_relevant[self.queries]
        self.n_negatives = int((len(ordered) - n_own - self.n_positives).sum())

    def thresholds(self, fmr_vals: Sequence[float | int]) -> Float[Tensor, " fmr"]:
        """As :func:`match_thresholds`, among what was retrieved if there are no embeddings."""
        if self.embeddings is not None:
            return match_thresholds(*self._embedded(), fmr_vals, query_items=self.items[0], gallery_items=self.items[1])
        wrong = self.results.distances[self._retrieved() & ~self.results.is_relevant].sort().values
        ranks = [n_admitted_at(self.n_negatives, fmr) for fmr in fmr_vals]
        return wrong.new_tensor([float(wrong[rank]) if rank < len(wrong) else math.inf for rank in ranks])

    def rates(self, thresholds: Float[Tensor, " fmr"]) -> tuple[Float[Tensor, " fmr"], Int[Tensor, "fmr query"]]:
        """The share of the wrong pairs that match, and of each query how many right ones do not."""
        if self.embeddings is not None:
            rates = match_rates(*self._embedded(), thresholds, query_items=self.items[0], gallery_items=self.items[1])
            return rates.n_false / self.n_negatives, rates.n_positives - rates.n_true
        near = (self.results.distances < thresholds[:, None, None]) & self._retrieved()
        right = self.results.is_relevant
        n_false = (near & ~right).sum(dim=(1, 2))
        return n_false / self.n_negatives, self.n_positives - (near & right).sum(dim=2)[:, self.queries]

    def _embedded(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        assert self.embeddings is not None, "those who call have looked"
        ids = self.results.query_ids[self.queries], self.results.gallery_ids[self.galleries]
        labels = self.results.query_labels[self.queries], self.results.gallery_labels[self.galleries]
        galleries = self.embeddings[ids[1]]
        return galleries if torch.equal(*ids) else self.embeddings[ids[0]], galleries, *labels

    def _retrieved(self) -> Bool[Tensor, "query rank"]:
        """Which results are of these queries and galleries."""
        ids = self.results.retrieved_ids
        return torch.isin(torch.arange(len(ids), device=ids.device), self.queries)[:, None] & torch.isin(
            ids, self.results.gallery_ids[self.galleries]
        )


def thresholds_at_fmr(
    results: RetrievalResults,
    embeddings: Tensor | None,
    fmr_vals: Sequence[float | int],
    held_out: Int[Tensor, " label"],
) -> list[MatchThreshold]:
    """For each rate the threshold of all pairs, and what it would have been worth on labels held out."""
    of_query, of_gallery = (torch.isin(x, held_out) for x in (results.query_labels, results.gallery_labels))
    everything = PairsOf(results, embeddings, torch.ones_like(of_query), torch.ones_like(of_gallery))
    if everything.n_negatives == 0:
        raise ValueError("Calibration needs queries and galleries of different labels for fmr_vals, got none.")
    found = everything.thresholds(fmr_vals)
    _, n_missed = everything.rates(found)
    _, of_label = results.query_labels.unique(return_inverse=True)
    n_positives = torch.bincount(of_label, weights=everything.n_positives.double())

    fitted, judged = (
        PairsOf(results, embeddings, ~of_query, ~of_gallery),
        PairsOf(results, embeddings, of_query, of_gallery),
    )
    rates: list[tuple[float | None, float | None]] = [(None, None)] * len(fmr_vals)
    if all(pairs.n_negatives and int(pairs.n_positives.sum()) for pairs in (fitted, judged)):
        false, missed = judged.rates(fitted.thresholds(fmr_vals))
        rates = list(zip(false.tolist(), (missed.sum(dim=1) / judged.n_positives.sum()).tolist(), strict=True))
    thresholds = []
    for fmr, distance, missed, held_out_rates in zip(fmr_vals, found.tolist(), n_missed, rates, strict=True):
        interval = share_interval(torch.bincount(of_label, weights=missed.double()), n_positives)
        thresholds.append(MatchThreshold(float(fmr), distance, everything.n_negatives, *interval, *held_out_rates))
    return thresholds


def check_embeddings(results: RetrievalResults, embeddings: Tensor) -> None:
    """Refuse embeddings whose L2 distances are not those of the results."""
    rows = (results.retrieved_ids[:, 0] >= 0).nonzero().squeeze(1)
    ids = results.query_ids[rows], results.retrieved_ids[rows, 0]
    n_items = 1 + int(torch.cat([results.query_ids, results.gallery_ids]).amax())
    if len(embeddings) >= n_items:
        found, given = measured(embeddings, embeddings, *ids), results.distances[rows, 0]
        far = (found - given).abs() > 1e-3 * given.abs().clamp(min=1e-3)
        if not far.any():
            return
        row = int(rows[far][0])
        what = f"distances differ for {int(far.sum())} of {len(rows)} first results, such as that of row {row}"
    else:
        what = f"there are {len(embeddings)} for {n_items} items"
    raise ValueError(
        f"Calibration needs the embeddings whose L2 distances are in the results, but {what}. For re-ranked results, "
        "or other distances, give none."
    )
