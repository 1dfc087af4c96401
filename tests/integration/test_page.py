"""The page in a real browser: Chromium without a window, over HTTP, on the fake engine."""

import re
import shutil
import subprocess

import pytest

from helpers.backend import EngineBackend
from helpers.served import serving_api
from limrank.config import ModelConfig, ScoringConfig
from limrank.serving.access import Access
from limrank.serving.api import build_api
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


@pytest.fixture(scope="module")
def page():
    backend = EngineBackend()
    backend.recipe = SCORING
    with serving_api(build_api(backend, Served.of(ModelConfig(id="served"), SCORING))) as url:
        yield url


def test_a_link_ranks_by_each_mode_side_by_side(page, tmp_path):
    link = f"{page}/#query=merge&passage=one%20passage&passage={HOSTILE.replace(' ', '%20')}&rank"
    found = open_page(link, tmp_path, "--dump-dom")
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
