"""`gradprism webshop serve`: a goal played over HTTP and in a browser, and what is refused."""

import http.client
import json
import re
import shutil
import subprocess
import threading
from html import unescape
from urllib.parse import urlencode

import pytest

from gradprism.environments.webshop.environment import WebshopEnvironment
from gradprism.environments.webshop.server import make_server
from helpers.cli import assert_refused

NASTY = "<script>alert(1)</script> \"quoted\" 'oak' & \u202etable"
ITEM = {
    "name": NASTY,
    "asin": "A1",
    "full_description": "<img src=x onerror=alert(2)>",
    "pricing": "$9.99",
    "product_category": "Home › Tables › Oak",
    "small_description": ["</p><b>bold</b>"],
    "customization_options": {'si"ze': [{"value": "<b>"}, {"value": "a'b&c"}]},
    "category": "garden",
    "query": "tables",
}
WANTED = {"A1": {"attributes": ["oak"], "instruction": "Find me <i>oak</i>", "instruction_attributes": ["oak"]}}


@pytest.fixture
def server(tmp_path):
    (tmp_path / "items_shuffle.json").write_text(json.dumps([ITEM]))
    (tmp_path / "items_ins_v2.json").write_text(json.dumps(WANTED))
    server = make_server(WebshopEnvironment(data_dir=str(tmp_path)), "train", 0, "127.0.0.1", 0)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def ask(server, method="GET", path="/", form=None, **headers):
    """Status, headers and text of one request."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    body = urlencode(form) if form is not None else None
    connection.request(method, path, body, {"Content-Type": "application/x-www-form-urlencoded", **headers})
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, dict(answer.getheaders()), text


def press(server, **form) -> str:
    """Sends a form as the page would and gives the page that follows."""
    status, headers, _ = ask(server, "POST", form={"token": server.token, **form})
    assert (status, headers["Location"]) == (303, "/")
    return ask(server)[2]


def test_a_whole_goal_is_played_with_everything_escaped(server):
    status, headers, html = ask(server)
    assert status == 200 and "Find me &lt;i&gt;oak&lt;/i&gt;" in html
    assert headers["Content-Security-Policy"].startswith("default-src 'none'; style-src 'self'")
    pages = [press(server, words="oak"), press(server, action="click[a1]"), press(server, action="click[a'b&c]")]
    assert 'class="chosen"' in pages[-1]
    pages.append(press(server, action="click[description]"))
    assert "&lt;img src=x onerror=alert(2)&gt;" in pages[-1]
    pages.append(press(server, action="click[< prev]"))
    pages.append(press(server, action="fly"))
    assert "fly (nothing happens)" in pages[-1]
    for html in pages:
        assert not re.search(r"<(script|img|b|i)\b", html)
    shown = unescape(re.findall(r'<pre id="observation"[^>]*>(.*?)</pre>', pages[-1], re.DOTALL)[0])
    assert shown == server.step.observation
    end = press(server, action="click[buy now]")
    assert '<p class="reward">1.000</p>' in end or '<p class="reward">0.' in end
    assert "r_type" in end and "option_hits" in end and "(the episode is over)" in end
    again = press(server, goal="0")
    assert "Buy Now" not in again and server.actions == []


def test_nothing_is_asked_of_elsewhere(server):
    html = press(server, words="oak") + ask(server, path="/style.css")[2]
    assert "http" not in html.replace("https", "http").split("<title>")[0] and "url(" not in html and "@import" not in html
    assert re.findall(r'(?:src|href|action)="([^"]*)"', html) and set(re.findall(r'(?:src|href)="([^"]*)"', html)) == {"/style.css"}


def test_other_pages_cannot_play(server):
    before = server.step
    assert ask(server, "POST", form={"action": "search[oak]"})[0] == 403
    assert ask(server, "POST", form={"action": "search[oak]", "token": "x" * 22})[0] == 403
    assert ask(server, Host="evil.example")[0] == 421
    assert ask(server, "POST", form={"action": "search[oak]", "token": server.token}, Host="evil.example:80")[0] == 421
    assert server.step is before
    assert ask(server, path="/../../etc/passwd")[0] == 404
    assert ask(server, "POST", form={"token": server.token, "words": "x" * 20_000})[0] == 413
    assert ask(server, "POST", form={"token": server.token, "goal": "99"})[0] == 400
    assert ask(server, "POST", form={"token": server.token, "goal": "-1"})[0] == 400
    assert press(server, words="宿 \x00").count("Total results: 0") == 2  # in the shop and in what the agent sees
    assert ask(server)[0] == 200


def test_addresses_that_others_could_reach_are_refused(cli, server):
    for host in ("0.0.0.0", "example.org", "10.0.0.1", "::"):
        assert_refused(cli("webshop", "serve", "--env-option", "products=20", "--host", host), "is not a loopback address")
    taken = ["webshop", "serve", "--env-option", "products=20", "--split", "train", "--port", server.server_port]
    assert_refused(cli(*taken), "cannot listen there")
    assert_refused(
        cli("webshop", "serve", "--env-option", "products=20", "--index", 9999), "goal 9999: the split has those from 0 to"
    )


def test_a_generated_catalogue_is_written_and_read(cli, tmp_path):
    code, out, _ = cli("webshop", "generate", "--products", 60, "--out", tmp_path / "c")
    assert code == 0 and "60 products" in out
    read, made = WebshopEnvironment(data_dir=str(tmp_path / "c")), WebshopEnvironment(products=60)
    assert [goal.text for goal in read.store.goals] == [goal.text for goal in made.store.goals]
    assert_refused(cli("webshop", "generate", "--out", tmp_path / "c"), "is not empty")


def test_in_a_browser(server, tmp_path):
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium here")
    press(server, words="oak")
    press(server, action="click[a1]")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}", "--virtual-time-budget=2000"]
    dom = subprocess.run(
        [browser, *flags, "--dump-dom", server.address], capture_output=True, text=True, timeout=120, check=True
    ).stdout
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in dom and "<script" not in dom
    assert dom.count("<button") == 10  # open, search, back, prev, two options, three sub-pages and buy
