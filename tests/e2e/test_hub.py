"""Upload and download through huggingface_hub, with a local server as the hub."""

import base64
import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest


class Hub(BaseHTTPRequestHandler):
    """The API that huggingface_hub uses, with commits in memory."""

    commits: dict  # repository -> commit -> path -> content, the latest last
    created: list  # the requests that create a repository
    messages: list  # repository and message of each commit
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        if self.path == "/api/repos/create":
            given = json.loads(body)
            self.created.append(given)
            name = (
                f"{given['organization']}/{given['name']}"
                if given.get("organization")
                else given["name"]
            )
            if name.startswith("nobody/"):
                return self.answer({"error": "You may not write there"}, 403)
            self.commits.setdefault(name, {})
            return self.answer({"url": f"http://{self.headers['Host']}/{name}"})
        name = "/".join(self.path.split("/")[3:5])
        if "/preupload/" in self.path:
            files = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                     for file in json.loads(body)["files"]]  # fmt: skip
            return self.answer({"files": files})
        lines = [json.loads(line) for line in body.splitlines()]
        files = {line["value"]["path"]: base64.b64decode(line["value"]["content"])
                 for line in lines if line["key"] == "file"}  # fmt: skip
        header = next(line["value"] for line in lines if line["key"] == "header")
        self.messages.append((name, header["summary"]))
        commit = hashlib.sha1(body).hexdigest()
        self.commits[name][commit] = files
        url = f"http://{self.headers['Host']}/{name}/commit/{commit}"
        return self.answer({"success": True, "commitOid": commit, "commitUrl": url})

    def do_GET(self):
        parts = self.path.partition("?")[0].strip("/").split("/")
        if parts[0] == "api":
            name, revision = "/".join(parts[2:4]), parts[5] if len(parts) > 5 else "main"
        else:
            name, revision = "/".join(parts[:2]), parts[3]
        retained = self.commits.get(name, {})
        commit = next(reversed(retained), None) if revision == "main" else revision
        if commit not in retained:
            return self.answer({"error": "Repository not found"}, 404, code="RepoNotFound")
        files = retained[commit]
        if parts[0] == "api" and parts[4] == "tree":
            return self.answer([{"type": "file", "path": file, "size": len(data), "oid": "0"}
                                for file, data in files.items()])  # fmt: skip
        if parts[0] == "api":
            siblings = [{"rfilename": file} for file in files]
            return self.answer({"id": name, "sha": commit, "siblings": siblings})
        file = "/".join(parts[4:])
        if file not in files:
            return self.answer({"error": "no such file"}, 404, code="EntryNotFound")
        tag = hashlib.sha1(files[file]).hexdigest()
        return self.send(files[file], 200, {"X-Repo-Commit": commit, "ETag": f'"{tag}"'})

    do_HEAD = do_GET  # noqa: N815

    def answer(self, value, status=200, code=None):
        more = {} if code is None else {"X-Error-Code": code}
        self.send(json.dumps(value).encode(), status, {"Content-Type": "application/json", **more})

    def send(self, data, status, headers):
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub():
    Hub.commits, Hub.created, Hub.messages = {}, [], []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


SCRIPT = """
import torch, miniformer
from miniformer import cli
from miniformer.config.architectures import architecture_config

sizes = dict(vocab_size=300, d_model=16, n_heads=2, n_layers=2, d_ff=24, max_seq_len=32)
config = miniformer.TransformerConfig(**architecture_config("llama", **sizes))
model = miniformer.Transformer(config).eval()
ids = torch.arange(6)[None]
first = model(ids)

# a model alone, two commits of it
one = model.push_to_hub("user/alone").rpartition("/")[2]
with torch.no_grad():
    model.head.weight.add_(1)
model.push_to_hub("user/alone", message="more")
load = miniformer.Transformer.from_pretrained
assert torch.equal(load("user/alone")(ids), model(ids))
assert torch.equal(load("user/alone", revision=one)(ids), first)

# a model with its tokenizer and task, as theirs and as ours
miniformer.Tokenizer.train("byte", ["abc"], 300).save("theirs.json")
miniformer.to_hf(model, "theirs")
miniformer.Tokenizer.from_path("theirs.json").save("theirs/tokenizer.json")
from miniformer.model.hub import upload_directory
from pathlib import Path
their_commit = upload_directory(Path("theirs"), "user/theirs").rpartition("/")[2]
pipeline = miniformer.from_hf("user/theirs")
assert torch.equal(pipeline.model(ids), model(ids))
first_commit = pipeline.push_to_hub("user/whole", private=True).rpartition("/")[2]
again = miniformer.load("user/whole")
options = {"max_new_tokens": 4, "temperature": 0.0}
assert again.generate("abc", **options) == pipeline.generate("abc", **options)
assert again.hf_metadata == pipeline.hf_metadata
model.push_to_hub("user/secret", private=True)

# a revision, of both kinds of directory
with torch.no_grad():
    pipeline.model.head.weight.add_(1)
pipeline.push_to_hub("user/whole", message="later")
miniformer.to_hf(pipeline, "theirs-2")
upload_directory(Path("theirs-2"), "user/theirs")
before, after = model(ids), pipeline.model(ids)
assert not torch.equal(before, after)
assert torch.equal(miniformer.load("user/whole", revision=first_commit).model(ids), before)
assert torch.equal(miniformer.load("user/whole").model(ids), after)
assert torch.equal(miniformer.from_hf("user/theirs", revision=their_commit).model(ids), before)
assert torch.equal(miniformer.from_hf("user/theirs").model(ids), after)
assert cli.main(["import", "user/theirs", "ours", "--revision", their_commit]) == 0
assert torch.equal(miniformer.load("ours").model(ids), before)

for call, words in (
    (lambda: load("user/none"), "user/none: no such directory, and the hub returned no model"),
    (lambda: miniformer.load("user/theirs"), "is a Hugging Face model; convert it with"),
    (lambda: model.push_to_hub("nobody/x"), "nobody/x: upload to the hub failed"),
    (lambda: model.push_to_hub("x"), "a repository's name is 'user/name', not 'x'"),
    (lambda: load("theirs", revision="main"), "needs a name on the hub; theirs is a directory"),
):
    try:
        call()
    except miniformer.UserError as error:
        assert words in str(error), error
    else:
        raise AssertionError(words)
print("all is well")
"""


@pytest.mark.catches(
    "private_models_are_public",
    "private_pipelines_are_public",
    "imports_are_of_the_latest_revision",
)
def test_hub_upload_and_download_round_trip(hub, tmp_path):
    pytest.importorskip("huggingface_hub")
    more = {"HF_ENDPOINT": hub, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": "hf_none",
            "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0", "OMP_NUM_THREADS": "1"}  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=tmp_path, env={**os.environ, **more},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "all is well" in done.stdout
    # Earlier versions of huggingface_hub send `private`.
    private = {
        f"{item['organization']}/{item['name']}": item.get("private")
        or item.get("visibility") == "private"
        for item in reversed(Hub.created)  # the first request counts
    }
    assert private == {
        "user/alone": False, "user/theirs": False, "user/whole": True, "user/secret": True,
        "nobody/x": False,
    }  # fmt: skip
    assert Hub.messages == [
        ("user/alone", "Upload model"), ("user/alone", "more"), ("user/theirs", "Upload model"),
        ("user/whole", "Upload model"), ("user/secret", "Upload model"), ("user/whole", "later"),
        ("user/theirs", "Upload model"),
    ]  # fmt: skip
    pushed = Hub.commits["user/whole"]
    files = set(next(iter(pushed.values())))
    assert {"config.json", "model.safetensors", "tokenizer.json", "task.json"} <= files
    assert not any(Path(file).suffix in (".bin", ".py", ".pt") for file in files)
