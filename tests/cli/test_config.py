"""``oml config``, and what the commands that take a config say of bad input."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

from oml.cli.composing import best_pipeline, split_words
from oml.configs import compose
from oml.configs.composing import recipe_names
from oml.lightning.pipelines.schema import TRAINING

Oml = Callable[..., tuple[int, str, str]]


def test_show_prints_a_config_that_can_be_used(oml: Oml, here: Path) -> None:
    code, shown, errors = oml("config", "show", "tiny.yaml", "optimizer.args.lr=0.5", "ema_decay=0.9")
    assert (code, errors) == (0, "")
    assert f"\n# {TRAINING.fields['optimizer'].help}\noptimizer:\n  name: sgd\n" in shown
    own, defaults = shown.split("\n# left out, so at the defaults of a training config\n")
    config = yaml.safe_load(own)
    assert config["optimizer"] == {"name": "sgd", "args": {"lr": 0.5}}
    assert (
        config["transforms_val"] == config["transforms_train"] == {"name": "norm_resize_torch", "args": {"im_size": 32}}
    )
    assert config["ema_decay"] == 0.9
    assert "ema_decay" not in defaults
    assert f"# {TRAINING.fields['freeze_n_epochs'].help}\nfreeze_n_epochs: 0\n" in defaults
    Path("shown.yaml").write_text(shown)
    everything = compose("shown.yaml")
    assert OmegaConf.to_container(everything) == config | yaml.safe_load(defaults)
    assert all(name in everything for name in TRAINING.fields)


def test_show_of_a_table_is_what_would_be_trained(oml: Oml, here: Path) -> None:
    code, shown, _ = oml("config", "show", "data/df.csv", "max_epochs=3")
    assert code == 0
    config = yaml.safe_load(shown)
    assert (config["dataset_root"], config["dataframe_name"], config["max_epochs"]) == ("data", "df.csv", 3)
    Path("train.yaml").write_text(shown)
    assert oml("config", "check", "train.yaml", "extractor.args.weights=null")[0] == 0
    Path("other.csv").write_text(Path("data/df.csv").read_text())
    assert oml("config", "check", "other.csv", "dataset_root=data", "extractor.args.weights=null")[0] == 0
    assert oml("config", "check", "other.csv", "extractor.args.weights=null")[0] == 2


def test_show_leaves_out_what_only_other_fields_needed(oml: Oml, here: Path) -> None:
    text = Path("tiny.yaml").read_text().replace("im_size: 32", "im_size: ${size}")
    Path("sizes.yaml").write_text(f"{text}\nsize: 32\nsiez: 32")
    shown = yaml.safe_load(oml("config", "show", "sizes.yaml")[1])
    assert shown["transforms_val"]["args"]["im_size"] == 32
    assert "size" not in shown
    assert shown["siez"] == 32


def test_show_what_is_missing_as_it_is(oml: Oml, here: Path) -> None:
    Path("a.yaml").write_text("weights: ???\nextractor: {name: vit, args: {weights: '${weights}'}}\ndata_dir: x")
    shown = oml("config", "show", "a.yaml")[1]
    assert shown.startswith("weights: ???\n#")
    assert "\nextractor:\n  name: vit\n" in shown
    assert "weights: w.ckpt\n" in oml("config", "show", "a.yaml", "weights=w.ckpt")[1]


@pytest.mark.parametrize("name", recipe_names())
def test_what_a_config_is_for(name: str) -> None:
    data = f"{'data_dir' if 'predict' in name else 'dataset_root'}=nowhere"
    kinds = {"validate": "validation", "predict": "prediction", "postprocessor": "re-ranker training"}
    kinds["reranker"] = kinds["postprocessor"]
    assert best_pipeline(compose(name, [data])).name == kinds.get(name.rpartition("_")[2], "training")


def test_check_tells_everything(oml: Oml, here: Path) -> None:
    good = "tiny.yaml: nothing wrong with this training config.\n"
    assert oml("config", "check", "tiny.yaml") == (0, good, "")
    code, output, errors = oml(
        "config", "check", "tiny.yaml", "optimizer.args.lrr=1", "dataframe_name=no.csv", "precision=16-true", "+sead=1"
    )
    assert (code, output) == (2, "")
    lines = errors.splitlines()
    assert len(lines) == 4
    assert all(line.startswith("oml: ") for line in lines)
    for text in ("'lrr'; did you mean lr?", "no.csv", "16-true", "sead: "):
        assert text in errors
    assert "save_dir" in oml("config", "check", "tiny.yaml", "--for", "predict")[2]


def test_modules_here_can_be_named(oml: Oml, here: Path) -> None:
    arguments = ("config", "check", "tiny.yaml", "~criterion.args")
    assert oml(*arguments, "criterion.name=of_a_user.Loss")[0] == 0
    assert "did you mean Loss?" in oml(*arguments, "criterion.name=of_a_user.Lss")[2]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("oml train --recipe cu", ["cub", "cub_predict", "cub_validate"]),
        ("oml predict --recipe sop_p", ["sop_predict"]),
        ("oml config check --for t", ["train", "train-reranker"]),
    ],
)
def test_the_shell_completes(oml: Oml, words: str, expected: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_OML_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(words.count(" ")))
    assert oml()[1].split() == expected


BAD_TABLE = "label,path,split,is_query,is_gallery\n0,nowhere.jpg,train,,\n"


@pytest.mark.parametrize(
    ("command", "text"),
    [
        ("train tiny.yaml max_epoch=3", "no field 'max_epoch' to override; did you mean max_epochs?"),
        ("train tiny.yaml +max_epoch=3", "max_epoch"),
        ("train tiny.yaml optimizer=sdg", "Could not find 'optimizer/sdg'; did you mean sgd"),
        ("train syntax.yaml", "syntax.yaml, line 3, column 3: expected ',' or ']', but got ':'."),
        ("train tiny.yaml postfix=${name}", "postfix: ${name} does not resolve: Interpolation key 'name' not found"),
        ("train --recipe cubb", "there is no recipe 'cubb'; did you mean cub"),
        ("train tniy.yaml", "neither a config file, a run nor a recipe 'tniy.yaml'; did you mean tiny.yaml"),
        ("train data", "the folder 'data' is not that of a run: it has no config.yaml."),
        ("train", "which config? Give a file or --recipe NAME. See oml train --help."),
        ("train seed=1", "which config?"),
        ("train tiny.yaml --recipe cub", "there are 2 configs, cub and tiny.yaml; give one."),
        ("train tiny.yaml extractor.args.weights=no.ckpt", "no.ckpt"),
        ("train tiny.yaml precision=16-true", "16-true"),
        ("train tiny.yaml dataframe_name=bad.csv dataset_root=.", "nowhere.jpg"),
        ("train bad.csv", "nowhere.jpg"),
        ("train no.csv", "not found at 'no.csv': there is no such file."),
        ("train tiny.yaml run_dir=tiny.yaml/run", "cannot be written to"),
        ("train tiny.yaml run_dir=/proc/run", "/proc"),
        ("train --resume data", "'data' has no config.yaml, so it is no run to resume."),
        ("train --resume nowhere", "'nowhere' is no folder, so it is no run to resume."),
        ("train --resume run --multirun", "give one of them."),
        ("train --resume run tiny.yaml", "there are 2 configs, run and tiny.yaml; give one."),
        ("train tiny.yaml seed=1,2", "To sweep over it, add --multirun to your command line"),
        ("train tiny.yaml -m seed=1,2 bs_val=8,0", "bs_val=0: bs_val"),
        ("train tiny.yaml -m seed=1,2 max_epoch=1", "oml: the config has no field 'max_epoch' to override;"),
        ("train bad.csv dataset_root=no", "dataset_root: there is no folder 'no'."),
        ("validate run", "there is no 'run/checkpoints/best.ckpt'. The training writes it when it is validated first."),
        ("validate broken", "broken/config.yaml"),
        ("validate tiny.yaml", "that is a training config, for oml train; a validation config is needed, or the"),
        ("train --recipe cub_predict", "that is a prediction config, for oml predict;"),
        ("validate bad.csv", "'bad.csv' is no config: the name of one ends with .yaml."),
        (
            "predict --recipe cub_predict data_dir=no save_dir=out accelerator=cpu extractor.args.weights=null",
            "data_dir",
        ),
        ("config check tiny.yaml seed=x", "seed"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(command: str, text: str, oml: Oml, here: Path) -> None:
    Path("syntax.yaml").write_text("seed: 1\nname: [a, b\nlr: 1")
    Path("bad.csv").write_text(BAD_TABLE)
    Path("run").mkdir()
    Path("run/config.yaml").write_text(Path("tiny.yaml").read_text())
    Path("broken/checkpoints").mkdir(parents=True)
    Path("broken/checkpoints/best.ckpt").touch()
    Path("broken/config.yaml").write_text("seed: [1\n")
    before = set(here.rglob("*"))
    code, output, errors = oml(*command.split())
    assert (code, output) == (2, "")
    assert errors.startswith("oml: ")
    assert errors.count("\n") == 1, errors
    assert text in errors
    assert {path for path in here.rglob("*") if "__pycache__" not in path.parts} == before


def test_debug_shows_the_traceback(oml: Oml, here: Path) -> None:
    from oml.configs import ConfigError

    with pytest.raises(ConfigError, match="no field 'sed'"):
        oml("train", "tiny.yaml", "sed=1", "--debug")


def test_arguments_of_the_trainer_by_its_name() -> None:
    given = [
        "trainer.devices=2",
        "trainer.max_steps=5",
        "~trainer.max_time",
        "extractor.trainer.a=1",
        "postfix=trainer.x",
    ]
    assert split_words(["glyphs", *given], None) == (
        "glyphs",
        [
            "devices=2",
            "lightning_trainer_extra_args.max_steps=5",
            "~lightning_trainer_extra_args.max_time",
            "extractor.trainer.a=1",
            "postfix=trainer.x",
        ],
    )
