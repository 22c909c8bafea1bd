"""How many planted errors `oml audit` finds in the labels of Glyphs, and how many of its findings are planted ones.

Wrong labels are planted in two ways: any other label ("any"), as from a slip of the hand, or that of the nearest item
of another label ("nearest"), as from confusion. Mixed labels are planted by giving every second item of a label a new
one. Editing by nearest neighbours (Wilson 1972) takes out what a majority of the same neighbours outvotes.
Findings that are not planted are not all wrong: Glyphs has characters that look alike.

Prints a JSON line per case, means of 5 draws.

    oml demo --output runs
    python benchmarks/effect_findings.py runs/demo-*/embeddings.safetensors
"""

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from common import circumstances
from oml.functional.findings import mixed_labels, nearest_items, wrong_labels
from oml.functional.search import Neighbours

N_DRAWS = 5


def plant_wrong(labels: Tensor, neighbours: Neighbours, share: float, way: str, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    items = torch.randperm(len(labels), generator=generator)[: round(share * len(labels))]
    values = labels.unique()
    new = values[torch.randint(len(values), (len(items),), generator=generator)]
    if way == "nearest":
        others = labels[neighbours.ids[items]]
        is_other = others != labels[items, None]
        first = others.gather(1, is_other.int().argmax(dim=1, keepdim=True))[:, 0]
        new = first.where(is_other.any(dim=1), new)
    wrong = labels.clone()
    wrong[items] = new
    return wrong


def score(found: Tensor, is_planted: Tensor) -> dict[str, float]:
    right = is_planted[found].sum().item()
    return {"found": len(found), "precision": right / max(len(found), 1), "recall": right / is_planted.sum().item()}


def mean(results: list[dict[str, float]]) -> dict[str, float]:
    return {name: round(sum(result[name] for result in results) / len(results), 3) for name in results[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("embeddings", type=Path, help="embeddings.safetensors of a run of the demo")
    arguments = parser.parse_args()
    content = load_file(arguments.embeddings)
    embeddings, labels = content["embeddings"], content["labels"]
    neighbours = nearest_items(embeddings)
    case = {"items": len(labels), "labels": len(labels.unique()), **circumstances(torch.get_num_threads(), "torch")}
    case["cmc@1"] = round((labels[neighbours.ids[:, 0]] == labels).double().mean().item(), 3)
    print(json.dumps({"task": "nothing planted", "found": len(wrong_labels(neighbours, labels).items), **case}))

    for way in ("any", "nearest"):
        for share in (0.01, 0.03, 0.1):
            ours, edited, suggested = [], [], []
            for seed in range(N_DRAWS):
                wrong = plant_wrong(labels, neighbours, share, way, seed)
                found = wrong_labels(neighbours, wrong)
                right = (wrong != labels)[found.items]
                suggested.append({"suggested": (found.suggested == labels[found.items])[right].double().mean().item()})
                ours.append(score(found.items, wrong != labels))
                outvoted = wrong[neighbours.ids].mode(dim=1).values != wrong
                edited.append(score(outvoted.nonzero()[:, 0], wrong != labels))
            line = {"task": "wrong labels", "way": way, "share": share, **mean(ours), **mean(suggested)}
            print(json.dumps({**line, "editing": mean(edited), **case}))

    results = []
    values, counts = labels.unique(return_counts=True)
    large, new = values[counts >= 8], int(values.amax()) + 1
    before = {tuple(pair) for pair in mixed_labels(neighbours, labels).labels.tolist()}
    for seed in range(N_DRAWS):
        generator = torch.Generator().manual_seed(seed)
        divided, planted = labels.clone(), set()
        for label in large[torch.randperm(len(large), generator=generator)][: len(values) // 20].tolist():
            items = (labels == label).nonzero()[:, 0]
            divided[items[torch.randperm(len(items), generator=generator)[::2]]] = new + label
            planted.add((label, new + label))
        pairs = {tuple(pair) for pair in mixed_labels(neighbours, divided).labels.tolist()}
        others = len(pairs - planted - before)
        results.append({"found": len(pairs), "recall": len(pairs & planted) / len(planted), "new others": others})
    line = {"task": "mixed labels", "share": 0.05, "before": len(before), **mean(results)}
    print(json.dumps({**line, **case}))


if __name__ == "__main__":
    main()
