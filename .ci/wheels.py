"""Checks that wheels fit a machine before they travel there: its Python, the versions it has, and each other's needs.

    python .ci/wheels.py FOLDER python=3.12.3 torch=2.11.0 numpy=2.5.2

prints a line for each need that is not met and exits with code 1 where there is one. Needs of packages that are neither
in the folder nor named are not looked at: the machine has them, or `import` says so there.
"""

from __future__ import annotations

import sys
import zipfile
from email.parser import HeaderParser
from pathlib import Path

from packaging.requirements import Requirement
from packaging.tags import Tag, compatible_tags, cpython_tags
from packaging.utils import canonicalize_name, parse_wheel_filename


def problems(folder: Path, there: dict[str, str], own: list[str]) -> list[str]:
    """What does not fit, a line each.

    Args:
        folder: of wheels.
        there: versions on the machine by name, "python" among them.
        own: requirements of the project itself.
    """
    wheels = sorted(folder.glob("*.whl"))
    if not wheels:
        return [f"there must be wheels in {folder}"]
    python = there["python"]
    versions = {name: version for name, version in there.items() if name != "python"}
    needs: list[tuple[str, str]] = [("the project", line) for line in own]
    found: list[str] = []
    fitting = _tags(python)
    for wheel in wheels:
        name, version, _, tags = parse_wheel_filename(wheel.name)
        if name in versions:
            found.append(f"{name} must be there once (got {versions[name]} and {version})")
        versions[name] = str(version)
        if not any((tag.interpreter, tag.abi) in fitting for tag in tags):
            found.append(f"{wheel.name} must be for Python {python}")
        with zipfile.ZipFile(wheel) as opened:
            inside = next(each for each in opened.namelist() if each.endswith(".dist-info/METADATA"))
            metadata = HeaderParser().parsestr(opened.read(inside).decode())
        needs += [(name, f"python{metadata['Requires-Python']}")] if metadata["Requires-Python"] else []
        needs += [(name, line) for line in metadata.get_all("Requires-Dist") or []]
    return found + _unmet(needs, versions | {"python": python})


def _tags(python: str) -> set[tuple[str, str]]:
    """Interpreters and ABIs that a Python takes; the platform was the download's choice."""
    version = tuple(map(int, python.split(".")[:2]))
    tags: list[Tag] = [*cpython_tags(version, platforms=["any"]), *compatible_tags(version, platforms=["any"])]
    return {(tag.interpreter, tag.abi) for tag in tags}


def _unmet(needs: list[tuple[str, str]], versions: dict[str, str]) -> list[str]:
    short = ".".join(versions["python"].split(".")[:2])
    where = {"python_version": short, "python_full_version": versions["python"], "extra": "", "sys_platform": "linux"}
    found = []
    for who, line in needs:
        need = Requirement(line)
        version = versions.get(canonicalize_name(need.name))
        wanted = need.marker is None or need.marker.evaluate(where)
        if wanted and version is not None and not need.specifier.contains(version, prereleases=True):
            found.append(f"{who} needs {need.name}{need.specifier} (got {version})")
    return found


def main(words: list[str]) -> int:
    """The command line."""
    import tomllib

    project = Path(__file__).parents[1] / "pyproject.toml"
    own = tomllib.loads(project.read_text(encoding="utf-8"))["project"]["dependencies"]
    found = problems(Path(words[0]), dict(word.split("=", 1) for word in words[1:]), own)
    print("\n".join(found) or "all wheels fit")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
