"""Finds a Chromium for the browser tests; run as a script it installs one where apt-get can.

Nothing is downloaded but the distribution's own package, and only by the script.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
REMEDY = "install the package chromium of your distribution"


def find_chromium() -> str | None:
    """Path of an installed Chromium or Chrome, None if there is none."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


def install_chromium() -> str | None:
    """Install the distribution's package; returns why that cannot be done, None if it was."""
    if shutil.which("apt-get") is None:
        return "there is no apt-get here"
    if os.geteuid() != 0:
        return "only root may run apt-get"
    for command in (["update", "-qq"], ["install", "-qq", "-y", "--no-install-recommends"]):
        packages = ["chromium"] if command[0] == "install" else []
        done = subprocess.run(
            ["apt-get", *command, *packages], capture_output=True, text=True, check=False
        )
        if done.returncode:
            return done.stderr.strip()[-300:] or f"apt-get {command[0]} failed"
    return None if find_chromium() else "the package holds no chromium"


def main() -> None:
    found = find_chromium()
    if found is None:
        reason = install_chromium()
        if reason is not None:
            sys.exit(f"browser tests will be skipped: no Chromium ({reason}); {REMEDY}")
        found = find_chromium()
    sys.stdout.write(f"Chromium: {found}\n")


if __name__ == "__main__":
    main()
