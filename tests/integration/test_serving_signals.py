"""The signals of `limrank serve`: SIGHUP serves the recipe as it is now, SIGTERM answers what runs."""

import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor

import httpx

from helpers.runs import Run, wait_until

RECIPE = """job: serve
run_dir: {folder}/run
engine: {{kind: fake, latency_ms: 50, max_in_flight: 8}}
serving: {{port: {port}, aliases: [{alias}]}}
"""


def test_a_recipe_is_read_again_and_the_end_is_a_drain(tmp_path):
    recipe, log = tmp_path / "serve.yaml", tmp_path / "serve.log"

    def write(alias, port=0):
        recipe.write_text(RECIPE.format(folder=tmp_path, port=port, alias=alias))

    def said(text):
        wait_until(lambda: run.ended() or text in log.read_text(), text)
        assert text in log.read_text(), log.read_text()[-3000:]

    write("first")
    command = [sys.executable, "-m", "limrank", "serve", str(recipe), "--address", "local"]
    with Run(command, log=log) as run:
        said("serving smollm2-135m-rerank at ")
        url = log.read_text().split(" at ")[1].split()[0]
        with httpx.Client(base_url=url, timeout=60, trust_env=False) as http, ThreadPoolExecutor(1) as pool:

            def names():
                return [model["id"] for model in http.get("/v1/models").json()["data"]]

            assert names() == ["smollm2-135m-rerank", "first"]
            write("second")
            os.kill(run.process.pid, signal.SIGHUP)
            said("updated: serving smollm2-135m-rerank")
            assert names() == ["smollm2-135m-rerank", "second"]
            os.kill(run.process.pid, signal.SIGHUP)
            said("the recipe has not changed")
            write("third", port="none")
            os.kill(run.process.pid, signal.SIGHUP)
            said("warning: the recipe is refused, and the old one is still served: ")
            write("third", port=1)
            os.kill(run.process.pid, signal.SIGHUP)
            said("still served: serving.port cannot change while the server runs")
            assert names() == ["smollm2-135m-rerank", "second"]
            # 400 pairs, 8 at a time, 50 ms each: 2.5 s.
            body = {"query": "q", "documents": [f"passage {number}" for number in range(400)]}
            running = pool.submit(http.post, "/v1/rerank", json=body)
            wait_until(
                lambda: "queue_size_pairs" in (text := httpx.get(f"{url}/metrics").text) and "} 400.0" in text, "it"
            )
            os.kill(run.process.pid, signal.SIGTERM)
            assert running.result().status_code == 200
        assert run.wait() == 0, log.read_text()[-3000:]
        assert run.left() == []
    assert log.read_text().splitlines()[-1] == "smollm2-135m-rerank is no longer served"
