"""Table of the parity tests of each family. `python -m tests.parity.table` writes docs/families.md.

It runs the tests of families, and counts for each family the draws that passed each check. A test
that failed makes this fail.
"""

import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path

from miniformer.interop.hf.families import ALL_FAMILIES
from tests.parity.published import FAMILIES
from tests.parity.test_hugging_face import CHECKS, WRITING, writes
from tests.parity.test_hugging_face_texts import BARE, CLASSES

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = ROOT / "docs" / "families.md"
TESTS = ["tests/parity/test_hugging_face.py", "tests/parity/test_hugging_face_texts.py"]


def results():
    """(test or check, family) -> number of passed tests; raises if one failed."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = ["-m", "pytest", *TESTS, f"--junitxml={report}"]
        if subprocess.run([sys.executable, *command], cwd=ROOT, check=False).returncode:
            raise SystemExit("the families are not green; nothing was written")
        counts = Counter()
        for case in ElementTree.parse(report).getroot().iter("testcase"):
            test, _, parameters = case.get("name").rstrip("]").partition("[")
            if test == "test_family":
                check, family, _ = parameters.rsplit("-", 2)
                counts[check, family] += 1
            elif parameters:
                counts[test, parameters] += 1
        return counts


def row(family, counts):
    cells = [f"`{family}`"]
    models = [
        f"`{name}`" for item in ALL_FAMILIES if item.preset == family for name in item.model_classes
    ]
    for check in CHECKS:
        skipped = check in WRITING and not writes(family)
        cells.append("-" if skipped else str(counts[check, family]))
    texts = "test_texts_are_the_same_tokens_and_the_answer_is_theirs"
    cells.append("yes" if counts[texts, family] else "-")
    for table, test in ((CLASSES, "test_classes"), (BARE, "test_a_backbone_alone")):
        known = [f"{name}-{preset}" for name, preset in table if preset == family]
        cells.append("yes" if known and all(counts[test, item] for item in known) else "-")
    return "| " + " | ".join([*cells, ", ".join(models)]) + " |"


def document(counts):
    heads = ["family", *CHECKS, "tokenizer", "classes", "bare", "transformers classes"]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    lines += [row(family, counts) for family in FAMILIES]
    return f"""\
# Published families

Each family is compared with transformers: a tiny transformers model is imported, compared, trained, exported and loaded again by
transformers. Each field of its config class is drawn at random, or `NOT_DRAWN` in `tests/parity/published.py` gives the reason.
`make slow` draws five other configs of each family in every run. A number counts the draws that passed; `-` marks checks that do
not apply to a family or do not test it. `python -m tests.parity.table` writes this page.

- **logits**, **hidden states**: within 2e-5 in float32. **left-padded**: each row of a left-padded batch has the logits that
  transformers gives it alone. **5 steps**: the losses of five AdamW steps, within 1e-4.
- **greedy**: the same tokens, for one prompt and for two of unequal length in a batch. **beams**: the same best hypothesis of
  four beams. Encoders generate no text.
- **export**: transformers loads the exported directory, and its weights are bit-identical. **bare export**: the same for a module
  without metadata of an import; the automatically selected family gives the same logits.
- **tokenizer**: a text has the same tokens here, in transformers and after the export, and the same generated text.
  **classes**: the same for a classifier, with its class names. **bare**: for a backbone without a head.

{chr(10).join(lines)}

XLM-RoBERTa, SmolLM (`llama`), FLAN-T5 (`t5_v1_1`) and NLLB (`m2m_100`) have files of these families, too.
"""


if __name__ == "__main__":
    DOCUMENT.write_text(document(results()), encoding="utf-8")
    print(f"wrote {DOCUMENT.relative_to(ROOT)}")
