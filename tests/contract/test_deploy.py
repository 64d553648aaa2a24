"""Files of `deploy/`: their flags exist, and the parsers of their programs accept them."""

import configparser
import dataclasses
import re
import shutil
import subprocess

import pytest

from miniformer.serving.config import ServeConfig
from tests.kit import ROOT

DEPLOY = ROOT / "deploy"
FLAGS = {field.name for field in dataclasses.fields(ServeConfig)}


@pytest.mark.parametrize("path", sorted(DEPLOY.iterdir()), ids=lambda path: path.name)
def test_flags_exist(path):
    text = path.read_text(encoding="utf-8")
    commands = [
        line for line in text.splitlines() if "miniformer serve" in line or line.startswith("CMD")
    ]
    assert commands
    for line in commands:
        assert {*re.findall(r"--([a-z_]+)", line)} <= FLAGS | {"start", "rm"}


def test_unit_of_systemd(tmp_path):
    path = DEPLOY / "miniformer.service"
    parser = configparser.ConfigParser(strict=True, interpolation=None)
    parser.optionxform = str
    parser.read(path, encoding="utf-8")
    assert parser.sections() == ["Unit", "Service", "Install"]
    assert int(parser["Service"]["TimeoutStopSec"]) > 10 + 5
    if shutil.which("systemd-analyze"):
        unit = tmp_path / path.name
        command = parser["Service"]["ExecStart"]
        unit.write_text(path.read_text().replace(command.split()[0], shutil.which("true")))
        result = subprocess.run(
            ["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False
        )
        assert "miniformer" not in result.stderr


def test_dockerfile():
    """The rules of hadolint that matter here, and files that exist."""
    text = (DEPLOY / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    instructions = [line.split()[0] for line in lines]
    known = {"FROM", "RUN", "COPY", "USER", "EXPOSE", "HEALTHCHECK", "STOPSIGNAL", "ENTRYPOINT"}
    assert {*instructions} <= known | {"CMD"}
    assert instructions[0] == "FROM"
    assert re.search(r":\d", lines[0])  # a version
    assert instructions.index("USER") < instructions.index("ENTRYPOINT")  # not root
    for line in lines:
        if line.startswith("RUN apt-get"):
            assert "--no-install-recommends" in line
            assert "rm -rf /var/lib/apt/lists/*" in line
        if line.startswith("COPY"):
            for name in line.split()[1:-1]:
                assert (ROOT / name).exists(), name


def test_nginx_configuration(tmp_path):
    """nginx accepts it, where it is installed."""
    text = (DEPLOY / "nginx.conf").read_text(encoding="utf-8")
    assert text.count("{") == text.count("}")
    assert "proxy_buffering off;" in text
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if program:
        path = tmp_path / "nginx.conf"
        path.write_text(
            f"pid {tmp_path}/pid;\nerror_log {tmp_path}/log;\nevents {{}}\n"
            f"http {{\naccess_log off;\n{text}}}\n"
        )
        result = subprocess.run(
            [program, "-t", "-c", path], capture_output=True, text=True, check=False
        )
        assert result.returncode == 0, result.stderr
