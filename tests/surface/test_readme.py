"""The Python code of README.md, block by block, and of some pages runs as it stands, in folders of their own."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parents[2] / "README.md"
#: pages whose code needs no data of the reader
PAGES = ("losses", "models", "pipelines", "registry", "reranking", "retrieval")
DOCS = [README.parent / "docs" / f"{name}.md" for name in PAGES]
#: what goes before a block: published weights cannot be downloaded here, so others take their place
BEFORE = {
    "zoo": """
from dataclasses import replace
import torch
from oml.const import CKPT_SAVE_ROOT
from oml.models import ViTExtractor
from oml.models.zoo import ZOO, register
from oml.utils.io import calc_file_hash
CKPT_SAVE_ROOT.mkdir(parents=True)
weights = ViTExtractor(None, arch="vits16", normalise_features=False).model.state_dict()
torch.save(weights, CKPT_SAVE_ROOT / "vits16_dino.ckpt")
register(replace(ZOO["vits16_dino"], hash="md5:" + calc_file_hash(CKPT_SAVE_ROOT / "vits16_dino.ckpt")))
"""
}
BLOCKS = dict(re.findall(r"\[comment\]:([\w-]+)-start\n```python\n(.*?)```", README.read_text(), flags=re.DOTALL))
for page in DOCS:
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL)
    BLOCKS[page.stem] = "".join(blocks)


def test_all_blocks_are_found() -> None:
    assert set(BLOCKS) == {"vanilla-train", "vanilla-validation", "lightning", "zoo", *PAGES}
    assert README.read_text().count("```python") == len(BLOCKS) - len(PAGES)
    assert all(BLOCKS.values())


def test_linked_files_exist() -> None:
    links = re.findall(r"\]\(((?!http)[^)#]+)\)", README.read_text())
    assert len(links) > 3
    assert [link for link in links if not (README.parent / link).is_file()] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", BLOCKS)
def test_block_runs(name: str, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(BEFORE.get(name, "") + BLOCKS[name])
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache"), "MPLBACKEND": "agg"}
    done = subprocess.run(
        [sys.executable, script.name], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
