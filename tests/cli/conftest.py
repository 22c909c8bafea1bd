from collections.abc import Callable
from pathlib import Path

import pytest

from oml.cli import main


@pytest.fixture
def oml(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run ``oml ARGUMENTS`` in this process: exit code, output, and what went to the error stream."""

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as left:
            main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        assert isinstance(left.value.code, int)
        return left.value.code, out, err

    return run
