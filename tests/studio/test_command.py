"""The command by itself: an address, an end, and one line for what cannot be."""

import json
import re
import signal
import socket
import subprocess
import sys

import httpx
import pytest

from gradprism.experiments.results import Results, write_results
from gradprism.studio.resources import Resources
from helpers.cli import assert_refused
from helpers.probes import make_probe
from helpers.studio import make_run


def test_the_server_answers_until_it_is_interrupted(tmp_path):
    make_probe(tmp_path / "probe")
    command = [sys.executable, "-m", "gradprism", "studio", str(tmp_path), "--no-browser", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        address = process.stdout.readline().strip()
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/\?token=[\w-]{32}", address)
        base = address.partition("/?")[0]
        with httpx.Client() as client:
            assert client.get(f"{base}/api/index.json").status_code == 403
            assert client.get(address).headers["location"] == "/"
            index = client.get(f"{base}/api/index.json").json()
            assert [entry["kind"] for entry in index["entries"]] == ["probe"]
            assert client.get(base).text.startswith("<!doctype html>")
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
        assert process.stdout.read() == "" and process.stderr.read() == "only this machine is answered; Ctrl-C ends it\n"


def test_a_port_that_is_taken_is_told(cli, tmp_path):
    make_probe(tmp_path / "probe")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert_refused(
            cli("studio", tmp_path, "--port", port, "--no-browser"), f"--port {port}: Address already in use", "give another"
        )


def test_without_the_extra_the_pages_can_be_exported(cli, tmp_path, monkeypatch):
    make_probe(tmp_path / "probe")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert_refused(cli("studio", tmp_path), "the studio needs starlette", "pip install 'gradprism[studio]'", "export its pages")
    assert cli("studio", tmp_path, "--export", tmp_path / "a.html")[0] == 0


def test_hours_of_rl_are_those_of_the_probes_run(tmp_path):
    make_run(tmp_path / "run")
    make_probe(tmp_path / "run" / "stages" / "probe-0123456789abcdef" / "probe")
    stages = {"sft-1": {"kind": "sft", "wall_seconds": 30.0}, "rl-1": {"kind": "rl", "wall_seconds": 600.0}}
    trained = {"seed": 0, "success": {"unseen": "1"}, "n_sft": 11, "n_rl": 10, "stages": list(stages)}
    arm = {"name": "rl", "title": "RL", "group": "table1", "runs": [trained]}
    about = {"name": "toy", "environment": "toy", "arms": [arm], "stages": stages, "tasks": {"unseen": [{"id": "a"}]}}
    write_results(tmp_path / "run", Results.model_validate(about))
    resources = Resources([str(tmp_path)])
    index = json.loads(resources.get("index.json", {}).content)
    corpus = next(entry["corpus"] for entry in index["entries"] if entry["corpus"])
    costs = json.loads(resources.get(f"corpus/{corpus}/meta.json", {}).content)["costs"]
    assert costs["rl"] == {"seconds_per_task": 60.0, "seconds_per_token": 0, "source": "run: RL on 10 tasks took 600 s"}
    assert costs["sft"]["seconds_per_task"] == pytest.approx(30 / 11)
