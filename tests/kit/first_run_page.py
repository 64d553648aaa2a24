"""Run shown in README: `python -m tests.kit.first_run_page` writes it from its result.

`tests/contract/test_measured.py` compares the page with benchmarks/results/first_run.json.
"""

import json
import re
import shlex

from tests.kit import ROOT

DOCUMENT = ROOT / "README.md"
RESULTS = ROOT / "benchmarks" / "results" / "first_run.json"
_EXCERPT = re.compile(r"(?<=```text\n)\$ miniformer train .*?(?=```)", re.DOTALL)
LEFT_OUT = "  ..."
# Beginnings of the lines that are shown.
SHOWN = {
    "train": (
        "miniformer ", "tokenizer:", "training data:", "validation data:", "model:",
        "  model_size:", "  lr:", "  checkpoint_metric:", "step ", "early stopping", "report:",
        "validation accuracy", "use it:",
    ),
    "evaluate": (
        "classification on", "metric ", "accuracy ", "macro f1 ", "wrong,", "  later.jsonl:",
    ),
    "predict": ("{",),
}  # fmt: skip
FIRST = {"step ": 3, "  later.jsonl:": 1}  # of these only the first ones


def result():
    """The saved run."""
    return json.loads(RESULTS.read_text(encoding="utf-8"))


def is_shown(lines, index, command):
    """True for a line of a command's output that README shows."""
    line = lines[index]
    if command == "evaluate" and index and lines[index - 1].startswith("  later.jsonl:"):
        return is_shown(lines, index - 1, command)
    if not line.startswith(SHOWN[command]):
        return False
    for start, count in FIRST.items():
        if line.startswith(start):
            return sum(text.startswith(start) for text in lines[:index]) < count
    return True


def excerpt():
    """The commands with a part of their output."""
    blocks = []
    for command in result()["commands"]:
        arguments, lines = command["arguments"], command["output"]
        shown = [f"$ {shlex.join(['miniformer', *arguments])}".replace("'", '"')]
        for index, line in enumerate(lines):
            if is_shown(lines, index, arguments[0]):
                shown.append(line)
            elif shown[-1] != LEFT_OUT:
                shown.append(LEFT_OUT)
        blocks.append("\n".join(shown) + "\n")
    return "\n".join(blocks)


def page(text):
    """The page with the excerpt of now."""
    return _EXCERPT.sub(lambda match: excerpt(), text)


if __name__ == "__main__":
    DOCUMENT.write_text(page(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
