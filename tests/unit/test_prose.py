"""Prose in Markdown: no sentence above 40 words anywhere, no method page above 1,500 words.

Code blocks, tables, headings and markup say nothing here. A sentence ends with its paragraph, its list item, or at `.`,
`!`, `?` before a space and whatever can begin a sentence. A colon or a semicolon does not end one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    *sorted(ROOT.glob("*.md")),
    ROOT / "benchmarks" / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "examples").rglob("*.md")),
]
METHOD_PAGES = [ROOT / "docs" / name for name in ("chameleon.md", "prior.md", "prior-cpus.md")]
MOST_WORDS_OF_A_SENTENCE = 40
MOST_WORDS_OF_A_METHOD = 1500
_ABBREVIATIONS = frozenset(
    ("e.g.", "i.e.", "etc.", "vs.", "cf.", "al.", "fig.", "eq.", "sec.", "approx.", "resp.", "incl.")
)
_END = re.compile(r"[.!?][\"')\]]*(?=\s)")
_CODE = "CODE"
_WORD = re.compile(r"\w")


@dataclass(frozen=True)
class Sentence:
    """What stands between two ends, and the line of the page on which it begins, counted from 1."""

    line: int
    text: str

    @property
    def words(self) -> int:
        """What holds a letter or a digit, between spaces; a name in backticks is one word, however long."""
        return sum(1 for word in self.text.split() if _WORD.search(word))


def paragraphs(markdown: str) -> Iterator[tuple[int, str]]:
    """The first line and the text of every paragraph, those of lists and quotations included; tables are left out."""
    tokens = MarkdownIt().enable("table").parse(markdown)
    for before, token in pairwise(tokens):
        if before.type == "paragraph_open" and token.map is not None:
            yield token.map[0] + 1, _text(token.children or [])


def _text(children: list[Token]) -> str:
    """What a reader sees: a link's words without its address, code as one word, line breaks kept."""
    parts = {"softbreak": "\n", "hardbreak": "\n", "code_inline": _CODE, "image": "", "html_inline": ""}
    return "".join(parts.get(token.type, token.content) for token in children)


def sentences(markdown: str) -> Iterator[Sentence]:
    """All sentences of a page, in order."""
    for line, text in paragraphs(markdown):
        begin = 0
        for match in _END.finditer(text):
            if _ends(text[begin : match.end()], text[match.end() :].lstrip()):
                yield _sentence(line, text, begin, match.end())
                begin = match.end()
        if text[begin:].strip():
            yield _sentence(line, text, begin, len(text))


def _ends(before: str, after: str) -> bool:
    """Whether a mark between these two is the end of a sentence, and not of an abbreviation or an initial."""
    last = before.split()[-1].strip("\"'()[]")
    if last.lower() in _ABBREVIATIONS or re.fullmatch(r"[A-Z]\.", last):
        return False
    return not after[:1].islower()


def _sentence(line: int, text: str, begin: int, end: int) -> Sentence:
    start = begin + len(text[begin:end]) - len(text[begin:end].lstrip())
    return Sentence(line + text[:start].count("\n"), text[start:end].strip())


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_no_sentence_is_too_long(page: Path) -> None:
    long = [
        f"{name(page)}:{sentence.line}: {sentence.words} words: {' '.join(sentence.text.split()[:12])} ..."
        for sentence in sentences(page.read_text())
        if sentence.words > MOST_WORDS_OF_A_SENTENCE
    ]
    assert not long, "\n".join(["at most 40 words in a sentence:", *long])


@pytest.mark.parametrize("page", METHOD_PAGES, ids=name)
def test_a_method_page_is_short(page: Path) -> None:
    """All of the file counts: prose, equations, tables."""
    words = len(page.read_text().split())
    assert words <= MOST_WORDS_OF_A_METHOD, f"{name(page)}: {words} words, at most {MOST_WORDS_OF_A_METHOD}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One thing. Another thing.", ["One thing.", "Another thing."]),
        ("Is it? It is! (So.) Yes.", ["Is it?", "It is!", "(So.)", "Yes."]),
        ("A factor of 1.5, e.g. Two of 0.3 s.", ["A factor of 1.5, e.g. Two of 0.3 s."]),
        ("See Ryu et al. 2018 in `a.b.c. D` and file.py.", ["See Ryu et al. 2018 in CODE and file.py."]),
        ("See [that page](a.B.md). Then\ngo.", ["See that page.", "Then\ngo."]),
        ("S. Williams, A. Waterman wrote. 40 came.", ["S. Williams, A. Waterman wrote.", "40 came."]),
        ("It reads ... and goes on.", ["It reads ... and goes on."]),
        ("It takes 0.1 s. A second one takes 2 ms.", ["It takes 0.1 s.", "A second one takes 2 ms."]),
        ("# A heading. Left out\n\n- one item\n- two items\n\nAnd text", ["one item", "two items", "And text"]),
        ("```python\nx = 1. Y = 2\n```\n\n| a | b |\n|---|---|\n| c. D | e |\n\nOnly this.", ["Only this."]),
        ("> A quotation. Of two.\n", ["A quotation.", "Of two."]),
    ],
)
def test_what_a_sentence_is(text: str, expected: list[str]) -> None:
    assert [sentence.text for sentence in sentences(text)] == expected


def test_a_long_sentence_is_found_with_its_line_and_its_words() -> None:
    page = "# Title\n\nShort. A sentence\n" + "word " * 38 + "\n`one long. Name`.\n"
    (_, sentence) = sentences(page)
    assert (sentence.line, sentence.words) == (3, 41)
