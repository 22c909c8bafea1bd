"""What launchers tell the processes that they start, before these form a group. Imports nothing heavy."""

import os

#: by which Lightning's launcher lets the processes that it starts know the folder of the run
RUN_FOLDER_VARIABLE = "OML_RUN_DIR"


def is_first_process() -> bool:
    """Whether this process is the only one, or the one that will have rank 0.

    By the environment that Lightning's launcher, torchrun and SLURM make; for the time before there is a group, see
    :func:`oml.ddp.utils.is_main_process` for afterwards.

    Example:
        >>> is_first_process()
        True
    """
    if (rank := os.environ.get("RANK")) is not None:
        return int(rank) == 0
    if (rank := os.environ.get("LOCAL_RANK")) is not None:
        return int(rank) == int(os.environ.get("NODE_RANK", "0")) == 0
    return int(os.environ.get("SLURM_PROCID", "0")) == 0


def n_processes_of_launcher() -> int:
    """How many processes torchrun or SLURM have started; 1 without these."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return int(os.environ["WORLD_SIZE"])
    return int(os.environ.get("SLURM_NTASKS", "1")) if "SLURM_PROCID" in os.environ else 1
