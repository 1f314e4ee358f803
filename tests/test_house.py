"""The rules of the house that no tool checks."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from gateway import __version__

ROOT = Path(__file__).parent.parent
CODE = sorted(path for room in ("gateway", "converters", "benchmarks") for path in (ROOT / room).rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
MAX_LINES = 400
# Words that say nothing of what a thing is.
EMPTY_WORDS = {
    *("manager", "helper", "helpers", "processor", "handler"),
    *("util", "utils", "common", "core", "data", "info"),
}
# A path of the repository, or of a test in it; none with a placeholder: <version>, *, NAME.
PATHS = re.compile(r"(?!.*\b[A-Z]{3,}\b)(gateway|converters|benchmarks|tests|deploy|docs)/[\w./-]+(::\w+)?")
READERS_OF_THE_PROCESS = (
    "gateway/cli/",
    "gateway/supervisor.py",
    "gateway/children.py",  # its one argument is the file with its orders
    "gateway/template.py",  # its one argument is the socket on which orders come
    "benchmarks/locustfile.py",  # locust starts it and hands it nothing else
    "benchmarks/without_sockets.py",  # as the supervisor, it tells the metrics where they are kept
    "benchmarks/peers/",  # other servers start these and hand them nothing else
)


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_every_module_opens_with_a_sentence() -> None:
    unsigned = []
    for path in CODE + TESTS:
        tree = ast.parse(path.read_text())
        sign = (ast.get_docstring(tree) or "").split("\n")[0].rstrip()
        if tree.body and not sign.endswith((".", "?")):
            unsigned.append((named(path), sign))
    assert not unsigned


def test_no_module_is_too_long_to_read_in_one_sitting() -> None:
    lengths = {named(path): len(path.read_text().splitlines()) for path in CODE}
    assert not {name: lines for name, lines in lengths.items() if lines > MAX_LINES}


def test_modules_and_classes_have_names_that_say_something() -> None:
    empty = []
    for path in CODE:
        classes = [node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ClassDef)]
        for name in (path.stem, *classes):
            words = {word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)}
            if words & EMPTY_WORDS:
                empty.append((named(path), name))
    assert not empty


def test_only_the_command_line_and_the_supervisor_read_argv_and_the_environment() -> None:
    reads = {("sys", "argv"), ("os", "environ"), ("os", "getenv")}
    found = [
        (named(path), node.lineno)
        for path in CODE
        if not named(path).startswith(READERS_OF_THE_PROCESS)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and (node.value.id, node.attr) in reads
    ]
    assert not found


def test_the_walk_names_files_that_are_there_and_every_file_of_the_control_room() -> None:
    text = (ROOT / "docs" / "walk.md").read_text()
    named_files = re.findall(r"`(?:gateway/)?(\w+/\w+\.py|\w+\.py)`", text)
    assert len(named_files) > 60
    assert not [name for name in named_files if not (ROOT / "gateway" / name).exists()]
    room = {path.stem for path in (ROOT / "gateway" / "control").glob("*.py")} - {"__init__", "app"}
    on_the_map = set(re.findall(r"`(\w+)/?`", text.partition("## The control room")[2]))
    assert on_the_map == room | {"statistics"}


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_pages_name_and_link_only_what_is_there() -> None:
    pages = [ROOT / name for name in ("README.md", "SECURITY.md", "CHANGELOG.md", "benchmarks/README.md")]
    found, missing = 0, []
    for page in [*pages, *sorted((ROOT / "docs").rglob("*.md"))]:
        text = page.read_text()
        for name, anchor in re.findall(r"\]\(([\w./-]*)(?:#([\w-]+))?\)", text):
            place = page.parent / name if name else page
            found += 1
            if not place.exists() or (anchor and anchor not in anchors(place)):
                missing.append((named(page), f"{name}#{anchor}"))
        for word in {word.strip("'\",;:()") for code in re.findall(r"`([^`\n]+)`", text) for word in code.split()}:
            place = ROOT / word.partition("::")[0]
            if page.parent.name == "benchmarks" and re.match(r"(speed|peers|faults|fuzzing)/", word):
                place = page.parent / word
            elif not PATHS.fullmatch(word):
                continue
            found += 1
            if not place.exists():
                missing.append((named(page), word))
    assert found > 250
    assert not missing


def test_code_names_only_modules_that_are_there() -> None:
    modules = re.compile(r"\b(?:gateway|converters|benchmarks|tests)/[\w/]+\.py\b")
    missing = [
        (named(path), name)
        for path in CODE + TESTS
        for name in modules.findall(path.read_text())
        if not (ROOT / name).exists()
    ]
    assert not missing


def test_what_security_md_claims_is_shown_by_tests_that_are_there() -> None:
    claimed = re.findall(r"`([\w/]+\.py)::(\w+)`", (ROOT / "SECURITY.md").read_text())
    assert len(claimed) > 20
    missing = [(file, name) for file, name in claimed if f"def {name}(" not in (ROOT / "tests" / file).read_text()]
    assert not missing


def test_the_changelog_knows_this_version() -> None:
    headings = re.findall(r"^## \[?([0-9][^\s\]]*)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[:1] == [__version__]
