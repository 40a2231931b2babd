"""A page in Chromium without a window."""

import shutil
import subprocess
from pathlib import Path

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def find_browser() -> str | None:
    return next((found for name in NAMES if (found := shutil.which(name))), None)


def open_page(page: Path, profile: Path, *options: str) -> str:
    """The document as its scripts have left it.

    Args:
        profile: an empty folder.
        options: of the browser, such as ``--screenshot=FILE`` with ``--window-size=360,900``.
    """
    browser = find_browser()
    assert browser is not None
    arguments = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", f"--user-data-dir={profile}"]
    arguments += ["--host-resolver-rules=MAP * ~NOTFOUND", "--disable-background-networking", *options]
    kind = [] if any(option.startswith(("--screenshot", "--print")) for option in options) else ["--dump-dom"]
    line = [browser, *arguments, *kind, page.resolve().as_uri()]
    done = subprocess.run(line, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    return done.stdout
