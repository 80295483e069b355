from gradprism.runtime.progress import Progress, quiet, say


def test_plain_lines_where_there_is_no_terminal(capsys):
    with Progress("probing", 4, interval=0) as progress:
        progress.advance(1)
        progress.advance(3, "loss 0.5")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("probing: 1/4 in 0 s, ")
    assert lines[1] == "probing: 4/4 in 0 s · loss 0.5"


def test_short_work_says_nothing_and_quiet_says_nothing_at_all(capsys):
    with Progress("short", 2) as progress:
        progress.advance(2)
    with quiet(), Progress("silent", 2, interval=0) as progress:
        progress.advance(1)
        say("hidden")
    assert capsys.readouterr().err == ""


def test_a_failure_is_not_reported_as_finished(capsys):
    try:
        with Progress("failing", 2, interval=0) as progress:
            progress.advance(1)
            raise RuntimeError
    except RuntimeError:
        pass
    assert "2/2" not in capsys.readouterr().err


def test_steps_of_an_earlier_attempt_do_not_make_the_rest_look_short(capsys, monkeypatch):
    clock = 100.0
    monkeypatch.setattr("gradprism.runtime.progress.time.monotonic", lambda: clock)
    with Progress("SFT", 0, interval=0) as progress:
        clock += 50  # loading
        progress.begin(20, done=10)
        clock += 4
        progress.advance(2)  # 2 s a step, 8 to go
        clock += 16
        progress.advance(8)
    assert capsys.readouterr().err.splitlines() == ["SFT: 12/20 in 54 s, 16 s left", "SFT: 20/20 in 70 s"]


def test_lines_of_a_log_come_ever_more_seldom_and_promise_nothing_from_one_step(capsys, monkeypatch):
    clock = 0.0
    monkeypatch.setattr("gradprism.runtime.progress.time.monotonic", lambda: clock)
    with Progress("probing", 192) as progress:
        for _ in range(190):
            clock += 9 if clock == 0 else 2
            progress.advance()
    lines = capsys.readouterr().err.splitlines()
    assert lines[:3] == ["probing: 1/192 in 9 s", "probing: 6/192 in 19 s, 589 s left", "probing: 16/192 in 39 s, 429 s left"]
    assert len(lines) <= 10


def test_a_note_without_a_step_is_shown(capsys):
    with Progress("RL", 30, interval=0) as progress:
        progress.advance(0, "round 1: 3 of 64 episodes")
    assert capsys.readouterr().err.splitlines()[0] == "RL: 0/30 in 0 s · round 1: 3 of 64 episodes"
