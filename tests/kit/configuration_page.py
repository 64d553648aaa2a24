"""Reference of all settings: `python -m tests.kit.configuration_page` writes docs/configuration.md.

`tests/contract/test_configuration.py` compares the page with the configs.
"""

import json

from miniformer import registry
from miniformer.config import GenerationConfig, TransformerConfig
from miniformer.config.flags.reference import describe_fields
from miniformer.train_config import TrainConfig
from tests.kit import ROOT

DOCUMENT = ROOT / "docs" / "configuration.md"
INTRODUCTION = """\
# Configuration

All settings with their types, defaults and limits, as the code has them. `python -m tests.kit.configuration_page` writes this
page. `null` is Python's `None`. `miniformer train --print_config > run.yaml` prints the settings of a run as a YAML file
with the same descriptions; `--config run.yaml` reads it, and flags override it. The names are those of Python too:
`miniformer.train(..., max_epochs=3)`, `TransformerConfig(d_model=64)`, `pipeline.generate(..., top_k=40)`.

- [Training](#training): flags of `miniformer train`, fields of `TrainConfig`
- [Model](#model): keys of `--model_config`, fields of `TransformerConfig`
- [Tasks](#tasks): keys of `--task_config`
- [Generation](#generation): flags of `miniformer generate`, fields of `GenerationConfig`
"""


def page():
    """The text of the page."""
    sections = [INTRODUCTION, "## Training\n"]
    for heading, fields in describe_fields(TrainConfig):
        sections += [f"### Training: {heading}\n", table(fields)]
    sections += ["## Model\n", *(table(fields) for _, fields in describe_fields(TransformerConfig))]
    sections += ["## Tasks\n", TASKS]
    for name in registry.builtin_names("task"):
        fields = [
            field for _, part in describe_fields(registry.get("task", name)) for field in part
        ]
        sections += [f"### Task {name}\n", table(fields) if fields else "No options.\n"]
    sections += ["## Generation\n", *(table(part) for _, part in describe_fields(GenerationConfig))]
    return "\n".join(sections)


TASKS = """\
Some fields, such as the classes, are derived from the training data if they are not given. `task.json` in the model directory
stores all of them.
"""


def table(fields):
    lines = ["| name | type | default | limits | meaning |", "|---|---|---|---|---|"]
    for field in fields:
        default = json.dumps(field.default, ensure_ascii=False)
        cells = [f"`{field.name}`", field.type, f"`{default}`", field.limits, field.meaning]
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    DOCUMENT.write_text(page(), encoding="utf-8")
    print(f"wrote {DOCUMENT.relative_to(ROOT)}")
