"""docs/extending.md works as printed, and a package of parts is found once it is installed."""

import os
import re
import subprocess
import sys

from miniformer import registry
from tests.kit import ROOT, environment, run_python

PLUGIN = """
import torch
from torch import nn

class UnitNorm(nn.Module):
    def __init__(self, dim, *, eps, bias):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(dim)), eps

    def forward(self, x):
        return self.weight * x / x.norm(dim=-1, keepdim=True).clamp_min(self.eps)

def cube(x):
    return x ** 3
"""
PROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "miniformer-tiny-plugin"
version = "1.0"

[project.entry-points."miniformer.norm"]
unitnorm = "tiny_plugin:UnitNorm"

[project.entry-points."miniformer.activation"]
cube = "tiny_plugin:cube"

[tool.hatch.build.targets.wheel]
packages = ["tiny_plugin"]
"""
USE = """
import torch
from miniformer import Transformer, TransformerConfig, assert_no_leaks
config = TransformerConfig.from_dict({
    "vocab_size": 20, "d_model": 16, "n_heads": 2, "n_layers": 1, "max_seq_len": 16,
    "causal": True, "dropout": 0.0, "norm": "unitnorm", "activation": "cube",
})
model = Transformer(config)
ids = torch.randint(0, 20, (2, 8))
model.cross_entropy(model.features(ids).flatten(0, 1), ids.flatten()).backward()
torch.optim.SGD(model.parameters(), lr=1e-3).step()
assert_no_leaks(model)
model.save_pretrained("model")
assert torch.equal(Transformer.from_pretrained("model")(ids), model.eval()(ids))
print(type(model.final_norm).__module__)
"""


def test_extending_examples_run_in_order(tmp_path):
    text = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) >= 12
    assert sum(len(block.splitlines()) > 30 for block in blocks) <= 5
    done = run_python("-c", "\n".join(blocks), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "torch.Size([2, 5, 100])" in done.stdout
    assert "torch.Size([2, 3])" in done.stdout
    assert "4 decode steps" in done.stdout
    assert len(re.findall(r"^ *\d+\.\d\d \S+$", done.stdout, re.MULTILINE)) == 2
    assert done.stderr == ""
    assert "passed          nan: All weights are finite" in done.stdout
    assert "written to weights.pt" in done.stdout
    assert f"{4 * 2 * 2 * 8 * 32} trained" in done.stdout


def test_extending_page_has_the_interfaces_of_all_registry_kinds():
    text = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (.*) \|$", text, re.MULTILINE)
    assert rows == [(kind, registry.interface(kind)) for kind in registry.kinds()]


def test_installed_package_of_parts_is_found(tmp_path):
    project, target = tmp_path / "project", tmp_path / "installed"
    (project / "tiny_plugin").mkdir(parents=True)
    (project / "tiny_plugin" / "__init__.py").write_text(PLUGIN)
    (project / "pyproject.toml").write_text(PROJECT)
    without = run_python("-c", USE, cwd=tmp_path)
    assert "unknown norm 'unitnorm'; known: layernorm, rmsnorm" in without.stderr
    assert "unknown activation 'cube'" in without.stderr
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation",
         "--no-index", "--target", str(target), str(project)],
        check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    paths = os.pathsep.join(filter(None, [str(target), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-c", USE], cwd=tmp_path, env={**environment(), "PYTHONPATH": paths},
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "tiny_plugin"
