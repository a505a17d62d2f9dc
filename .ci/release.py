"""Prepares a release: checks, version, changelog, tag, wheel, source archive and image.

    python .ci/release.py 0.2.0 --dry-run    everything, in a clone that is thrown away
    python .ci/release.py 0.2.0              the same; then main gets the commit and the tag

Run it with the development environment's Python (`make release VERSION=0.2.0 DRY_RUN=1`). It works in a
fresh clone, so that nothing but committed files gets into a release. It pushes and uploads nothing:
it prints the commands that do.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import shutil
import subprocess
import sys
from datetime import UTC, date, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parents[1]
UNRELEASED = "## [Unreleased]"


class ReleaseRefused(Exception):
    """The release cannot be made; the message says what to do."""


def parse_version(text: str) -> tuple[int, int, int]:
    """Returns the three numbers of a version such as `0.2.0`.

    Raises:
        ReleaseRefused: it is not one.
    """
    if not re.fullmatch(r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)", text):
        raise ReleaseRefused(f"{text!r} is not a version: use three numbers, such as 0.2.0")
    major, minor, patch = map(int, text.split("."))
    return major, minor, patch


def with_version(pyproject: str, version: str) -> str:
    """Returns `pyproject.toml` with another version.

    Raises:
        ReleaseRefused: the version is lower than the present one, or there is none.
    """
    found = re.search(r'^version = "([^"]+)"$', pyproject, re.MULTILINE)
    if found is None:
        raise ReleaseRefused("pyproject.toml has no version")
    if parse_version(version) < parse_version(found[1]):
        raise ReleaseRefused(f"{version} is lower than the present version, {found[1]}")
    return pyproject[: found.start(1)] + version + pyproject[found.end(1) :]


def with_release(changelog: str, version: str, day: date) -> str:
    """Returns the changelog with its unreleased entries under the new version.

    Raises:
        ReleaseRefused: nothing is unreleased, or the version is there already.
    """
    if f"## [{version}]" in changelog:
        raise ReleaseRefused(f"CHANGELOG.md has a section for {version} already")
    before, heading, after = changelog.partition(UNRELEASED)
    if not re.search(r"^- ", after.partition("\n## [")[0], re.MULTILINE):
        raise ReleaseRefused(f"CHANGELOG.md has no entry under {UNRELEASED}")
    return f"{before}{heading}\n\n## [{version}] - {day:%Y-%m-%d}{after}"


def release_notes(changelog: str, version: str) -> str:
    """Returns a version's section of the changelog, without its heading."""
    section = changelog.partition(f"## [{version}]")[2].partition("\n## [")[0]
    return section.partition("\n")[2].strip()


def run(*command: str | Path, cwd: Path = ROOT) -> None:
    """Shows a command and runs it; a failure ends the release."""
    print("+", *command, flush=True)
    subprocess.run(command, cwd=cwd, check=True)


def output(*command: str) -> str:
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout


def check_state(version: str) -> None:
    """Refuses to release from a tree or a branch that users would not get."""
    if output("git", "status", "--porcelain").strip():
        raise ReleaseRefused("there are uncommitted changes: commit or stash them")
    if output("git", "branch", "--show-current").strip() != "main":
        raise ReleaseRefused("releases are made from main: git switch main")
    if output("git", "tag", "--list", f"v{version}").strip():
        raise ReleaseRefused(f"the tag v{version} is there already")


def prepare(clone: Path, version: str) -> str:
    """Writes version and changelog in the clone, commits and tags them; returns the notes."""
    pyproject, changelog = clone / "pyproject.toml", clone / "CHANGELOG.md"
    pyproject.write_text(with_version(pyproject.read_text("utf-8"), version), "utf-8")
    day = datetime.now(UTC).date()
    changelog.write_text(with_release(changelog.read_text("utf-8"), version, day), "utf-8")

    run("git", "commit", "--quiet", "--all", "--message", f"release: {version}", cwd=clone)
    run("git", "tag", "--annotate", f"v{version}", "--message", f"convserve {version}", cwd=clone)
    return release_notes(changelog.read_text("utf-8"), version)


def docker_answers() -> bool:
    """Returns True if there is a Docker engine."""
    if shutil.which("docker") is None:
        return False
    return subprocess.run(["docker", "info"], capture_output=True).returncode == 0


def build(clone: Path, tag: str) -> list[Path]:
    """Builds wheel and source archive, and the image if there is a Docker engine."""
    run(sys.executable, "-m", "build", "--outdir", "dist", ".", cwd=clone)
    if docker_answers():
        command = ["docker", "build", "--network", "host", "--target", "service", "--tag", tag, "."]
        run(*command, cwd=clone)
        run("docker", "run", "--rm", tag, "--version")
    else:
        print("no Docker engine: the image is not built")
    return sorted((clone / "dist").iterdir())


def main() -> int:
    """Makes the release, or tries it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("version", help="such as 0.2.0")
    parser.add_argument(
        "--dry-run", action="store_true", help="change nothing outside a temporary folder"
    )
    parser.add_argument(
        "--skip-checks", action="store_true", help="do not run .ci/run: it has just passed"
    )
    options = parser.parse_args()
    version = options.version
    try:
        parse_version(version)
        check_state(version)
        with TemporaryDirectory() as folder:
            clone = Path(folder) / "convserve"
            run("git", "clone", "--quiet", ROOT, clone)
            notes = prepare(clone, version)
            if not options.skip_checks:
                run("bash", ".ci/run", cwd=clone)
            tag = f"convserve:{version}" + "-dry-run" * options.dry_run
            try:
                files = build(clone, tag)
            finally:
                if options.dry_run and docker_answers():
                    run("docker", "image", "rm", "--force", tag)

            print(f"\nconvserve {version}\n\n{notes}\n")
            for path in files:
                digest = hashlib.sha256(path.read_bytes()).hexdigest()
                print(f"{digest}  {path.name}  {path.stat().st_size / 1e6:.1f} MB")
            if options.dry_run:
                print("\ndry run: nothing was changed")
                return 0

            run("git", "pull", "--quiet", "--ff-only", "--tags", clone, "main")
            (ROOT / "dist").mkdir(exist_ok=True)
            for path in files:
                shutil.copy(path, ROOT / "dist" / path.name)
    except ReleaseRefused as error:
        print(f"release: {error}", file=sys.stderr)
        return 2
    except subprocess.CalledProcessError as error:
        print(f"release: {error.cmd[0]} failed with exit code {error.returncode}", file=sys.stderr)
        return 1
    print(f"\nNow publish it:\n  git push origin main v{version}\n  twine upload dist/*-{version}*")
    print(f"  docker tag convserve:{version} <registry>/convserve:{version} && docker push ...")
    return 0


if __name__ == "__main__":
    sys.exit(main())
