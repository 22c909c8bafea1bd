import inspect
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from tests.retrieval.postprocessors.data import searched

from oml.registry.postprocessors import get_postprocessor_by_cfg
from oml.retrieval import RetrievalResults
from oml.retrieval.postprocessors.base import Postprocessor
from oml.retrieval.postprocessors.chain import Chain
from oml.retrieval.postprocessors.query_expansion import QueryExpansionPostprocessor
from oml.retrieval.postprocessors.thresholding import ConstantThresholding


class Telling(Postprocessor):
    """Turns nothing over, and tells what it needs."""

    def __init__(self, top_n: int | None, needed: list[str], optional: list[str], is_by_query: bool) -> None:
        self.top_n, self.is_by_query = top_n, is_by_query
        self._needed, self._optional = needed, optional

    def rerank(self, results: RetrievalResults, data: Mapping[str, Any]) -> RetrievalResults:
        return results

    @property
    def needed_keys(self) -> list[str]:
        return self._needed

    @property
    def optional_keys(self) -> list[str]:
        return self._optional


def test_each_works_on_what_the_one_before_it_made() -> None:
    results, embeddings = searched(12, "shared", 6, seed=1)
    data = {"embeddings": embeddings}
    threshold, expansion = ConstantThresholding(1.5), QueryExpansionPostprocessor(n=3)
    for first, second in ((threshold, expansion), (expansion, threshold)):
        chained = Chain([first, second]).rerank(results, data)
        expected = second.rerank(first.rerank(results, data), data)
        assert torch.equal(chained.retrieved_ids, expected.retrieved_ids)
        assert torch.equal(chained.distances, expected.distances)
    other = Chain([threshold, expansion]).rerank(results, data)
    assert not torch.equal(other.retrieved_ids, chained.retrieved_ids)


def test_it_needs_what_any_of_them_needs() -> None:
    chain = Chain(
        [Telling(None, ["a"], ["x"], True), Telling(7, ["b", "a"], ["y", "x"], True), ConstantThresholding(1)]
    )
    assert (chain.top_n, chain.needed_keys, chain.optional_keys) == (7, ["a", "b"], ["x", "y"])
    assert chain.is_by_query
    assert not Chain([Telling(None, [], [], True), Telling(None, [], [], False)]).is_by_query
    assert Chain([ConstantThresholding(1)]).top_n is None
    assert Chain([Chain([Telling(3, [], [], True)]), Telling(9, [], [], True)]).top_n == 9


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="Chain needs one postprocessor or more, got none"):
        Chain([])
    for bad in (["k_reciprocal"], "k_reciprocal", [ConstantThresholding(1), 3]):
        with pytest.raises(TypeError, match="Chain needs a list of postprocessors, got"):
            inspect.unwrap(Chain.__init__)(object.__new__(Chain), bad)


def test_chains_come_from_configs() -> None:
    threshold = {"name": "constant_threshold", "args": {"threshold": 0.25}}
    config = {"name": "chain", "args": {"postprocessors": [{"name": "query_expansion", "args": {"n": 4}}, threshold]}}
    chain = get_postprocessor_by_cfg({"name": "chain", "args": {"postprocessors": [config, threshold]}})
    assert isinstance(chain, Chain)
    inner, last = chain.postprocessors
    assert isinstance(inner, Chain)
    assert isinstance(inner.postprocessors[0], QueryExpansionPostprocessor)
    assert isinstance(last, ConstantThresholding)
    assert (chain.top_n, last.threshold) == (4, 0.25)
