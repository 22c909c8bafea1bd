"""Composing configs: what comes out, and what is said of what does not."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from oml.configs import ConfigError, compose
from oml.configs.composing import compose_with_folder, multirun, recipe_names, sweep_overrides

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a config and get its path."""

    def write(text: str, name: str = "my run-1.v2.yaml") -> Path:
        path = tmp_path / "a folder" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    return write


def plain(config: DictConfig) -> Any:
    return OmegaConf.to_container(config, resolve=True)


def findings(*args: Any) -> list[str]:
    with pytest.raises(ConfigError) as raised:
        compose(*args)
    assert str(raised.value) == "\n".join(raised.value.findings)
    return raised.value.findings


def test_groups_are_packaged_ones_and_those_beside_the_file(write: Write) -> None:
    config = write("defaults:\n  - optimizer: sgd\n  - sampler: mine\nseed: 5\noptimizer:\n  args:\n    lr: 7\n")
    write("name: balance\nargs: {n_labels: 3}", "sampler/mine.yaml")
    write("name: my_adam\nargs: {}", "optimizer/adam.yaml")
    expected = {"name": "sgd", "args": {"lr": 7}}
    assert plain(compose(config)) == {
        "optimizer": expected, "sampler": {"name": "balance", "args": {"n_labels": 3}}, "seed": 5
    }  # fmt: skip
    assert compose(config, ["optimizer=adam"]).optimizer.name == "my_adam"
    assert plain(compose(str(config), ["+criterion=triplet", "~seed", "+criterion.args.need_logs=true"])) == {
        "optimizer": expected,
        "sampler": {"name": "balance", "args": {"n_labels": 3}},
        "criterion": {"name": "triplet", "args": {"margin": None, "reduction": "mean", "need_logs": True}},
    }


def test_the_fields_of_a_file_come_after_its_defaults_unless_it_says_otherwise(write: Write) -> None:
    text = "defaults:\n  - _self_\n  - optimizer: sgd\noptimizer: {args: {lr: 7}}"
    assert compose(write(text)).optimizer.args.lr == 1e-5
    assert compose(write(text.replace("  - _self_\n", ""))).optimizer.args.lr == 7


@pytest.mark.parametrize("name", recipe_names())
def test_recipes_can_be_extended(name: str, write: Write) -> None:
    data = f"{'data_dir' if 'predict' in name else 'dataset_root'}=nowhere"  # else Glyphs would be drawn
    recipe = compose(name, [data])
    extended = compose(write(f"defaults: [recipes/{name}, _self_]\naccelerator: mine"), [data])
    assert extended.accelerator == "mine"
    recipe.accelerator = "mine"
    assert OmegaConf.to_container(extended) == OmegaConf.to_container(recipe)


def test_a_choice_takes_the_place_of_what_the_config_says_itself(write: Write) -> None:
    config = write("optimizer: {name: x, args: {lr: 5, w: null, z: {a: 1}, betas: [1]}}\nseed: 1")
    assert plain(compose(config, ["optimizer=sgd", "seed=2"])) == {
        "optimizer": {"name": "sgd", "args": {"lr": 1e-5}}, "seed": 2
    }  # fmt: skip
    assert compose(config, ["optimizer=sgd", "optimizer.args.lr=3"]).optimizer.args == {"lr": 3}
    assert compose(write("seed: 1"), ["optimizer=sgd"]).optimizer.name == "sgd"
    assert findings(config, ["optimizer=sgdd"]) == ["Could not find 'optimizer/sgdd'; did you mean sgd or asgd?"]


def test_known_fields_need_no_plus(write: Write) -> None:
    config = write("seed: 1\noptimizer: {name: sgd, args: {lr: 1}}")
    changed = compose(config, ["optimizer.args.momentum=0.9", "max_epochs=3", "seed=2"], ["optimizer", "max_epochs"])
    assert plain(changed) == {
        "seed": 2, "optimizer": {"name": "sgd", "args": {"lr": 1, "momentum": 0.9}}, "max_epochs": 3
    }  # fmt: skip
    assert findings(config, ["optimizer.args.momentum=0.9", "max_epoch=3", "sed=2"], ["max_epochs"]) == [
        "the config has no field 'optimizer.args.momentum' to override; did you mean optimizer.args.lr? "
        "(+optimizer.args.momentum=0.9 would add it.)",
        "the config has no field 'max_epoch' to override; did you mean max_epochs? (+max_epoch=3 would add it.)",
        "the config has no field 'sed' to override; did you mean seed? (+sed=2 would add it.)",
    ]
    (line,) = findings(config, ["optimzer.args.lr=2"])
    assert "did you mean optimizer.args.lr or" in line
    (line,) = findings(config, ["lr=2"])
    assert "did you mean optimizer.args.lr? (" in line


def test_null_in_the_place_of_a_group(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = write("defaults: [sampler: balance, _self_]\nseed: 1")
    assert plain(compose(config, ["sampler=null"])) == {"sampler": None, "seed": 1}
    assert plain(compose(config, ["+logger=null"]))["logger"] is None
    jobs: list[Any] = []
    multirun(config, ["sampler=null,balance"], lambda job: jobs.append(job.sampler))
    assert [job and job.name for job in jobs] == [None, "balance"]


@pytest.mark.parametrize(
    ("text", "overrides", "expected"),
    [
        ("seed: 5\na: {b: 1\nc: 2", [], "my run-1.v2.yaml, line 3, column 2: expected ',' or '}', but got ':'."),
        ("seed: 5\n\ta: 6", [], "my run-1.v2.yaml, line 2, column 1: found character '\\t' that cannot start"),
        ("seed: 5\nseed: 6", [], "my run-1.v2.yaml, line 2, column 1: found duplicate key seed."),
        ("- 5\n- 6", [], "primary config 'my run-1.v2.yaml' must be a DictConfig, got ListConfig"),
        ("seed: ${foo", [], "seed: no viable alternative at input '${foo'"),
        ("defaults: [optimizer: sgdd]", [], "Could not find 'optimizer/sgdd'; did you mean sgd or asgd?"),
        ("defaults: [recipes/glyfs]", [], "Could not load 'recipes/glyfs'; did you mean glyphs?"),
        ("hydra: {searchpath: [pkg://oml.nope]}", [], "path=oml.nope is not available."),
        ("hydra: {jobb: 1}", [], "composing config: Key 'jobb' not in 'HydraConf'"),
        ("seed: 5", ["seed=[1"], "the override 'seed=[1' is not understood, write key=value, or key='value' for"),
        ("seed: 5", ["seed"], "the override 'seed' is not understood, write key=value, or key='value' for"),
        ("seed: 5", ["sampler=nope"], "Could not find 'sampler/nope'; there are balance, category_balance, "),
        ("seed: 5", ["seed=1,2"], "Ambiguous value for argument 'seed=1,2'"),
        ("seed: 5", ["+seed=2"], "Could not append to config. An item is already at 'seed'."),
        ("seed: 5", ["~sed"], "Could not delete from config. 'sed' does not exist."),
        ("sead: 1\nlr: ${seed}", [], "lr: ${seed} does not resolve: Interpolation key 'seed' not found; did you mean"),
        ("a: {b: ['${c}', 1]}", [], "a.b[0]: ${c} does not resolve: Interpolation key 'c' not found."),
        ("a: ${oc.env:NO_SUCH}", [], "a: ${oc.env:NO_SUCH} does not resolve: KeyError raised while resolving"),
    ],
)  # fmt: skip
def test_what_does_not_compose(text: str, overrides: list[str], expected: str, write: Write) -> None:
    (line,) = findings(write(text), overrides)
    assert expected in line
    assert "\n" not in line


def test_what_is_missing_may_be_set_later(write: Write) -> None:
    config = compose(write("a: ???\nb: ${a}"))
    config.a = 1
    assert config.b == 1


def test_every_interpolation_is_told(write: Write) -> None:
    lines = findings(write("a: ${x}\nb: {c: '${nope:1}', d: '${a}'}\ne: '${now:%Y}'"))
    assert [line.split(":")[0] for line in lines] == ["a", "b.c", "b.d"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("glyfs", "there is neither a config file, a run nor a recipe 'glyfs'; did you mean glyphs?"),
        ("zzz", "nor a recipe 'zzz'; the recipes are cars, "),
        ("runs/fisrt", "nor a recipe 'runs/fisrt'; did you mean runs/first?"),
        ("trian.yaml", "nor a recipe 'trian.yaml'; did you mean train.yaml or"),
        ("table.csv", "'table.csv' is no config: the name of one ends with .yaml."),
        (".", "the folder '.' is not that of a run: it has no config.yaml."),
        ("binary.yaml", "a config cannot be read: 'utf-8' codec can't decode"),
    ],
)
def test_what_is_no_config(name: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("train.yaml").touch()
    Path("table.csv").touch()
    Path("runs/first").mkdir(parents=True)
    Path("runs/first/config.yaml").touch()
    Path("binary.yaml").write_bytes(b"\xff\xfe\x00")
    (line,) = findings(name)
    assert expected in line


def test_what_is_for_hydra_is_no_part_of_the_config(write: Write) -> None:
    text = "hydra:\n  searchpath: [pkg://oml.configs]\n  job: {chdir: true}\n  run: {dir: 'logs/${name}'}\nname: x\n"
    config, folder = compose_with_folder(write(text + "here: ${hydra:runtime.cwd}/data\nonce: ${now:%f}"))
    assert folder == "logs/x"
    assert config.here == f"{Path.cwd()}/data"
    assert config.once == config.once
    assert set(config) == {"name", "here", "once"}
    assert compose_with_folder(write("name: x"))[1] is None
    assert not HydraConfig.initialized()
    assert not GlobalHydra.instance().is_initialized()


def test_a_config_may_be_a_mapping() -> None:
    config = {"lr": 1, "optimizer": {"name": "adam", "args": {"lr": "${lr}"}}}
    for source in (config, OmegaConf.create(config)):
        assert compose(source, ["lr=2"]).optimizer.args.lr == 2
        assert compose(source, ["optimizer=sgd"]).optimizer.name == "sgd"
    assert config["lr"] == 1


def test_jobs_of_a_sweep() -> None:
    words = ["a=1,2", "b=3", "~d", "+e=range(1,3)", "f='1,2'", "g=interval(0,1)"]
    rest = ["f='1,2'", "g=0.0"]
    assert sweep_overrides(words) == [
        [f"a={a}", "b=3", "~d", f"+e={e}", *rest] for a in (1, 2) for e in (1, 2)
    ]  # fmt: skip
    with pytest.raises(ConfigError, match="the override 'a' is not understood"):
        sweep_overrides(["a"])


def test_a_sweep_calls_the_job_with_each_config(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    seen = []

    def job(config: DictConfig) -> None:
        folder = Path(HydraConfig.get().runtime.output_dir)
        seen.append((plain(config), folder.relative_to(tmp_path), folder.is_dir(), Path.cwd()))

    text = "hydra: {job: {chdir: true}, sweep: {dir: all}}\noptimizer: {name: x, args: {eps: 1}}\nmomentum: 0.5"
    multirun(write(text), ["optimizer=sgd,adam", "lr=1,2"], job, ["lr"])
    choices = [(name, lr) for name in ("sgd", "adam") for lr in (1, 2)]
    configs = [{"optimizer": {"name": name, "args": {"lr": 1e-5}}, "momentum": 0.5, "lr": lr} for name, lr in choices]
    assert seen == [(config, Path("all", str(i)), True, tmp_path) for i, config in enumerate(configs)]


def test_an_error_travels_between_processes() -> None:
    error = pickle.loads(pickle.dumps(ConfigError(["a: wrong", "b: wrong"])))
    assert error.findings == ["a: wrong", "b: wrong"]
