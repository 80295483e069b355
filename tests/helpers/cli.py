"""What tests of commands have in common, beside the fixture `cli`."""


def assert_refused(result: tuple[int, str, str], *words: str) -> None:
    """Asserts that a command ended with exit code 2 and one line of error, in which all `words` are."""
    code, out, err = result
    assert (code, out, err.count("\n")) == (2, "", 1), (out, err)
    assert err.startswith("error: ")
    for word in words:
        assert word in err
