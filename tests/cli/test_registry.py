import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from oml.const import CONFIGS_PATH
from oml.registry import REGISTRIES

Oml = Callable[..., tuple[int, str, str]]


def test_everything_is_listed(oml: Oml) -> None:
    code, output, _ = oml("registry")
    assert code == 0
    parts = [part.splitlines() for part in output.split("\n\n")]
    assert [part[0] for part in parts] == list(REGISTRIES)
    for kind, *rows in parts:
        assert [row.split()[0] for row in rows[::2]] == list(REGISTRIES[kind])
        assert all(row.startswith("      ") and len(row.split()) > 2 for row in rows[1::2])  # what each is
        assert oml("registry", kind)[1].splitlines()[::2][0] == kind
    assert "\n  triplet                    TripletLoss(margin, reduction='mean', need_logs=False)\n" in output
    assert "`" not in output


def test_a_terminal_has_an_edge(oml: Oml, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    wrapped = oml("registry", "optimizer")[1]
    assert max(map(len, wrapped.splitlines())) <= 60
    monkeypatch.setattr("sys.stdout.isatty", lambda: False)
    assert wrapped.split() == oml("registry", "optimizer")[1].split()


def test_one_entry(oml: Oml) -> None:
    code, output, _ = oml("registry", "criterion", "triplet_with_miner")
    assert code == 0
    file = CONFIGS_PATH / "criterion" / "triplet_with_miner.yaml"
    assert output == (
        "criterion triplet_with_miner: oml.losses.triplet.TripletLossWithMiner\n"
        "TripletLoss over the triplets that a miner finds in the batch.\n\n"
        "Arguments:\n"
        "  margin: float | None\n"
        "  miner: ITripletsMiner | None = None\n"
        "  reduction: 'mean' | 'sum' | 'none' = 'mean'\n"
        "  need_logs: bool = False\n"
        "  strict: bool = False\n\n"
        f"# {file}\n{file.read_text()}"
    )
    assert "\n\nNo arguments.\n\n# " in oml("registry", "miner", "hard_triplets")[1]


def test_json(oml: Oml) -> None:
    entries = json.loads(oml("registry", "--json")[1])
    assert [(each["kind"], each["name"]) for each in entries] == [
        (kind, name) for kind, registry in REGISTRIES.items() for name in registry
    ]
    for entry in entries:
        assert entry["summary"]
        assert entry["config"]["name"] == entry["name"]
    of_schedulers = json.loads(oml("registry", "scheduler", "--json")[1])
    assert of_schedulers == [entry for entry in entries if entry["kind"] == "scheduler"]
    step = json.loads(oml("registry", "scheduler", "step", "--json")[1])
    assert step in of_schedulers
    assert step == {
        "kind": "scheduler",
        "name": "step",
        "constructor": "torch.optim.lr_scheduler.StepLR",
        "call": "StepLR(optimizer, step_size, gamma=0.1, last_epoch=-1)",
        "summary": "Decays the learning rate of each parameter group by gamma every step_size epochs.",
        "arguments": {
            "optimizer": {"type": "Optimizer"},
            "step_size": {"type": "int"},
            "gamma": {"type": "float", "default": "0.1"},
            "last_epoch": {"type": "int", "default": "-1"},
        },
        "config": yaml.safe_load((CONFIGS_PATH / "scheduler" / "step.yaml").read_text()),
    }


def test_what_an_import_path_leads_to(oml: Oml, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "import torch\nclass Mine(torch.nn.Module):\n    def __init__(self, size: 'int', kind=None): ...\n"
    (tmp_path / "of_a_user.py").write_text(text)
    (tmp_path / "wrong_of_a_user.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(tmp_path)
    code, output, _ = oml("registry", "criterion", "of_a_user.Mine")
    assert code == 0
    assert output == (
        "criterion of_a_user.Mine: of_a_user.Mine\n\nArguments:\n  size: int\n  kind = None\n\n"
        "There is no packaged config.\n"
    )
    assert json.loads(oml("registry", "criterion", "of_a_user.Mine", "--json")[1])["config"] is None
    for arguments, error in (
        (("criterion", "of_a_user.Mne"), "The module 'of_a_user' has no criterion 'Mne'; did you mean Mine?"),
        (("miner", "of_a_user.Mine"), "'of_a_user.Mine' cannot be the miner: derive it from oml.interfaces.miners."),
        (("miner", "wrong_of_a_user.Mine"), "cannot be imported: wrong_of_a_user raises ZeroDivisionError: division"),
    ):
        code, output, errors = oml("registry", *arguments)
        assert (code, output, errors.count("\n")) == (2, "", 1)
        assert error in errors


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["optimizers"], "there is no kind 'optimizers'; did you mean optimizer?"),
        (["zzz"], "there is no kind 'zzz'; there are criterion, extractor, "),
        (["arcface"], "'arcface' is no kind but a name: oml registry criterion arcface"),
        (["multi_similarity"], "oml registry criterion multi_similarity or oml registry miner multi_similarity"),
        (["criterion", "arcfase"], "No criterion is called 'arcfase'; did you mean arcface or"),
        (["criterion", "no_such_module.Mine"], "there is no module 'no_such_module' to import: install it, or set"),
    ],
)
def test_what_there_is_not(oml: Oml, arguments: list[str], text: str) -> None:
    code, output, errors = oml("registry", *arguments)
    assert (code, output, errors.count("\n")) == (2, "", 1)
    assert text in errors


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("oml registry ", list(REGISTRIES)),
        ("oml registry s", ["sampler", "scheduler"]),
        ("oml registry criterion tri", ["triplet", "triplet_plain", "triplet_with_miner"]),
    ],
)
def test_the_shell_completes(oml: Oml, words: str, expected: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_OML_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(words.count(" ")))
    assert oml()[1].split() == expected
