"""This module checks that the ground the tests stand on fails a test when it should."""

from pathlib import Path

import pytest

pytest_plugins = ["pytester"]
pytestmark = pytest.mark.warns("")  # the inner tests' warnings pass by here too


@pytest.fixture
def suite(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A test suite of its own, under our conftest.py and settings."""
    here = Path(__file__).parent
    monkeypatch.delenv("CI", raising=False)
    pytester.makeconftest((here / "conftest.py").read_text())
    pytester.makepyprojecttoml(
        (here.parent / "pyproject.toml").read_text().replace('testpaths = ["tests"]', "")
    )
    return pytester


def test_an_unexpected_warning_fails_the_test(suite: pytest.Pytester) -> None:
    suite.makepyfile("""
        import logging

        def test_it():
            logging.getLogger("torrentfs.node").warning("the disk is slow")
    """)

    result = suite.runpytest_inprocess()

    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*WARNING torrentfs.node: the disk is slow"])


def test_a_warning_in_an_async_test_fails_it(suite: pytest.Pytester) -> None:
    suite.makepyfile("""
        import logging

        async def test_it(nursery):
            logging.getLogger("torrentfs.node").error("lost")
    """)

    suite.runpytest_inprocess().assert_outcomes(failed=1)


def test_an_expected_warning_passes(suite: pytest.Pytester) -> None:
    suite.makepyfile("""
        import logging, pytest

        @pytest.mark.warns("disk is .*")
        def test_it():
            logging.getLogger("torrentfs.node").warning("the disk is %s", "slow")
    """)

    suite.runpytest_inprocess().assert_outcomes(passed=1)


MISSING_PROGRAM = """
    import pytest

    @pytest.mark.needs("no-such-program")
    def test_it():
        pass
"""


def test_a_missing_program_skips_and_says_so(suite: pytest.Pytester) -> None:
    suite.makepyfile(MISSING_PROGRAM)

    result = suite.runpytest_inprocess()

    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["*needs no-such-program, which make setup installs"])


def test_a_missing_program_is_a_failure_in_ci(
    suite: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CI", "true")
    suite.makepyfile(MISSING_PROGRAM)

    suite.runpytest_inprocess().assert_outcomes(errors=1)
