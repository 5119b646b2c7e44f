"""Files and hub sets as corpora: the same texts in every form, and one sentence per mistake."""

import json
import os
import socket
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from faqbench.config import UserError
from faqbench.corpora import hub_set_names, part_of, read_corpus
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
