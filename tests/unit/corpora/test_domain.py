from importlib import resources

import pytest
import yaml

from faqbench.assets import text_source_names
from faqbench.config import UserError
from faqbench.corpora import domain_names, domain_texts, part_of
from faqbench.stages import PlainProgress

PARTS = ("calibration", "selection", "evaluation")


def texts_of(domain, part):
    return domain_texts(domain, part, PlainProgress())


@pytest.fixture
def story(tmp_path):
    path = tmp_path / "story.txt"
    path.write_bytes(b"\xef\xbb\xbf" + b"\r\n \t\r\n\r\n".join(b"Line %d\r\nmore" % i for i in range(60)))
    return str(path)


def test_every_yaml_is_complete_and_names_known_sources():
    files = list((resources.files("faqbench.corpora") / "domains").iterdir())
    for file in files:
        fields = yaml.safe_load(file.read_text())
        sources = fields["sources"]
        lists = list(sources.values()) if isinstance(sources, dict) else [sources]
        assert file.name == f"{fields['name']}.yaml" and fields["description"].endswith(".")
        assert {name for names in lists for name in names} <= set(text_source_names())


def test_the_documented_domains_are_there():
    documented = {"wiki", "books", "stories", "math", "code", "medicine", "reports", "code-java"}
    assert documented <= set(domain_names())


def test_an_unknown_domain_gets_the_nearest_spelling():
    with pytest.raises(UserError, match=r"Unknown domain 'wkii'. Did you mean 'wiki'\? Known:"):
        texts_of("wkii", "calibration")


def test_the_paragraphs_of_a_text_file_are_split_into_disjoint_parts_in_order(story):
    parts = [texts_of(story, part) for part in PARTS]
    assert sorted(t for part in parts for t in part) == sorted(f"Line {i}\nmore" for i in range(60))
    assert all(part_of(text) == name for name, part in zip(PARTS, parts, strict=True) for text in part)


def test_a_repeated_paragraph_counts_once(tmp_path):
    path = tmp_path / "twice.txt"
    path.write_text("a\n\na\n\na")
    assert texts_of(str(path), part_of("a")) == ["a"]


def test_a_part_that_no_text_falls_in_says_so(tmp_path):
    path = tmp_path / "one.txt"
    path.write_text("a")
    other = next(part for part in PARTS if part != part_of("a"))
    with pytest.raises(UserError, match="None of the 1 texts"):
        texts_of(str(path), other)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "no such file"),
        (b"", "is empty"),
        (b" \n\n\t\n", "is empty"),
        (b"\x89PNG\r\n\x1a\n\xff", "is not UTF-8 text"),
        (b"text\x00text", "holds zero bytes"),
    ],
)
def test_a_file_that_is_missing_empty_or_binary_is_one_sentence(tmp_path, content, sentence):
    path = tmp_path / "bad.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=sentence) as error:
        texts_of(str(path), "calibration")
    assert "\n" not in str(error.value)


@pytest.mark.packaged
@pytest.mark.parametrize("domain", domain_names())
def test_every_packaged_domain_has_three_disjoint_parts(domain):
    parts = [set(texts_of(domain, part)) for part in PARTS]
    assert sum(map(len, parts)) == len(set.union(*parts)) > 400


@pytest.mark.packaged
def test_no_text_is_calibrated_in_one_domain_and_evaluated_in_another():
    packaged = [d for d in domain_names() if "-" not in d]
    calibrated = {t for domain in packaged for t in texts_of(domain, "calibration")}
    evaluated = {t for domain in packaged for t in texts_of(domain, "evaluation")}
    assert not calibrated & evaluated
