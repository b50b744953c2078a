"""make upgrade: the newest versions that pass the whole suite become the pinned ones.

    python constraints/upgrade.py [--work FOLDER]

Resolution is uv's (https://docs.astral.sh/uv/pip/compile/), universal: one file holds what every supported Python gets
on x86-64 and on aarch64, with markers where they differ. `pinned.txt` has the newest versions within pyproject.toml's
ranges, `oldest.txt` the lowest that it admits of what it names itself. Both are written once the pinned versions pass
`make test-all` and the oldest ones `make oldest`, each in a new environment; otherwise neither is touched.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
PINNED, OLDEST = HERE / "pinned.txt", HERE / "oldest.txt"
EXTRAS = {PINNED: ("export", "cpu", "dev"), OLDEST: ("export", "cpu", "test")}
FIRST_PYTHON = "3.11"

Versions = dict[str, tuple[str, ...]]
"""By name of a distribution: its versions, several where Pythons or machines differ."""


def read(text: str) -> Versions:
    """Versions in a file of `name==version ; marker` lines.

    Raises:
        ValueError: a line is another kind of requirement, or holds an option or an address.
    """
    found: dict[str, tuple[str, ...]] = {}
    for line in text.splitlines():
        content = line.partition("#")[0].strip()
        if not content:
            continue
        matched = re.fullmatch(r"([a-z0-9][a-z0-9-]*)==([^\s;@/]+)(\s*;\s*[^@/]+)?", content)
        if matched is None:
            raise ValueError(f"{line!r}: a line is name==version, and a marker where it holds for some machines only")
        found[matched[1]] = (*found.get(matched[1], ()), matched[2])
    return found


def changes(old: Versions, new: Versions) -> list[str]:
    """Lines for people: which distributions moved, came and went."""
    lines = []
    for name in sorted(old.keys() | new.keys()):
        before, after = (" and ".join(versions.get(name, ())) for versions in (old, new))
        if before != after:
            lines.append(f"{name}: {before or 'new'} -> {after or 'gone'}")
    return lines


def without_upper_bounds(pyproject: str) -> str:
    """A pyproject.toml that admits every newer version: it shows what the ranges hold back."""
    return re.sub(r"(\"[A-Za-z0-9_.\[\]-]+>=[^\",;]+),<[^\",;]+", r"\1", pyproject)


def resolve(uv: Path, pyproject: Path, extras: tuple[str, ...], resolution: str) -> str:
    """The content of a constraints file."""
    command = [str(uv), "pip", "compile", str(pyproject), "--universal", "--python-version", FIRST_PYTHON]
    command += ["--resolution", resolution, "--no-header", "--no-annotate", "--quiet"]
    for extra in extras:
        command += ["--extra", extra]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT).stdout


def upgrade(work: Path) -> int:
    """Resolve, say what moves, try it, and write both files; the exit code."""
    print("Resolving ...", flush=True)
    subprocess.run([sys.executable, "-m", "venv", str(work / "uv")], check=True)
    subprocess.run([str(work / "uv/bin/python"), "-m", "pip", "install", "--quiet", "uv"], check=True)
    uv = work / "uv/bin/uv"
    pyproject = ROOT / "pyproject.toml"
    free = work / "pyproject.toml"
    free.write_text(without_upper_bounds(pyproject.read_text()))
    resolved = {
        PINNED: resolve(uv, pyproject, EXTRAS[PINNED], "highest"),
        OLDEST: resolve(uv, pyproject, EXTRAS[OLDEST], "lowest-direct"),
    }
    held = changes(read(resolved[PINNED]), read(resolve(uv, free, EXTRAS[PINNED], "highest")))
    if held:
        print("Held back by the upper bounds in pyproject.toml:\n  " + "\n  ".join(held))
    moved = {path: changes(read(path.read_text()), read(text)) for path, text in resolved.items()}
    for path, lines in moved.items():
        print(f"{path.name}:\n  " + ("\n  ".join(lines) or "nothing moves"))
    if not any(moved.values()):
        return 0
    candidates = {path: work / path.name for path in resolved}
    for path, text in resolved.items():
        what = "Newest versions" if path is PINNED else "Lowest versions"
        heading = f"# {what} within pyproject.toml's ranges that passed the tests. Written by `make upgrade`, "
        candidates[path].write_text(f"{heading}{date.today()}.\n{text}")
    for target, path, variable in (("test-all", PINNED, "VENV"), ("oldest", OLDEST, "OLDEST")):
        if not moved[path]:
            continue
        print(f"make {target} with the new {path.name} ...", flush=True)
        environment, constraints = work / target, f"{variable.replace('VENV', 'PINNED')}_VERSIONS={candidates[path]}"
        result = subprocess.run(["make", target, f"{variable}={environment}", constraints], cwd=ROOT)
        if result.returncode != 0:
            print(f"make {target} failed: nothing was written; the versions that it failed with are in {work}")
            return 1
    for path, candidate in candidates.items():
        if moved[path]:
            shutil.copyfile(candidate, path)
            print(f"Wrote {path.relative_to(ROOT)}")
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="folder for the new environments; default: a temporary one")
    work = parser.parse_args().work
    if work is not None:
        work.mkdir(parents=True, exist_ok=True)
        return upgrade(work.resolve())
    return upgrade(Path(tempfile.mkdtemp(prefix="catp-upgrade-")))


if __name__ == "__main__":
    sys.exit(main())
