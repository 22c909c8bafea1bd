"""What the benchmarks of embeddings share: contenders in processes of their own, which take turns.

The environments of the peers import it too, so it needs no more than torch and numpy.
"""

import json
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from common import Worker, peak_growth, spread, timed
from peers import python_with

T = TypeVar("T")


class Turns(NamedTuple):
    """What each contender did: CPU and wall seconds of every round, and the MiB that a run adds."""

    times: dict[str, list[tuple[float, float]]]
    growth: dict[str, float | None]

    def figures(self, name: str, floor: str, peers: Sequence[str]) -> dict[str, Any]:
        """The fields of a contender's result; ratios are taken round by round."""
        seconds = {other: [cpu for cpu, _ in times] for other, times in self.times.items()}

        def ratios(above: str, below: str) -> dict[str, float]:
            return spread([a / b for a, b in zip(seconds[above], seconds[below], strict=True)])

        return {
            "rounds": len(seconds[name]),
            "cpu_seconds": spread(seconds[name]),
            "wall_seconds": spread([wall for _, wall in self.times[name]]),
            "peers_to_this": {peer: ratios(peer, name) for peer in peers if peer in seconds},
            "peak_growth_mib": self.growth[name],
        } | ({"to_bare_product": ratios(name, floor)} if floor in seconds else {})


def take_turns(
    script: str,
    is_peer: Mapping[str, bool],
    x: Tensor,
    labels: Tensor,
    rounds: int,
    threads: int,
    check: Callable[[dict[str, Any]], T],
) -> tuple[T, Turns]:
    """Check what the contenders answer, time them in interleaved rounds, then measure their memory.

    Args:
        script: the file beside this one that runs a contender, by :func:`serve`.
        is_peer: for each contender whether it runs in the environment of the peers.
        check: from the answers of all contenders to what is kept of them; leaves the program if one is wrong.
    """
    workers = {
        name: Worker(Path(__file__).with_name(script), name, python_with() if peer else Path(sys.executable))
        for name, peer in is_peer.items()
    }
    with tempfile.TemporaryDirectory() as folder:
        request: dict[str, Any] = {"threads": threads}
        for name, tensor in (("embeddings", x), ("labels", labels)):
            request[name] = str(Path(folder) / f"{name}.npy")
            np.save(request[name], tensor.numpy())
        try:
            # the check warms up as well
            checked = check({name: worker({**request, "what": "check"}) for name, worker in workers.items()})
            times: dict[str, list[tuple[float, float]]] = {name: [] for name in workers}
            for _ in range(rounds):
                for name, worker in workers.items():
                    times[name].append(worker({**request, "what": "time"}))
            growth = {name: worker({**request, "what": "memory"}) for name, worker in workers.items()}
        finally:
            for worker in workers.values():
                worker.close()
    return checked, Turns(times, growth)


def serve(run: Callable[[Tensor, Tensor], T], answer: Callable[[T], Any]) -> None:
    """Be a contender: answer each line of standard input, a JSON object, with a line of JSON.

    A request names the files of embeddings and labels, how many threads to use, and what to do: "check" to answer
    with what ``answer`` makes of a run, "time" with its CPU and wall seconds, "memory" with the MiB that it adds.
    """
    loaded, x, labels = None, torch.empty(0), torch.empty(0)
    for line in sys.stdin:
        request = json.loads(line)
        if request["embeddings"] != loaded:
            loaded = request["embeddings"]
            x, labels = torch.from_numpy(np.load(loaded)), torch.from_numpy(np.load(request["labels"]))
        torch.set_num_threads(request["threads"])
        if request["what"] == "check":
            found = answer(run(x, labels))
        else:
            do = timed if request["what"] == "time" else peak_growth
            found = do(lambda x=x, labels=labels: run(x, labels))
        print(json.dumps(found), flush=True)


def saved(name: str, array: np.ndarray) -> str:
    """A file for an answer that is too large for a line; who reads it removes its folder."""
    path = Path(tempfile.mkdtemp()) / f"{name}.npy"
    np.save(path, array)
    return str(path)
