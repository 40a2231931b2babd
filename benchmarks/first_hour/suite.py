"""The tests that are marked ``gpu``."""

import importlib.util
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from typing import Any

from first_hour.outcome import NotMeasured, Settings
from first_hour.workers import BENCHMARKS

TESTS = BENCHMARKS.parent / "tests" / "gpu"


def gpu_tests(settings: Settings) -> dict[str, Any]:
    """Their numbers, and the names and last lines of those that failed.

    Raises:
        RuntimeError: a test failed, or pytest did.
        NotMeasured: pytest is not installed.
    """
    if importlib.util.find_spec("pytest") is None:
        raise NotMeasured("pytest is not installed")
    report = settings.folder / "pytest.xml"
    # Options that need the suite's plugins are left out.
    command = ["-m", "pytest", "-o", "addopts=", "--import-mode=importlib", "-p", "no:cacheprovider", "-m", "gpu"]
    command += [f"--junitxml={report}", "--rootdir", str(TESTS.parents[1]), str(TESTS)]
    done = subprocess.run([sys.executable, *command], cwd=TESTS.parents[1], capture_output=True, text=True)
    if not report.is_file():
        raise RuntimeError(done.stdout[-4_000:] + done.stderr[-4_000:])
    suite = next(ElementTree.parse(report).iter("testsuite"))
    count = {name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")}
    count["passed"] = count["tests"] - count["failures"] - count["errors"] - count["skipped"]
    faults = [
        f"{case.get('name')}: {(fault.get('message') or fault.text or '').strip().splitlines()[0]}"
        for case in suite.iter("testcase")
        for fault in (*case.findall("failure"), *case.findall("error"))
    ]
    if faults or done.returncode:
        told = f"{count['failures'] + count['errors']} of {count['tests']} failed; " + "; ".join(faults)
        raise RuntimeError(done.stdout[-6_000:] + "\n" + told.replace("\n", " "))
    return count
