"""The page in a real browser: Chromium without a window, over HTTP, on the fake engine."""

import asyncio
import html
import json
import re
import shutil
import subprocess
import time
from importlib import resources

import httpx
import pytest
from starlette.responses import Response

from helpers.backend import EngineBackend
from helpers.served import serving_api
from limrank.config import ModelConfig, ScoringConfig
from limrank.serving.access import Access
from limrank.serving.api import build_api
from limrank.serving.errors import engine_unavailable
from limrank.serving.key_sources import hashed, new_key
from limrank.serving.keys import KeyRing
from limrank.serving.protocol import Served
from limrank.serving.settings import ApiSettings

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SCORING = ScoringConfig(mode="budget", max_think_tokens=20)
HOSTILE = "<img src=x onerror=document.title='broken'><script>document.title='broken'</script>"

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")


def open_page(url, tmp_path, *switches):
    """Open a URL, and give the page's HTML when its requests are answered."""
    profile = tmp_path / "profile"
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}"]
    command += ["--virtual-time-budget=20000", *switches, url]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


def followed(url, tmp_path, *switches, until, within_s=60):
    """Open a URL, and give the page's HTML as soon as an expression is true in it. The clock is the real one: a
    virtual one does not wait for an answer that is streamed."""
    client = pytest.importorskip("websockets.sync.client")
    profile = tmp_path / "followed"
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}"]
    browser = subprocess.Popen(
        [*command, "--remote-debugging-port=0", "--remote-allow-origins=*", *switches, url], stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + within_s
    try:
        port_file = profile / "DevToolsActivePort"
        while not port_file.exists() or not port_file.read_text().strip():
            assert time.monotonic() < deadline, "Chromium did not start"
            time.sleep(0.05)
        port = port_file.read_text().split()[0]
        targets = httpx.get(f"http://127.0.0.1:{port}/json", trust_env=False, timeout=30).json()
        target = next(each for each in targets if each["type"] == "page")
        with client.connect(target["webSocketDebuggerUrl"], max_size=None) as socket:

            def evaluated(expression):
                parameters = {"expression": expression, "returnByValue": True}
                socket.send(json.dumps({"id": 1, "method": "Runtime.evaluate", "params": parameters}))
                return json.loads(socket.recv())["result"]["result"].get("value")

            while not evaluated(until):
                assert time.monotonic() < deadline, evaluated("document.body.outerHTML")
                time.sleep(0.05)
            return evaluated("document.documentElement.outerHTML")
    finally:
        browser.terminate()
        browser.wait(20)


def said(text):
    return f"document.getElementById('message')?.textContent.includes('{text}')"


@pytest.fixture(scope="module")
def page():
    backend = EngineBackend()
    backend.recipe = SCORING
    with serving_api(build_api(backend, Served.of(ModelConfig(id="served"), SCORING))) as url:
        yield url


def test_a_link_ranks_by_each_mode_side_by_side(page, tmp_path):
    link = f"{page}/#query=merge&passage=one%20passage&passage={HOSTILE.replace(' ', '%20')}&rank"
    found = followed(link, tmp_path, until=said("Ranked in"))
    assert "<title>limrank</title>" in found and "Ranked in" in found
    columns = re.findall(r'<section class="column"><h2>(\w+)</h2>(.*?)</section>', found, re.DOTALL)
    shown = {mode: column for mode, column in columns if mode}
    assert list(shown) == ["direct", "budget"]
    for mode, column in shown.items():
        assert column.count("<li") == 2
        scores = [float(score) for score in re.findall(r"<output>([\d.]+)</output>", column)]
        assert len(scores) == 2 and scores == sorted(scores, reverse=True)
        # What a passage says is text.
        assert "&lt;img src=x" in column and "<img" not in column
        assert ("Chain of thought" in column) == (mode == "budget")


def test_it_asks_for_a_key_where_the_server_does(tmp_path):
    access = Access(keys=KeyRing({"me": hashed(new_key())}))
    api = build_api(EngineBackend(), Served.of(ModelConfig(id="served"), ScoringConfig()), ApiSettings(access=access))
    with serving_api(api) as url:
        found = open_page(f"{url}/", tmp_path, "--dump-dom")
    assert re.search(r'<label id="key-label">', found)
    assert "this server asks for a key" in found


@pytest.mark.parametrize("width", [390, 1200])
def test_it_fits_a_phone_and_a_desk(page, tmp_path, width):
    image = tmp_path / "page.png"
    open_page(f"{page}/#rank", tmp_path, f"--window-size={width},1000", f"--screenshot={image}")
    header = image.read_bytes()[:24]
    assert header[1:4] == b"PNG"
    assert int.from_bytes(header[16:20]) == width


def slow_page(latency_ms):
    backend = EngineBackend(max_in_flight=2, fault={"latency_ms": latency_ms})
    backend.recipe = SCORING
    api = build_api(backend, Served.of(ModelConfig(id="served"), SCORING))
    api.backend = backend
    return api


def columns_of(found):
    columns = re.findall(r'<section class="column"><h2>(\w+)</h2>(.*?)</section>', found, re.DOTALL)
    return {mode: column for mode, column in columns if mode}


def driven(api, script):
    """The API, with more code at the end of the page's own: the policy of the page takes no other."""

    async def app(scope, receive, send):
        if scope["type"] == "http" and scope["path"] == "/page.js":
            own = (resources.files("limrank.serving") / "static" / "page.js").read_text()
            return await Response(own + script, media_type="text/javascript")(scope, receive, send)
        return await api(scope, receive, send)

    return app


# Keeps each state of the budget's column: its summary, its first row, and whether its rows are still the same elements.
WATCH = """
const states = [];
let marked = null, animated = 0;
const animate = Element.prototype.animate;
Element.prototype.animate = function (...given) { animated += 1; return animate.apply(this, given); };
new MutationObserver(() => {
  const column = [...document.querySelectorAll(".column")].find((each) => each.querySelector("h2").textContent === "budget");
  const rows = column ? [...column.querySelectorAll("li")] : [];
  if (!rows.length) return;
  marked ??= rows.at(-1);
  const bar = column.querySelector("progress");
  const state = { summary: column.querySelector(".summary").textContent, rows: rows.length, kept: rows.includes(marked),
    order: rows.map((row) => row.querySelector(".text").textContent), chains: column.querySelectorAll(".chain").length,
    bar: bar.hidden ? null : [bar.value, bar.max], stop: !$("stop").hidden, animated };
  states.push(state);
  document.body.dataset.states = JSON.stringify(states.slice(-300));
  WHEN
}).observe($("results"), { subtree: true, childList: true, characterData: true, attributes: true });
"""
LINK = "/#query=merge" + "".join(f"&passage=passage%20{number}" for number in range(8)) + "&rank"


def states_of(found):
    return json.loads(html.unescape(re.search(r'data-states="([^"]*)"', found).group(1)))


@pytest.mark.parametrize("motion", [[], ["--force-prefers-reduced-motion"]])
def test_direct_scores_are_shown_first_and_rows_move_as_chains_end(tmp_path, motion):
    with serving_api(driven(slow_page(150), WATCH.replace("WHEN", ""))) as url:
        found = followed(url + LINK, tmp_path, *motion, until=said("Ranked in"))
    states = states_of(found)
    assert "Ranked in" in found
    counted = [state for state in states if re.search(r"\d of 8 chains", state["summary"])]
    assert counted[0]["rows"] == 8 and counted[0]["chains"] == 0 and counted[0]["stop"]
    assert {state["summary"].split(" · ")[1] for state in counted} >= {"0 of 8 chains"}
    assert len({state["chains"] for state in states}) >= 3
    assert all(state["kept"] for state in states)
    assert any(state["bar"] and 0 < state["bar"][0] < state["bar"][1] for state in states)
    orders = {tuple(state["order"]) for state in states if state["rows"] == 8}
    assert len(orders) > 1 and states[-1]["bar"] is None
    assert bool(states[-1]["animated"]) != bool(motion)
    assert re.search(r'<button[^>]* id="stop"[^>]* hidden', found)


@pytest.mark.parametrize(
    "how",
    ['$("stop").click()', 'document.body.dispatchEvent(new KeyboardEvent("keydown", { key: "Escape", bubbles: true }))'],
)
def test_it_stops(tmp_path, how):
    api = slow_page(150)
    when = f"if (bar.value >= 1 && bar.value < 4 && !bar.hidden && !window.stopped) {{ window.stopped = true; {how}; }}"
    with serving_api(driven(api, WATCH.replace("WHEN", when))) as url:
        found = followed(url + LINK, tmp_path, until=said("Stopped."))
        deadline = time.monotonic() + 5
        while api.backend.engine.limiter.requests and time.monotonic() < deadline:
            time.sleep(0.01)
    assert "Stopped." in found and "Ranked in" not in found
    assert columns_of(found)["budget"].count("<li") == 8
    assert api.backend.engine.limiter.requests == 0


def test_an_error_in_a_stream_is_said(tmp_path):
    class Crashing(EngineBackend):
        recipe = SCORING

        async def stream(self, query, texts, options):
            async for update in super().stream(query, texts, options):
                yield update
                if update.ranked:
                    await asyncio.sleep(0.2)
                    raise engine_unavailable()

    with serving_api(build_api(Crashing(), Served.of(ModelConfig(id="served"), SCORING))) as url:
        found = followed(url + LINK, tmp_path, until=said("the engine is not up"))
    assert re.search(r'id="message"[^>]*class="error"[^>]*>the engine is not up', found)
    assert re.search(r'<button[^>]* id="stop"[^>]* hidden', found)
