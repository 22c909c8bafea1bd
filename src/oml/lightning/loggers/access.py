"""What services of logging need before they start: packages, keys and servers."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

_OFFLINE = {"offline", "dryrun", "disabled", "debug"}


def check_access(service: str | None, args: Mapping[str, Any]) -> None:
    """Make sure that a logger can start: its package is there, and a key, or it stays offline; its server answers.

    Args:
        service: ``"wandb"``, ``"neptune"``, ``"clearml"`` or ``"mlflow"``; ``None`` needs nothing.
        args: of the logger, as in its config.

    Raises:
        ModuleNotFoundError: There is no such package.
        ValueError: There is no key, and the logger would not stay offline.
        ConnectionError: There is no such server.
    """
    if service is None:
        return
    if find_spec(service) is None:
        package = "mlflow-skinny" if service == "mlflow" else service
        raise ModuleNotFoundError(f"The logger {service!r} needs the package {package}: pip install {package}.")
    _CHECKS[service](args)


@contextmanager
def environment(name: str, value: str | Path) -> Iterator[None]:
    """Within, the variable is set: to what it is already, else to ``value``."""
    known = name in os.environ
    os.environ.setdefault(name, str(Path(value).absolute()))
    try:
        yield
    finally:
        if not known:
            os.environ.pop(name, None)


def _check_wandb(args: Mapping[str, Any]) -> None:
    mode = "offline" if args.get("offline") else args.get("mode") or os.environ.get("WANDB_MODE")
    if mode in _OFFLINE or os.environ.get("WANDB_API_KEY"):
        return
    import wandb  # knows of keys elsewhere, and of `wandb offline`

    if wandb.Settings().mode not in _OFFLINE and not wandb.login(prompt=False, verify=False):  # pyright: ignore[reportCallIssue]
        raise ValueError(
            "The logger 'wandb' needs a key: run `wandb login` once, or set WANDB_API_KEY, in a .env file for one, or "
            "let it log to files alone by offline: true among its args."
        )


def _check_neptune(args: Mapping[str, Any]) -> None:
    if (args.get("mode") or os.environ.get("NEPTUNE_MODE")) in _OFFLINE:
        return
    if not (args.get("api_key") or os.environ.get("NEPTUNE_API_TOKEN")):
        raise ValueError(
            "The logger 'neptune' needs a key: set NEPTUNE_API_TOKEN, in a .env file for one, or let it log to files "
            "alone by mode: offline among its args."
        )


def _check_clearml(args: Mapping[str, Any]) -> None:
    if args.get("offline") or os.environ.get("CLEARML_OFFLINE_MODE", "0") not in ("", "0", "false"):
        return
    files = [os.environ.get("CLEARML_CONFIG_FILE") or "~/clearml.conf", "~/trains.conf"]
    if not (os.environ.get("CLEARML_API_ACCESS_KEY") or any(Path(file).expanduser().is_file() for file in files)):
        raise ValueError(
            "The logger 'clearml' needs a server and its key: run `clearml-init` once, or set CLEARML_API_HOST, "
            "CLEARML_API_ACCESS_KEY and CLEARML_API_SECRET_KEY, or let it log to files alone by offline: true among "
            "its args."
        )


def _check_mlflow(args: Mapping[str, Any]) -> None:
    uri = args.get("tracking_uri") or os.environ.get("MLFLOW_TRACKING_URI") or ""
    if not uri.startswith(("http:", "https:")):
        return
    import requests

    try:
        requests.head(uri, timeout=10, allow_redirects=False)
    except requests.RequestException as error:
        raise ConnectionError(
            f"The logger 'mlflow' needs its server, and {uri} does not answer ({type(error).__name__}): start it, or "
            "mend tracking_uri or MLFLOW_TRACKING_URI; without either it logs to files."
        ) from error


_CHECKS: dict[str, Callable[[Mapping[str, Any]], None]] = {
    "wandb": _check_wandb,
    "neptune": _check_neptune,
    "clearml": _check_clearml,
    "mlflow": _check_mlflow,
}
