from pathlib import Path

import pytest

TESTS = """
    import pytest

    def test_skips():
        pytest.skip("no data here")

    @pytest.mark.gpu
    def test_gpu():
        pytest.skip("no GPU here")

    @pytest.mark.xfail(strict=True)
    def test_known_defect():
        assert False

    def test_passes():
        pass
"""


@pytest.fixture
def project(pytester: pytest.Pytester) -> pytest.Pytester:
    pytester.makeconftest(Path(__file__).with_name("conftest.py").read_text())
    pytester.makeini("[pytest]\nmarkers =\n    gpu: needs an accelerator\n")
    return pytester


def test_skip_is_a_failure_in_ci_except_on_gpu(project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    project.makepyfile(TESTS)
    result = project.runpytest_inprocess()
    result.assert_outcomes(failed=1, skipped=1, passed=1, xfailed=1)
    result.stdout.fnmatch_lines(["*CI=true allows no skipped test*no data here*"])


def test_skip_is_a_skip_elsewhere(project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    project.makepyfile(TESTS)
    project.runpytest_inprocess().assert_outcomes(skipped=2, passed=1, xfailed=1)


def test_skipped_module_is_a_failure_in_ci(project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    project.makepyfile('import pytest\npytest.skip("no such package", allow_module_level=True)')
    result = project.runpytest_inprocess()
    assert result.ret != 0
    result.assert_outcomes(errors=1)


def test_gpu_tests_run_only_when_asked_for(project: pytest.Pytester) -> None:
    project.makepyfile("import pytest\n\n@pytest.mark.gpu\ndef test_gpu():\n    pass\n")
    project.runpytest_inprocess().assert_outcomes(skipped=1)
    project.runpytest_inprocess("-m", "gpu").assert_outcomes(passed=1)
