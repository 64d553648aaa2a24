"""The run that README shows: three commands on 3,301 text messages, with all that they print.

    python benchmarks/first_run.py DATA [--max_time 30s] [--picture] [--browser COMMAND] [--save]

DATA has train.jsonl and test.jsonl of the SMS Spam Collection; if the labels are numbers,
labels.json has their names. The commands run in an empty folder on one thread. `--save` stores them
with their output in results/first_run.json; `python -m tests.kit.first_run_page` writes the excerpt
of README from it. `--picture` draws the top of the run's report as docs/drawings/report.png with
playwright; the picture and the result both have the checksum of that report. `--browser` names
another Chromium than playwright's, with its flags.
"""

import argparse
import hashlib
import io
import json
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image, PngImagePlugin

from environment import environment

FOLDER = Path(__file__).parent
RESULTS = FOLDER / "results" / "first_run.json"
PICTURE = FOLDER.parent / "docs" / "drawings" / "report.png"
SIZE = (1000, 1130)  # pixels
MODEL = "runs/classification/best"
INPUTS = ("URGENT! You have won a prize, call 09061701461 now", "See you at eight")


def commands(max_time):
    """The three commands, as lists of arguments."""
    return [
        ["train", "messages.jsonl", "--task", "classification", "--max_time", max_time],
        ["evaluate", MODEL, "later.jsonl"],
        ["predict", MODEL, *INPUTS],
    ]


def write_records(source, target):
    """Copies records with the names of their labels; returns their number."""
    path = source.parent / "labels.json"
    names = json.loads(path.read_text(encoding="utf-8"))["labels"] if path.exists() else None
    records = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()]
    with target.open("w", encoding="utf-8") as file:
        for record in records:
            label = names[record["label"]] if names else record["label"]
            print(json.dumps({"input": record["input"], "label": label}), file=file)
    return len(records)


def run_command(arguments, folder):
    """Runs a command in a folder; returns the lines of stderr and stdout in their order."""
    process = subprocess.run(
        [sys.executable, "-m", "miniformer.cli", *arguments],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "COLUMNS": "80"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        check=False,
    )
    if process.returncode:
        sys.exit(f"{arguments[0]} failed:\n{process.stdout}")
    return process.stdout.splitlines()


def draw(report, checksum, browser):
    """Draws the top of a report as a picture of few colors, which names the report."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        sys.exit(
            "--picture needs playwright: pip install playwright && playwright install chromium"
        )
    program, *flags = shlex.split(browser) if browser else [None]
    with sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=program, args=flags)
        page = chromium.new_page(viewport=dict(zip(("width", "height"), SIZE, strict=True)))
        page.goto(report.as_uri())
        content = page.screenshot()
        chromium.close()
    picture = Image.open(io.BytesIO(content)).convert("RGB").quantize(64)
    text = PngImagePlugin.PngInfo()
    text.add_text("report_sha256", checksum)
    picture.save(PICTURE, optimize=True, pnginfo=text)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--max_time", default="30s")
    parser.add_argument("--picture", action="store_true")
    parser.add_argument("--browser")
    parser.add_argument("--save", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        records = {
            "messages.jsonl": write_records(args.data / "train.jsonl", folder / "messages.jsonl"),
            "later.jsonl": write_records(args.data / "test.jsonl", folder / "later.jsonl"),
        }
        outputs = []
        for arguments in commands(args.max_time):
            outputs.append({"arguments": arguments, "output": run_command(arguments, folder)})
            print("\n".join(outputs[-1]["output"]), flush=True)
        report = folder / "runs" / "classification" / "report.html"
        checksum = hashlib.sha256(report.read_bytes()).hexdigest()
        if args.picture:
            draw(report, checksum, args.browser)
    if args.save:
        result = {
            "records": records,
            "commands": outputs,
            "report_sha256": checksum,
            "environment": environment(threads=1),
        }
        RESULTS.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", "utf-8")


if __name__ == "__main__":
    main()
