"""The alarms of RL, each on rounds that it is made for and on rounds that are well."""

import json

import pytest

from gradprism.training.doctor import ROUNDS_NEEDED, WINDOW, Doctor, of_round

WELL = {
    "groups_without_gradient": 0.4,
    "success": 0.5,
    "entropy": 0.3,
    "kl": 0.02,
    "clipped_low": 0.01,
    "clipped_high": 0.02,
    "out_of_steps": 8,
    "episodes": 32,
    "invalid_share": 0.1,
    "repeated_share": 0.1,
}


def watch(*parts) -> Doctor:
    """A window of rounds per part, each well but for what the part says."""
    doctor = Doctor()
    for part in parts:
        for _ in range(WINDOW):
            doctor.add({**WELL, **part})
    return doctor


def evaluated(*pairs) -> Doctor:
    doctor = Doctor()
    for greedy, sampled in pairs:
        doctor.add({**WELL, "evaluation/success": greedy, "evaluation/sampled_success": sampled})
    return doctor


@pytest.mark.parametrize(
    ("name", "ill"),
    [
        ("no-gradient", watch({"groups_without_gradient": 0.95})),
        ("no-gradient", watch({"zero_variance_groups": 0.95})),
        ("collapse", watch({}, {"success": 0.7}, {}, {"success": 0.4})),
        ("collapse", evaluated((0.2, 0.2), (0.5, 0.5), (0.35, 0.4), (0.38, 0.4))),
        ("entropy-collapse", watch({}, {"entropy": 0.05})),
        ("entropy-rise", watch({}, {"entropy": 0.7})),
        ("drift", watch({"kl": 0.6})),
        ("clipping", watch({"clipped_low": 0.1, "clipped_high": 0.15})),
        ("timeouts", watch({}, {"out_of_steps": 16})),
        ("refused", watch({"invalid_share": 0.5})),
        ("repeats", watch({"repeated_share": 0.5})),
        ("greedy-gap", evaluated((0.3, 0.3), (0.2, 0.35), (0.2, 0.32))),
    ],
)
def test_each_alarm_is_raised_by_what_it_is_made_for(name, ill):
    assert [alarm.name for alarm in ill.alarms()] == [name]
    assert ill.raised[name] >= ROUNDS_NEEDED.get(name, 1)


def test_an_alarm_of_groups_that_only_penalties_tell_apart_says_so():
    (alarm,) = watch({"zero_variance_groups": 0.95, "groups_without_gradient": 0.05}).alarms()
    assert alarm.what == "95% of the groups earn all alike, so that penalties or the length of the way teach, and not success"
    (none,) = watch({"zero_variance_groups": 1.0, "groups_without_gradient": 0.95}).alarms()
    assert none.what == "95% of the groups have no gradient of the reward"


def test_a_round_is_the_mean_of_its_updates():
    first = {"episodes": 8, "success": 0.5, "entropy": 1.0, "kl": 0.1, "clipped_low": 0.0, "loss": 3.0}
    later = [
        {"clipped_low": 0.3, "kl": 0.5, "loss": 1.0},
        {"entropy": 0.5, "kl": 0.3, "clipped_low": 0.6, "evaluation/success": 0.2},
    ]
    merged = {"episodes": 8, "success": 0.5, "entropy": 0.75, "kl": 0.3, "clipped_low": 0.3, "evaluation/success": 0.2, "loss": 1.0}
    assert of_round([first, *later]) == pytest.approx(merged)
    doctor = Doctor.of([{"evaluation/success": 0.4}, first, *later, first])
    assert doctor.before == {"evaluation/success": 0.4}
    assert [row["kl"] for row in doctor.rounds] == pytest.approx([0.3, 0.1])


def test_rounds_that_are_well_or_too_few_raise_nothing():
    assert watch({}, {}, {}).raised == {}
    few = Doctor()
    for _ in range(WINDOW - 1):
        assert few.add({**WELL, "groups_without_gradient": 1.0, "invalid_share": 0.9, "kl": 5.0}) == []
    assert [alarm.name for alarm in few.add({**WELL, "invalid_share": 0.9})] == ["no-gradient", "drift", "refused"]
    # A dip of one evaluation, and many timeouts from the first round on, are nothing that training has done.
    assert evaluated((0.5, 0.5), (0.3, 0.3), (0.5, 0.5), (0.3, 0.3)).raised == {}
    assert watch({"out_of_steps": 30}, {"out_of_steps": 31}).raised == {}


def test_an_alarm_is_told_once_and_the_state_says_all():
    doctor = watch({}, {"entropy": 0.7})
    assert [alarm.name for alarm in doctor.alarms()] == ["entropy-rise"] and doctor.add({**WELL, "entropy": 0.9}) == []
    again = Doctor()
    again.state = json.loads(json.dumps(doctor.state))
    assert again == doctor
    assert "entropy has risen from 0.300 to" in str(again.alarms()[0]) and "; lower the learning rate" in str(again.alarms()[0])


def test_a_fall_from_the_start_is_a_collapse():
    doctor = Doctor()
    doctor.begin({"evaluation/success": 0.3})
    assert doctor.add({**WELL, "evaluation/success": 0.05}) == []
    [alarm] = doctor.add({**WELL, "evaluation/success": 0.1})
    assert alarm.name == "collapse" and "the best of 30.0%" in alarm.what


def test_a_log_shows_what_the_training_saw():
    """Of a round with several updates the last row has the evaluation, and each has figures of its update."""
    doctor = Doctor()
    doctor.begin({"evaluation/success": 0.6, "evaluation/sampled_success": 0.6})
    rows: list[dict[str, float]] = [{"step": 0, "evaluation/success": 0.6, "evaluation/sampled_success": 0.6}]
    for number in range(WINDOW):
        first, last = {**WELL, "clipped_high": 0.0}, {"clipped_high": 0.6, "evaluation/success": 0.1 + number / 100}
        doctor.add(of_round([first, last]))
        rows += [{"step": 2 * number + 1, **first}, {"step": 2 * number + 2, **last}]
    assert Doctor.of(rows) == doctor
    assert doctor.raised == {"collapse": 2, "clipping": WINDOW}


def test_figures_that_a_run_does_not_have_raise_nothing():
    doctor = Doctor()
    for _ in range(3 * WINDOW):
        doctor.add({"success": 0.5})
    assert doctor.alarms() == []
