"""README_CN.md has the commands, the output, the links and the numbers of README.md, section by section."""

import re

import pytest

from tests.helpers.processes import ROOT

ENGLISH, CHINESE = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "README_CN.md"))
# Numbers that Chinese writes as words, or that stand in an English word.
WORDS = re.compile(r"32nd")


def sections(page: str) -> list[str]:
    return re.split(r"^## ", page, flags=re.MULTILINE)


def without_comments(block: str) -> list[str]:
    """The lines of a block of commands or code; the trees of folders are explained in either language."""
    return [line.split(" #")[0].split("  # ")[0].rstrip() for line in block.splitlines()]


def blocks(page: str, language: str) -> list[list[str]]:
    return [without_comments(block) for block in re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)]


def numbers(section: str) -> list[str]:
    """The numbers outside of blocks and links, in any order: a language has its own."""
    text = re.sub(r"```.*?```|\]\([^)]*\)", " ", WORDS.sub(" ", section), flags=re.DOTALL)
    return sorted(re.findall(r"\d[\d,.]*(?:e-?\d+)?(?<![,.])", text))


@pytest.mark.parametrize("language", ["bash", "python", "text", "bibtex"])
def test_the_blocks_are_the_same(language):
    assert blocks(CHINESE, language) == blocks(ENGLISH, language) and blocks(CHINESE, language)


def test_the_sections_have_the_same_numbers():
    pairs = list(zip(sections(ENGLISH), sections(CHINESE), strict=True))
    for english, chinese in pairs:
        assert numbers(chinese) == numbers(english), english.splitlines()[0]


def test_the_links_are_the_same():
    def links(page: str) -> list[str]:
        return sorted(
            set(re.findall(r"\]\(((?:http|docs|benchmarks|[A-Z]+\.md)[^)]*)\)", page)) - {"README.md", "README_CN.md"}
        )

    assert links(CHINESE) == links(ENGLISH)


def test_its_own_links_have_a_target():
    headings = {
        "#" + re.sub(r"[^\w\- ]", "", line.lower()).replace(" ", "-")
        for line in re.findall(r"^##? (.*)$", CHINESE, re.MULTILINE)
    }
    wanted = set(re.findall(r"\]\((#[^)]*)\)", CHINESE))
    assert wanted <= headings, wanted - headings
