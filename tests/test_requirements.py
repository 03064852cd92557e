import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

from helpers.doctor import TESTED_UP_TO

ROOT = Path(__file__).resolve().parent.parent
# Known vulnerabilities below these: see the release notes of each.
FLOORS = {
    "transformers": "5.17",
    "torch": "2.11",
    "pillow": "13.0.0",
    "jupyterlab": "4.5.7",
    "jupyter-server": "2.20.0",
}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.fixture(scope="module")
def pins() -> dict[str, str]:
    """Package name to version of every line in requirements.txt."""
    text = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    lines = [line.split("#")[0].strip() for line in text.splitlines()]
    lines = [line for line in lines if line and line != "-e ."]
    found = {}
    for line in lines:
        requirement = Requirement(line)
        (specifier,) = requirement.specifier
        assert specifier.operator == "==", line
        assert "*" not in specifier.version, line
        found[normal(requirement.name)] = specifier.version
    assert len(found) == len(lines), "a package is listed twice"
    return found


@pytest.fixture(scope="module")
def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.fixture(scope="module")
def workflow() -> dict:
    """The jobs of the workflow that tests."""
    return yaml.safe_load((ROOT / ".github/workflows/tests.yml").read_text(encoding="utf-8"))["jobs"]


def test_the_lock_holds_the_same_versions_with_hashes(pins):
    entries = (ROOT / "requirements.lock").read_text(encoding="utf-8").replace("\\\n", " ").splitlines()
    entries = [line for line in entries if line.strip() and not line.startswith("#")]
    assert all("--hash=sha256:" in entry for entry in entries)
    locked = {}
    for entry in entries:
        requirement = Requirement(entry.split(" --hash")[0])
        locked.setdefault(normal(requirement.name), set()).add(str(requirement.specifier).removeprefix("=="))
    for name, version in pins.items():
        assert locked[name] == {version}


def test_the_helpers_are_installed_too():
    assert "-e ." in (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("package", FLOORS)
def test_no_version_below_the_floor(pins, package):
    assert Version(pins[package]) >= Version(FLOORS[package])


def test_pins_satisfy_the_package(pins, project):
    for line in project["dependencies"]:
        requirement = Requirement(line)
        if normal(requirement.name) in pins:
            assert pins[normal(requirement.name)] in requirement.specifier, line


def test_the_doctor_knows_the_same_floors(project):
    doctor = sys.modules["helpers.doctor"]
    requirements = map(Requirement, project["dependencies"])
    specifiers = {normal(requirement.name): requirement.specifier for requirement in requirements}
    for package, floor in doctor.FLOORS.items():
        assert f">={floor}" in str(specifiers[package]).split(",")


def test_conda_environment_has_the_same_versions(pins):
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    *conda, pip = environment["dependencies"]
    assert pip == {"pip": ["-r requirements.txt"]}, "everything else comes from requirements.txt itself"
    versions = dict(re.match(r"([\w-]+)=?([\w.]*)", line).groups() for line in conda)
    assert versions["pytorch"] == pins["torch"]
    assert "flash-attn" in versions


def test_flash_attn_is_only_mentioned(pins):
    assert "flash-attn" not in pins
    assert "flash-attn" in (ROOT / "requirements.txt").read_text(encoding="utf-8")


def test_every_import_of_the_helpers_is_declared(project):
    declared = {normal(Requirement(line).name) for line in project["dependencies"]}
    distributions = packages_distributions()
    for file in (ROOT / "helpers").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module]
            for name in {name.split(".")[0] for name in names} - sys.stdlib_module_names:
                assert {normal(found) for found in distributions.get(name, [name])} & declared, (
                    f"{file.relative_to(ROOT)} imports {name}, which pyproject.toml does not declare"
                )
                assert name not in ("training", "benchmarks", "tests"), file


def test_workflows_test_the_oldest_the_pinned_and_the_newest(pins, workflow):
    pairs = [(row["transformers"], row["torch"]) for row in workflow["cpu"]["strategy"]["matrix"]["include"]]
    newest = f"{TESTED_UP_TO['transformers']}.0"
    assert pairs == [("5.17.0", "2.11.0"), (pins["transformers"], pins["torch"]), (newest, "2.15.0")]


def test_workflows_test_the_oldest_and_the_newest_python(workflow, project):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    oldest, newest = re.search(r"Python (3\.\d+) to (3\.\d+)", readme).groups()
    pythons = [row["python"] for row in workflow["cpu"]["strategy"]["matrix"]["include"]]
    assert (pythons[0], pythons[-1]) == (oldest, newest)
    assert project["requires-python"] == f">={oldest}"


def test_workflows_check_and_format_as_contributors_do(workflow):
    commands = [step.get("run") for step in workflow["lint"]["steps"]]
    assert {"ruff check .", "ruff format --check ."} <= set(commands)


def test_what_is_tested_is_what_may_be_installed(project):
    (transformers,) = (Requirement(line) for line in project["dependencies"] if line.startswith("transformers"))
    newest = Version(TESTED_UP_TO["transformers"])
    assert f"{newest}.9" in transformers.specifier
    assert f"{newest.major}.{newest.minor + 1}" not in transformers.specifier
    assert f"transformers {FLOORS['transformers']} to {newest}" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_ci_runs_what_the_readme_says():
    script = (ROOT / ".ci/run").read_text(encoding="utf-8")
    assert "pip install" in script
    assert "-r requirements.txt" in script
    assert script.rstrip().endswith("\npytest")
