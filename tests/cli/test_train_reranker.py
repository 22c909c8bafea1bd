"""``oml train-reranker``, on top of ``oml train``: on the mock data set."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

Oml = Callable[..., tuple[int, str, str]]
QUICK = ("max_epochs=1", "lightning_trainer_extra_args={enable_progress_bar:false,max_steps:2}")


@pytest.mark.slow
def test_on_top_of_an_extractor(oml: Oml, here: Path) -> None:
    code, _, errors = oml("train", "tiny.yaml", "run_dir=first")
    assert code == 0, errors
    code, output, errors = oml("config", "show", "first", "--for", "train-reranker")
    assert code == 0, errors
    shown = yaml.safe_load(output)
    assert shown["extractor"]["args"]["weights"] == str(here / "first/checkpoints/best.ckpt")

    code, output, errors = oml("train-reranker", "first", "run_dir=second", *QUICK)
    assert code == 0, errors
    files = {str(path.relative_to("second")) for path in Path("second").rglob("*") if path.is_file()}
    assert files >= {"config.yaml", "checkpoints/best.ckpt", "checkpoints/last.ckpt", "metrics.csv", "metrics.json"}
    kept = OmegaConf.load("second/config.yaml")
    assert kept.postprocessor.args.pairwise_model.name == "cross_attention_siamese"
    assert kept.metric_args == {"cmc_top_k": [1]}
    assert len(list(Path("first").glob("embeddings_*.safetensors"))) == 1
    assert " before " in output
    assert output.splitlines()[-1] == "  oml validate second"

    code, _, errors = oml("train-reranker", "--resume", "second", "max_epochs=2", "trainer.max_steps=3")
    assert code == 0, errors
    assert OmegaConf.load("second/config.yaml").max_epochs == 2
    code, _, errors = oml("train-reranker", "second", "run_dir=third", *QUICK)  # the same once more
    assert code == 0, errors

    wrong = {
        ("train", "second"): "that is a re-ranker training config, for oml train-reranker; a training config is",
        ("train", "--resume", "second"): "that is a re-ranker training config, for oml train-reranker; a training",
        ("train-reranker", "--resume", "first"): "that is a training config, for oml train; a re-ranker training",
        ("train-reranker", "tiny.yaml"): "that is a training config, for oml train; a re-ranker training config is",
        ("train-reranker", "second", "run_dir=third"): "go on by: oml train-reranker --resume third",
    }
    for arguments, text in wrong.items():
        code, _, errors = oml(*arguments)
        assert (code, len(errors.splitlines())) == (2, 1), arguments
        assert text in errors, arguments


def test_what_is_no_source(oml: Oml, here: Path) -> None:
    Path("run").mkdir()
    Path("run/config.yaml").write_text("extractor: {name: timm}")
    code, _, errors = oml("train-reranker", "run")
    assert (code, len(errors.splitlines())) == (2, 1)
    assert "there is no 'run/checkpoints/best.ckpt'" in errors
    code, _, errors = oml("train-reranker", "data/df.csv")
    assert (code, len(errors.splitlines())) == (2, 1)
    assert "df.csv" in errors


def test_help_has_examples(oml: Oml) -> None:
    code, output, _ = oml("train-reranker", "--help")
    assert code == 0
    assert "oml train-reranker --recipe glyphs_reranker" in output
