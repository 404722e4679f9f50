"""The documents are true: examples run as they stand and print what they say, images and figures are there."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from documents import (
    BULKHEAD,
    CIRCUIT_BREAKER,
    FALLBACK,
    FAULTS,
    HEALTH,
    IDEMPOTENCY,
    LIMITS,
    PERFORMANCE,
    POLICIES,
    README,
    RETRIES,
    ROOT,
    SECURITY,
    STATISTICS,
    examples,
    name_of,
    run_as_it_stands,
    text_of,
)
from servers import Server

from shared_resilience import scripts
from shared_resilience.circuit import TRANSITIONS

GUIDES = [LIMITS, CIRCUIT_BREAKER, BULKHEAD, RETRIES, POLICIES, FALLBACK, IDEMPOTENCY, HEALTH]
EXAMPLES = [text for page in (*GUIDES, README) for text in examples(page)]
PAGES = (*GUIDES, STATISTICS, PERFORMANCE, FAULTS, SECURITY, README)
LINKED = [(page, link) for page in PAGES for link in re.findall(r"\]\(([^)#:]+)\)", text_of(page))]
WITHIN = sorted({(page, link) for page in PAGES for link in re.findall(r"\]\(#(.+?)\)", text_of(page))})
PROMISED = re.compile(r"print\(.*\)  # (\[.*\]|[a-z0-9. ]+)$", re.MULTILINE)
"""A comment that is a list, or a few words without punctuation, is what its line prints."""
MARKER = re.compile(r"<!-- (figures: [a-z]+|end) -->")


def test_the_page_has_examples_and_images() -> None:
    assert len(examples(LIMITS)) >= 7
    assert len([link for _, link in LINKED if link.endswith(".svg")]) >= 4


@pytest.mark.parametrize("example", [text for page in GUIDES for text in examples(page)], ids=name_of)
def test_an_example_runs_as_it_stands(own_server: Server, example: str) -> None:
    done = run_as_it_stands(example, own_server.port)

    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("example", [text for text in EXAMPLES if PROMISED.search(text)], ids=name_of)
def test_an_example_prints_what_its_comments_say(own_server: Server, example: str) -> None:
    printed = run_as_it_stands(example, own_server.port).stdout.splitlines()

    assert [line for line in PROMISED.findall(example) if line not in printed] == []


@pytest.mark.parametrize(("page", "link"), LINKED, ids=lambda value: str(value).rpartition("/")[2])
def test_what_a_page_links_exists(page: Path, link: str) -> None:
    assert (page.parent / link).is_file()


@pytest.mark.parametrize(("page", "heading"), WITHIN, ids=lambda value: getattr(value, "stem", value))
def test_a_link_within_a_page_leads_to_a_heading(page: Path, heading: str) -> None:
    headings = re.findall(r"^#+ (.*)$", text_of(page), re.MULTILINE)

    assert heading in [re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-") for title in headings]


@pytest.mark.parametrize("image", sorted((LIMITS.parent / "images").iterdir()), ids=lambda path: path.name)
def test_an_image_is_small_well_formed_and_says_what_it_shows(image: Path) -> None:
    root = ElementTree.parse(image).getroot()

    assert image.stat().st_size < 15_000
    assert {child.tag.rpartition("}")[2] for child in root} >= {"title", "desc"}
    assert "prefers-color-scheme: dark" in image.read_text(encoding="utf-8")


def test_markers_are_balanced_and_every_block_of_figures_is_one_that_the_script_writes() -> None:
    markers = MARKER.findall(text_of(LIMITS))
    names = [marker.removeprefix("figures: ") for marker in markers[::2]]

    assert set(markers[1::2]) == {"end"}
    assert len(markers) == 2 * len(names)
    assert sorted(names) == sorted(blocks_of_the_script())


def blocks_of_the_script() -> list[str]:
    """The keys of BLOCKS in the script; read and not imported, since it needs an embedded server."""
    tree = ast.parse((LIMITS.parent / "limits_figures.py").read_text(encoding="utf-8"))
    (blocks,) = (
        node.value
        for node in tree.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == "BLOCKS"
    )
    assert isinstance(blocks, ast.Dict)
    return [ast.literal_eval(key) for key in blocks.keys if key]


def test_every_block_of_figures_says_how_to_repeat_it() -> None:
    blocks = re.findall(r"<!-- figures: [a-z]+ -->\n(.*?)<!-- end -->", text_of(LIMITS), re.DOTALL)

    assert all(block.count("|") > 4 and "`python docs/limits_figures.py`." in block for block in blocks)


def test_the_table_of_transitions_is_that_of_the_twin_and_of_the_script() -> None:
    rows = re.findall(r"^\| (closed|open|half_open) \| (\w+) \| (\w+) \|", text_of(CIRCUIT_BREAKER), re.MULTILINE)
    script = scripts.load("evidence").text
    table = script[script.index("local TRANSITIONS") : script.index("local FORCED")]
    of_script = [
        (state, event, following)
        for state, events in re.findall(r"^  (\w+) = \{(.*)\},$", table, re.MULTILINE)
        for event, following in re.findall(r'(\w+) = "(\w+)"', events)
    ]
    of_twin = [(state, event, then) for state, events in TRANSITIONS.items() for event, then in events.items()]

    assert rows == of_twin == of_script


def test_the_page_of_faults_has_a_row_for_each_test_of_a_fault() -> None:
    marked = {
        (file.relative_to(ROOT).as_posix(), f"| {what} | {promise} |")
        for file in (ROOT / "tests").rglob("test_*.py")
        for what, promise in faults_in(file)
    }
    found, file = set(), ""
    for line in text_of(FAULTS).splitlines():
        if line.startswith("In `tests/"):
            file = line.removeprefix("In `").removesuffix("`.")
        elif line.startswith("| ") and not line.startswith("| what happens"):
            found.add((file, line.rpartition(" | ")[0] + " |"))

    assert sorted(found) == sorted(marked)


def faults_in(file: Path) -> list[tuple[str, str]]:
    """What the tests of a file are marked with."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return [
        (ast.literal_eval(call.args[0]), ast.literal_eval(call.args[1]))
        for call in calls
        if ast.unparse(call.func) == "pytest.mark.fault"
    ]
