"""Real processes, for what processes do together."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def run_processes(function: Callable[..., None], *args: Any, folder: Path, n: int = 2) -> None:
    """Run ``function(rank, *args)`` in ``n`` processes of one gloo group; an error in any of them is raised here.

    ``function`` stands at the top of its module; it writes what it finds into files. ``folder`` is for the rendezvous.
    """
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(["tests.processes", "oml.registry.loggers"])  # torch and Lightning: once
    arguments = n, folder / "rendezvous", context.Barrier(n), function, args
    mp.start_processes(_run, arguments, n, start_method="forkserver")


def _run(rank: int, n: int, rendezvous: Path, all_done: Any, function: Callable[..., None], args: Any) -> None:
    torch.set_num_threads(1)
    os.environ["MASTER_ADDR"] = "127.0.0.1"
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=n)
    function(rank, *args)
    all_done.wait()
    os._exit(0)  # gloo's threads now and then abort a process that takes itself apart while another leaves
