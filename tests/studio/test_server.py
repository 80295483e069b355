"""Whom the server answers, and what it never gives away."""

import json
import shutil
import threading
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from gradprism.routing.routes import Routes
from gradprism.studio.resources import Resources
from gradprism.studio.server import POLICY, make_app, serve
from gradprism.studio.static_files import STATIC
from helpers.probes import make_probe
from helpers.studio import ATTACK, HOSTILE, columns_of, make_run
from helpers.tiny import sample_trajectories

PORT, TOKEN, SECRET = 8126, "the-token", "root:x:0:0"
HOSTS = ["evil.example", "evil.example:8126", "127.0.0.1", "127.0.0.1:8127", "localhost.evil.example:8126", "[::1]:8126", ""]


@pytest.fixture
def tree(tmp_path):
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "passwd").write_text(SECRET)
    shown = tmp_path / "shown"
    make_probe(shown / "probe", trajectories=[*sample_trajectories(20), HOSTILE])
    Routes.save(_route(shown / "probe"), shown / "route")
    return shown


def _route(folder):
    from gradprism.routing.routes import route

    return route(folder)


def client(tree: Path, token: str | None = TOKEN, **options) -> TestClient:
    app = make_app(Resources([str(tree)], **options), TOKEN, PORT)
    made = TestClient(app, base_url=f"http://127.0.0.1:{PORT}", raise_server_exceptions=False, follow_redirects=False)
    if token is not None:
        made.cookies.set(f"gradprism-{PORT}", token)
    return made


def ids(asked: TestClient) -> dict[str, str]:
    return {entry["kind"]: entry["id"] for entry in asked.get("/api/index.json").json()["entries"]}


def test_the_printed_address_leaves_a_cookie_that_scripts_and_other_sites_do_not_get(tree):
    asked = client(tree, token=None)
    answer = asked.get(f"/?token={TOKEN}")
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie and "samesite=strict" in cookie and f"gradprism-{PORT}={TOKEN}" in cookie
    page = asked.get("/")
    assert page.status_code == 200 and 'content="server"' in page.text and TOKEN not in page.text
    for name in STATIC[1:]:
        assert asked.get(f"/{name}").status_code == 200
    assert asked.get("/api/index.json").json()["api"] == 1


@pytest.mark.parametrize("token", [None, "", "the-toke", "the-token2"])
def test_a_wrong_token_gets_nothing(tree, token):
    asked = client(tree, token)
    for path in (
        "/",
        "/app.js",
        "/api/index.json",
        f"/api/index.json?token={TOKEN}",
        "/?token=",
        "/?token=wrong",
        "/?token=%FF%00",
        "/nothing",
    ):
        answer = asked.get(path)
        assert answer.status_code == 403 and "sample" not in answer.text, path
        assert "set-cookie" not in answer.headers
    assert asked.post("/api/corpus/aaaaaaaaaaaa/routes/aaaaaaaaaaaa/override", json={}).status_code == 403


@pytest.mark.parametrize("host", HOSTS)
def test_a_name_that_was_bound_to_this_machine_is_refused(tree, host):
    """DNS rebinding: the browser asks 127.0.0.1 and believes it to be the attacker's site, to which it would send nothing secret."""
    for path in ("/", f"/?token={TOKEN}", "/api/index.json"):
        answer = client(tree).get(path, headers={"host": host})
        assert answer.status_code == 403 and "refused: this server is not" in answer.text


def test_the_names_of_this_machine_are_answered(tree):
    for host in ("127.0.0.1:8126", "localhost:8126", "LOCALHOST:8126"):
        assert client(tree).get("/api/index.json", headers={"host": host}).status_code == 200


def test_another_sites_request_is_refused(tree):
    asked = client(tree)
    for origin in ("http://evil.example", "null", "http://127.0.0.1:9999", "https://127.0.0.1:8126"):
        for ask in (asked.get, asked.post):
            answer = ask("/api/index.json", headers={"origin": origin})
            assert answer.status_code == 403 and "another site" in answer.text
    assert asked.get("/api/index.json", headers={"origin": "http://127.0.0.1:8126"}).status_code == 200


def test_every_answer_says_what_pages_may_do(tree, monkeypatch):
    asked = client(tree)
    monkeypatch.setattr(Resources, "index", lambda self: 1 / 0)
    answers = [asked.get(path) for path in ("/", "/app.js", "/api/nothing.json", "/none", "/api/index.json")]
    answers += [client(tree, "wrong").get("/"), asked.put("/")]
    assert [answer.status_code for answer in answers] == [200, 200, 404, 404, 500, 403, 405]
    for answer in answers:
        assert answer.headers["content-security-policy"] == POLICY
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "access-control-allow-origin" not in answer.headers
    assert "unsafe" not in POLICY and "default-src 'none'" in POLICY
    assert answers[4].json()["error"]["message"] == "/api/index.json: failed (ZeroDivisionError)"


@pytest.mark.parametrize(
    "path",
    [
        "/api/../../../secret/passwd",
        "/api/..%2f..%2f..%2fsecret%2fpasswd",
        "/api/%2e%2e/%2e%2e/secret/passwd",
        "/..%2f..%2fsecret/passwd",
        "/app.js/../../secret/passwd",
        "/static/../index.html",
        "/api/corpus/..%2f..%2fsecret/meta.json",
        "/api/corpus/{probe}/../../../secret/passwd",
        "/api/corpus/{probe}/trajectory/..%2f..%2fpasswd.json",
        "/api/corpus/{probe}/trajectory/-1.json",
        "/api/corpus/{probe}/trajectory/1e3.json",
        "/api/corpus/{probe}/meta.json%00",
        "/api//etc/passwd",
        "/api/{tree}/probe/corpus.jsonl",
    ],
)
def test_no_path_is_taken_from_an_address(tree, path):
    asked = client(tree)
    answer = asked.get(path.format(probe=ids(asked)["probe"], tree=tree))
    assert answer.status_code == 404 and SECRET not in answer.text, answer.text


def test_links_that_lead_out_are_left_out_and_told(tree):
    outside = tree.parent / "secret"
    make_probe(outside / "probe")
    (tree / "folder").symlink_to(outside / "probe")
    (tree / "round").symlink_to(tree)
    asked = client(tree)
    index = asked.get("/api/index.json").json()
    assert [entry["kind"] for entry in index["entries"]] == ["probe", "route"]
    [problem] = index["problems"]
    assert "folder: is a link that leads out" in problem["message"] and "name the folder" in problem["hint"]

    corpus = tree / "probe" / "corpus.jsonl"
    corpus.unlink()
    corpus.symlink_to(outside / "passwd")
    index = asked.get("/api/index.json").json()
    assert "corpus.jsonl is a link that leads out of shown" in index["entries"][0]["problem"]["message"]
    for name in ("meta.json", "columns.bin", "previews.bin", "trajectory/0.json", "search.bin?q=root"):
        answer = asked.get(f"/api/corpus/{index['entries'][0]['id']}/{name}")
        assert answer.status_code == 422 and SECRET not in answer.text
        assert "leads out of shown" in answer.json()["error"]["message"]

    manifest = tree / "route" / "routing.json"
    manifest.unlink()
    manifest.symlink_to(outside / "passwd")
    told = {entry["kind"]: entry["problem"] for entry in asked.get("/api/index.json").json()["entries"]}
    assert "routing.json is a link that leads out" in told["route"]["message"]


def test_within_the_roots_links_are_followed(tree):
    (tree / "store").mkdir()
    (tree / "probe" / "corpus.jsonl").rename(tree / "store" / "corpus.jsonl")
    (tree / "probe" / "corpus.jsonl").symlink_to(tree / "store" / "corpus.jsonl")
    asked = client(tree)
    assert asked.get(f"/api/corpus/{ids(asked)['probe']}/meta.json").status_code == 200


def test_hostile_text_comes_as_data_of_its_own_type(tree):
    asked = client(tree)
    answer = asked.get(f"/api/corpus/{ids(asked)['probe']}/trajectory/20.json")
    assert answer.headers["content-type"] == "application/json"
    assert answer.json()["messages"][1]["content"] == f"look at {ATTACK}"
    missing = asked.get("/api/<script>alert(1)</script>")
    assert missing.status_code == 404 and missing.headers["content-type"] == "application/json"


def test_what_has_not_changed_is_not_sent_again(tree):
    asked = client(tree)
    path = f"/api/corpus/{ids(asked)['probe']}/columns.bin"
    first = asked.get(path)
    assert columns_of(first.content)[0]["n"] == 21
    again = asked.get(path, headers={"if-none-match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


def test_an_override_is_kept_in_the_route(tree):
    asked = client(tree)
    known = ids(asked)
    meta = asked.get(f"/api/corpus/{known['probe']}/meta.json").json()
    [route] = meta["routes"]
    rows = [row for row, side in enumerate(Routes.load(tree / "route").frame["route"]) if side == "rl"][:3]
    path = f"/api/corpus/{known['probe']}/routes/{route['id']}/override"
    body = {"rows": rows, "side": "sft", "reason": f"easy {ATTACK}", "version": route["version"]}
    answer = asked.post(path, json=body)
    assert answer.status_code == 200 and (answer.json()["n_sft"], answer.json()["n_overrides"]) == (14, 3)
    _, columns = columns_of(asked.get(f"/api/corpus/{known['probe']}/routes/{route['id']}.bin").content)
    assert [columns["side"][row] for row in rows] == ["sft"] * 3 and [columns["cut"][row] for row in rows] == ["rl"] * 3
    assert {columns["reason"][row] for row in rows} == {f"easy {ATTACK}"}
    assert len((tree / "route" / "sft.jsonl").read_text().splitlines()) == 14

    stale = asked.post(path, json=body)
    assert stale.status_code == 409 and "has changed since it was read" in stale.json()["error"]["message"]
    body |= {"version": answer.json()["version"]}
    for change, message in (
        ({"reason": " "}, "give a reason"),
        ({"side": "all"}, "choose sft, none, rl or both"),
        ({"rows": [21]}, "rows must be 0 to 20"),
        ({"rows": []}, "one at least"),
        ({"rows": ["0"]}, "is not what the page sends"),
        ({"rows": "0"}, "is not what the page sends"),
    ):
        refused = asked.post(path, json=body | change)
        assert refused.status_code == 422 and message in refused.json()["error"]["message"], change
    assert asked.post(path, content=json.dumps(body), headers={"content-type": "text/plain"}).status_code == 422
    assert asked.post(path, content=b"x" * (1 << 25), headers={"content-type": "application/json"}).status_code == 422
    back = asked.post(path, json=body | {"side": None, "reason": ""})
    assert back.status_code == 200 and back.json()["n_overrides"] == 0


def test_a_step_of_a_run_is_not_overridden(tree):
    make_run(tree / "run")
    step = tree / "run" / "stages" / "route-0123456789abcdef" / "route"
    shutil.copytree(tree / "route", step)
    shutil.rmtree(tree / "route")
    for root in (tree, step):
        asked = TestClient(make_app(Resources([str(root), str(tree / "probe")]), TOKEN, PORT), base_url=f"http://127.0.0.1:{PORT}")
        asked.cookies.set(f"gradprism-{PORT}", TOKEN)
        entry = next(entry for entry in asked.get("/api/index.json").json()["entries"] if entry["kind"] == "route")
        [route] = asked.get(f"/api/corpus/{entry['corpus']}/meta.json").json()["routes"]
        assert "is a step of a run" in route["read_only"]["message"]
        body = {"rows": [0], "side": "none", "reason": "x", "version": route["version"]}
        answer = asked.post(f"/api/corpus/{entry['corpus']}/routes/{route['id']}/override", json=body)
        assert answer.status_code == 422 and "gradprism route" in answer.json()["error"]["hint"]


@pytest.mark.parametrize("while_it_serves", [True, False])
def test_a_failure_of_reading_ahead_is_told_only_while_the_server_runs(while_it_serves, tree, monkeypatch):
    told, begun, go = [], threading.Event(), threading.Event()
    monkeypatch.setattr(threading, "excepthook", lambda args: told.append(args.exc_type))

    class Failing(Resources):
        def warm(self):
            self.thread = threading.current_thread()
            begun.set()
            go.wait(20)
            raise RuntimeError("cannot schedule new futures after interpreter shutdown")

    resources = Failing([str(tree)])

    def run(self, sockets):
        assert begun.wait(20)
        if while_it_serves:
            go.set()
            resources.thread.join(20)
        raise KeyboardInterrupt

    monkeypatch.setattr("uvicorn.Server.run", run)
    serve(resources, port=0, browser=False)
    assert told == ([RuntimeError] if while_it_serves else [])
    go.set()
    resources.thread.join(20)
    assert not resources.thread.is_alive() and told == ([RuntimeError] if while_it_serves else [])
