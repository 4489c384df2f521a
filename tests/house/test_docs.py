"""The documentation names what there is: links, commands, options, keys of a study file."""

import html
import re
import runpy
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from pydantic import BaseModel

import qsched
from qsched.cli.main import app
from qsched.study.file import StudyFile

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
BESIDE = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("bench/**/README.md"))]
SOURCE = "https://github.com/qsched/qsched/"
SITE = "https://qsched.github.io/qsched/"
LINK = re.compile(r"\]\((?P<target>[^)\s]+)\)")


def prose(page: Path) -> str:
    """A page without its blocks of code."""
    return re.sub(r"^( *)```.*?^\1```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def links(page: Path) -> Iterator[str]:
    yield from (found["target"] for found in LINK.finditer(prose(page)))


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    words = (re.sub(r"[^\w\s-]", "", heading).strip().lower() for heading in headings)
    return {re.sub(r"[-\s]+", "-", each) for each in words}


def place_of(page: Path, target: str) -> Path | None:
    """The file of the repository that a link leads to; None for a link to elsewhere."""
    path = target.partition("#")[0]
    if target.startswith(SOURCE):
        kind, _, rest = path.removeprefix(SOURCE).partition("/main/")
        assert kind in ("", "blob", "tree"), target
        return ROOT / rest
    if target.startswith(SITE):
        return DOCS / (path.removeprefix(SITE).rstrip("/") + ".md")
    if "://" in target:
        return None
    return (page.parent / path).resolve() if path else page


@pytest.mark.parametrize("page", [*BESIDE, *PAGES], ids=lambda page: str(page.relative_to(ROOT)))
def test_links_into_the_repository_lead_somewhere(page: Path) -> None:
    for target in links(page):
        place = place_of(page, target)
        assert place is None or place.exists(), target
        anchor = target.partition("#")[2]
        if anchor and place and place.suffix == ".md":
            assert anchor in anchors(place), target


def test_pages_of_the_site_link_to_the_repository_by_its_address() -> None:
    """What lies outside docs/ is not part of the site."""
    for page in PAGES:
        for target in links(page):
            place = place_of(page, target)
            if place and not target.startswith("http"):
                assert DOCS in place.parents, f"{page}: {target}"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built strictly."""
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder


def test_the_site_is_built_without_a_warning_and_fetches_nothing(site: Path) -> None:
    for page in site.rglob("*.html"):
        text = page.read_text()
        fetched = re.findall(r"<(?:script|img|iframe)[^>]* src=\"?(?:https?:)?//", text)
        fetched += re.findall(r"<link[^>]* rel=\"?(?:stylesheet|preconnect)[^>]*https?://", text)
        assert not fetched, page


def test_every_public_name_is_on_the_page_of_the_api(site: Path) -> None:
    page = (site / "reference" / "python" / "index.html").read_text()
    for name in set(qsched.__all__) - {"__version__"}:
        assert f'id="qsched.{name}"' in page


def commands() -> dict[str, Any]:
    group: Any = typer.main.get_command(app)
    return dict(group.commands)


def test_every_command_and_option_is_on_the_page_of_the_commands(site: Path) -> None:
    page = html.unescape((site / "reference" / "commands" / "index.html").read_text())
    summary = (DOCS / "reference" / "commands.md").read_text()
    for name, command in commands().items():
        assert f"`qsched {name}" in summary
        section = page.partition(f'<h3 id="{name}">')[2].partition("<h3")[0]
        for parameter in command.params:
            shown = (
                parameter.opts[0] if parameter.opts[0].startswith("-") else parameter.name.upper()
            )
            assert shown in section, f"{name}: {shown}"


def test_the_page_of_the_commands_is_made_of_their_help() -> None:
    made = runpy.run_path(str(DOCS / "reference" / "commands.py"))
    page = (DOCS / "reference" / "commands.md").read_text()
    assert page.count(made["MARK"]) == 1
    assert made["on_page_markdown"]("a page without it") == "a page without it"
    text = "\n".join(made["sections"]())
    assert "[bold]" not in text
    assert "| `--trials VALUE` | Another budget than the file's. |  |" in text


def tables(model: type[BaseModel], path: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    """(dotted name, class) of a study file's tables."""
    yield path, model
    for key, field in model.model_fields.items():
        for inner in (field.annotation, *getattr(field.annotation, "__args__", ())):
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                yield from tables(inner, f"{path}.{key}".removeprefix("."))


def documented(path: str) -> dict[str, str]:
    """{key: its default in words} of a table, on the page of the study file."""
    page = "\n" + (DOCS / "reference" / "study-file.md").read_text()
    heading = {"": "# Study file", "objective.terms": "## [[objective.terms]]"}
    section = page.partition(f"\n{heading.get(path, f'## [{path}]')}\n")[2]
    rows = section.partition("| key | default | |\n")[2].partition("\n\n")[0]
    found = re.findall(r"^\| `(\w+)` \| (.*?) \| ", rows, re.MULTILINE)
    return dict(found)


TABLES = dict(tables(StudyFile))


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path or "file")
def test_every_key_of_a_study_file_is_documented_with_its_default(path: str) -> None:
    known = TABLES[path].model_fields
    words = documented(path)
    inner = {other.partition(".")[0] for other in TABLES if other} if not path else set()
    assert set(words) == set(known) - inner
    for key, said in words.items():
        field = known[key]
        assert field.is_required() or said != "required", key
        if said.startswith("`") and field.default is not None:
            written = tomllib.loads(f"x = {said.strip('`')}")["x"]
            assert (tuple(written) if isinstance(written, list) else written) == field.default, key
        elif isinstance(field.default, bool | int | float | str):
            raise AssertionError(f"{path}.{key}: the default is {field.default!r}")


def pasted() -> Iterator[tuple[Path, str]]:
    """(page, command) of all that the pages show for pasting, without comments."""
    for page in [*BESIDE, *PAGES, ROOT / "storage" / "README.md"]:
        for block in re.findall(
            r"^```bash\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE
        ):
            joined = block.replace("\\\n", " ")
            yield from ((page, line.partition(" #")[0].strip()) for line in joined.splitlines())


def test_commands_that_are_shown_exist_with_their_options() -> None:
    shown = list(pasted())
    assert len(shown) > 50
    for page, line in shown:
        words = line.split()
        if words[:1] == ["qsched"]:
            options = {option for each in commands()[words[1]].params for option in each.opts}
            used = {word for word in words if word.startswith("--")}
            assert used <= options | {"--help"}, f"{page}: {line}"
        elif words and words[0].startswith("scripts/"):
            assert (ROOT / words[0]).exists(), f"{page}: {line}"
        elif words[1:2] == ["-m"] and words[2].startswith(("bench", "tests", "training")):
            place = ROOT.joinpath(*words[2].split("."))
            assert place.with_suffix(".py").exists() or (place / "__main__.py").exists(), line
