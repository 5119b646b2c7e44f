"""Corpora of every kind: domains and their parts, files and hub sets; near copies are never drawn."""

import json
import os
import socket
from collections import Counter, defaultdict
from importlib import resources
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from faqbench.assets import document_key, packaged_texts, text_source_names
from faqbench.config import UserError
from faqbench.corpora import domain_names, domain_texts, hub_set_names, part_of, read_corpus
from faqbench.corpora.corpus import _listed, _texts_of, digest, is_near_copy
from faqbench.stages import PlainProgress

TEXTS = [f"Line {i}\nmore" for i in range(60)]


@pytest.fixture
def read(compose):
    def make(domain, part="calibration", **changes):
        section = compose("model=tiny-llama").calibration.model_copy(update=changes)
        return read_corpus(str(domain), part, section, PlainProgress())

    return make


@pytest.fixture
def files(tmp_path):
    """The same texts as .txt, .jsonl and .parquet, and as a folder that `datasets` reads."""
    rows = [{"body": text, "n": i} for i, text in enumerate(TEXTS)]
    lines = "\n".join(json.dumps(row) for row in rows)
    (tmp_path / "t.txt").write_text("\n\n".join(TEXTS))
    (tmp_path / "t.jsonl").write_text(lines + "\n\n")
    pd.DataFrame(rows).to_parquet(tmp_path / "t.parquet")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.jsonl").write_text(lines)
    return tmp_path


def mistake(read, domain, **changes):
    with pytest.raises(UserError) as caught:
        read(domain, **changes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_users_file_gives_the_same_corpus_in_every_format(read, files):
    expected = tuple(text for text in TEXTS if part_of(text) == "calibration")
    found = [read(files / f"t.{end}", column="body") for end in ("txt", "jsonl", "parquet")]
    assert [corpus.texts for corpus in found] == [expected] * 3
    assert len({corpus.fingerprint for corpus in found}) == 1


def test_a_data_set_is_read_through_datasets_by_column_and_its_first_rows(read, files, compose):
    hub = compose("model=tiny-llama").calibration.hub
    domain = f"hub:{files / 'set'}"
    assert read(domain, column="body").texts == read(files / "t.txt").texts
    first = read(domain, column="body", hub=hub.model_copy(update={"n_rows": 20}))
    assert first.texts == tuple(t for t in TEXTS[:20] if part_of(t) == "calibration")
    assert "train" in first.origin


def test_provenance_names_the_file_without_its_folder(read, files):
    found = read(files / "t.txt", "selection").provenance()
    assert found["origin"] == "t.txt" and found["part"] == "selection"
    assert found["n_texts"] == sum(part_of(t) == "selection" for t in TEXTS)


def test_rows_without_text_are_left_out_and_equal_texts_count_once(read, tmp_path):
    chosen = next(t for t in TEXTS if part_of(t) == "calibration")
    rows = [{"text": t} for t in (chosen, None, " ", chosen)] + [{"other": 1}]
    path = tmp_path / "gaps.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    assert read(path).texts == (chosen,)


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.jsonl", None, "no such file"),
        ("a.parquet", None, "no such file"),
        ("a.jsonl", b"", "is empty"),
        ("a.jsonl", b"\x89PNG\r\n\xff", "is not UTF-8 text"),
        ("a.jsonl", b"a\0b", "holds zero bytes"),
        ("a.jsonl", b'{"text": "a"}\n{"text": ', "Line 2 of .* is not JSON"),
        ("a.jsonl", b"[1]", "is JSON, but not an object"),
        ("a.jsonl", b'{"txet": "a"}', "no column 'text'; it has txet.*Did you mean 'txet'"),
        ("a.jsonl", b'{"text": 5}', "has a int and no text in column 'text' of row 0"),
        ("a.jsonl", b'{"text": " "}', "has no text in column 'text'"),
        ("a.parquet", b"", "is no sound parquet file"),
        ("a.parquet", b"PAR1 and nothing else", "is no sound parquet file"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_sentence(read, tmp_path, name, content, sentence):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=sentence) as caught:
        read(path)
    assert "\n" not in str(caught.value)


def pipe(path):
    os.mkfifo(path)


def socket_at(path):
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


def device(path):
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize("suffix", ["txt", "jsonl", "parquet"])
@pytest.mark.parametrize(
    ("make", "kind"),
    [(pipe, "a pipe"), (socket_at, "a socket"), (device, "a device"), (Path.mkdir, "a folder")],
)
def test_what_may_never_end_is_refused_by_its_kind(read, tmp_path, monkeypatch, make, kind, suffix):
    monkeypatch.chdir(tmp_path)  # a socket's path must be short
    make(Path(f"odd.{suffix}"))
    text = mistake(read, f"odd.{suffix}")
    assert text == f"'odd.{suffix}' is {kind}, not a regular file; copy its content into one."


def test_a_file_is_read_up_to_the_bound_and_the_rest_is_said_to_be_left_out(read, files, caplog):
    caplog.set_level("WARNING", logger="faqbench")
    everything = read(files / "t.txt").texts
    for suffix in ("txt", "jsonl", "parquet"):
        found = read(files / f"t.{suffix}", column="body", max_characters=500)
        assert 0 < len(found.texts) < len(everything)
        assert found.texts == everything[: len(found.texts)]
        assert found.is_cut and found.provenance()["is_cut"] is True
    assert caplog.text.count("only its first 500 characters are read") == 3
    assert "is_cut" not in read(files / "t.txt").provenance()


def test_a_text_that_is_cut_within_a_character_is_cut_before_it(read, tmp_path):
    chosen = next(t for n in range(50) if part_of(t := "aé" * (n + 2)) == "calibration")
    (tmp_path / "one.txt").write_text(chosen + "é" * 9)
    found = read(tmp_path / "one.txt", max_characters=len(chosen.encode()) + 1)
    assert found.texts == (chosen,)


def test_a_sparse_file_is_read_no_further_than_the_bound(read, tmp_path):
    with (tmp_path / "sparse.txt").open("wb") as file:
        file.truncate(2**40)
    assert "holds zero bytes" in mistake(read, tmp_path / "sparse.txt", max_characters=10_000)


@pytest.mark.parametrize("use_dictionary", [True, False])
def test_a_small_parquet_of_endless_text_is_read_no_further_than_the_bound(read, tmp_path, use_dictionary):
    text = next(t for n in range(50) if part_of(t := "x" * (1_000 + n)) == "calibration")
    path = tmp_path / "bomb.parquet"
    table = pa.table({"text": [text] * 20_000})
    pq.write_table(table, path, compression="zstd", use_dictionary=use_dictionary)
    assert path.stat().st_size < 40_000
    if use_dictionary:  # one text, repeated without end
        found = read(path, max_characters=100_000)
        assert found.texts == (text,) and found.is_cut
    else:  # pages that unpack to much more than the bound
        sentence = mistake(read, path, max_characters=100_000)
        assert " MB in one group of rows; write it with smaller groups" in sentence


def test_six_gigabytes_in_some_hundred_bytes_are_read_no_further_than_the_bound(read, tmp_path):
    text = next(t for n in range(50) if part_of(t := "a b " * (150_000 + n)) == "calibration")
    column = pa.DictionaryArray.from_arrays(pa.array([0] * 10_000, pa.int32()), pa.array([text]))
    path = tmp_path / "bomb.parquet"
    pq.write_table(pa.table({"text": column}), path, compression="zstd", store_schema=False)
    assert path.stat().st_size < 2_000
    found = read(path, max_characters=2_000_000)
    assert found.texts == (text,) and found.is_cut


def test_half_a_surrogate_pair_is_one_sentence(read, tmp_path):
    (tmp_path / "odd.jsonl").write_text('{"text": "good"}\n{"text": "b\\ud83d ad"}')
    text = mistake(read, tmp_path / "odd.jsonl")
    assert "text in column 'text' of row 1 that is not Unicode: half of a surrogate pair (U+D83D)" in text


def test_a_text_file_without_blank_lines_is_told_how_texts_are_separated(read, tmp_path):
    line = next(t for n in range(50) if part_of(t := f"one line {n}") != "calibration")
    (tmp_path / "lines.txt").write_text(line)
    assert mistake(read, tmp_path / "lines.txt").endswith("and separate them by blank lines.")


def test_a_parquet_without_the_column_lists_those_it_has(read, files):
    assert "it has body, n" in mistake(read, files / "t.parquet", column="text")


def test_a_parquet_with_two_columns_of_the_name_is_refused(read, tmp_path):
    texts = pa.array(TEXTS)
    pq.write_table(pa.table([texts, texts], names=["text", "text"]), tmp_path / "twice.parquet")
    assert "has 2 columns 'text'" in mistake(read, tmp_path / "twice.parquet")


def test_an_unknown_domain_lists_everything_that_can_be_named(read):
    text = mistake(read, "pile-vall")
    assert "Did you mean 'pile-val'?" in text and "hub:OWNER/NAME" in text and "wiki" in text


@pytest.mark.parametrize("domain", [*hub_set_names(), "hub:no-one/no-such-set"])
def test_a_hub_set_without_a_network_is_one_sentence(read, domain, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    text = mistake(read, domain)
    assert "Hugging Face hub" in text and "packaged domain" in text


def test_the_hub_sets_of_the_papers_are_named():
    assert {"pile-val", "c4", "wikitext2", "wikitext103"} <= set(hub_set_names())


def test_parts_take_forty_ten_and_fifty_percent():
    counts = Counter(part_of(f"text {i}") for i in range(20_000))
    assert abs(counts["calibration"] / 20_000 - 0.4) < 0.015
    assert abs(counts["selection"] / 20_000 - 0.1) < 0.01


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_a_text_has_one_part_always(text):
    assert part_of(text) == part_of(str(text)) in {"calibration", "selection", "evaluation"}


def test_parts_never_move_between_versions():
    # Published runs rest on these; changing them makes every record incomparable.
    initials = "".join(part_of(f"text {i}")[0] for i in range(30))
    assert initials == "eeeceecceecccccsecsccceececece"


@pytest.mark.packaged
def test_no_programming_task_is_in_two_parts_in_any_language():
    sources = [s for s in text_source_names() if "mbpp" in s]
    parts = defaultdict(set)
    for source in sources:
        for text in packaged_texts(source, PlainProgress()):
            key = document_key(source, text)
            parts[key].add(part_of(key))
    assert len(parts) == 499 and all(len(found) == 1 for found in parts.values())


@pytest.mark.packaged
@pytest.mark.parametrize("language", ["java", "rust", "python"])
def test_the_translations_of_a_task_share_its_part(language):
    def tasks(domain, part):
        texts = domain_texts(domain, part, PlainProgress())
        return {document_key("codex_mbpp", text) for text in texts}

    one, other = tasks(f"code-{language}", "calibration"), tasks("code-haskell", "evaluation")
    assert one and other and not one & other


def test_the_key_of_a_translation_leaves_out_the_language():
    sentences = [
        "Write a java function to find the volume.",
        "Write a c++ function to find the volume.",
        "Write a function to find the volume.",
    ]
    keys = {document_key("mt_mbpp_go", f"{s}\ncode of {s}") for s in sentences}
    assert len(keys) == 1


def test_any_other_text_is_its_own_key():
    assert document_key("boolq", "Write a java function.") == "Write a java function."


PARTS = ("calibration", "selection", "evaluation")


def texts_of(domain, part):
    return domain_texts(domain, part, PlainProgress())


@pytest.fixture
def story(tmp_path):
    path = tmp_path / "story.txt"
    path.write_bytes(b"\xef\xbb\xbf" + b"\r\n \t\r\n\r\n".join(b"Line %d\r\nmore" % i for i in range(60)))
    return str(path)


def test_every_domain_is_complete_and_names_known_sources():
    table = yaml.safe_load((resources.files("faqbench.corpora") / "domains.yaml").read_text())
    for fields in table.values():
        sources = fields["sources"]
        lists = list(sources.values()) if isinstance(sources, dict) else [sources]
        assert fields["description"].endswith(".")
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


def test_the_list_is_of_digests_in_order():
    listed = sorted(_listed())
    assert len(listed) > 100
    assert all(len(d) == 16 and set(d) <= set("0123456789abcdef") for d in listed)


@pytest.mark.parametrize("part", ["calibration", "selection", "evaluation"])
def test_a_listed_text_is_evaluated_but_neither_calibrated_nor_selected_by(part, monkeypatch):
    texts = [f"text {i}" for i in range(100)]
    copies = {digest(text) for text in texts[::2]}
    monkeypatch.setattr("faqbench.corpora.corpus._listed", lambda: frozenset(copies))
    found = _texts_of({text: text for text in texts}, "toy", part)
    of_part = [text for text in texts if part_of(text) == part]
    expected = [t for t in of_part if part == "evaluation" or not is_near_copy(t)]
    assert list(found) == expected
    assert (len(found) == len(of_part)) == (part == "evaluation")


@pytest.mark.packaged
def test_what_is_drawn_from_wiki_shares_no_passage_with_what_is_evaluated():
    from faqbench.assets import packaged_dataset
    from faqbench.evaluation.harness import texts_in
    from faqbench.evaluation.overlap import texts_that_overlap
    from faqbench.evaluation.results import packaged_task, read_documents

    progress = PlainProgress()
    drawn = [t for p in ("calibration", "selection") for t in domain_texts("wiki", p, progress)]
    task = packaged_task("boolq_validation")
    rows = read_documents(task, packaged_dataset(task.dataset, progress)).rows
    assert texts_that_overlap(drawn, domain_texts("wiki", "evaluation", progress)) == []
    assert texts_that_overlap(drawn, [text for row in rows for text in texts_in(row)]) == []
