"""A report's folder: what a report wrote is replaced, and nothing else is touched."""

import pytest

from faqbench.cli import main
from faqbench.config import UserError
from faqbench.report import ReportRequest, write_report


@pytest.fixture
def write(tmp_path):
    """Write a report of no runs, which is the quickest."""
    return lambda name="r": write_report(
        ReportRequest(runs=tmp_path / "runs", reports=tmp_path / "reports", name=name)
    )


def contents(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_strangers_page_is_no_report_and_none_of_its_files_is_touched(write, tmp_path):
    folder = tmp_path / "reports" / "r"
    (folder / "tables").mkdir(parents=True)
    for name in ("index.html", "report.md", "tables/mine.csv", "about.html"):
        (folder / name).write_text("<html>mine</html>")
    before = contents(folder)
    with pytest.raises(UserError, match="is no report, so it is left alone"):
        write()
    assert contents(folder) == before


def test_a_users_files_beside_a_report_stay_whatever_they_are_called(write):
    folder = write().folder
    (folder / "tables").mkdir()
    mine = ("conclusions.html", "tables/mine.csv", "runs-9.html", ".hidden", "deep/er.txt")
    for name in mine:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("mine")
    write()
    assert {name: (folder / name).read_text() for name in mine} == dict.fromkeys(mine, "mine")


def test_a_report_that_was_edited_is_refused_before_the_work_and_stays(write):
    paths = write()
    text = paths.markdown.read_text()
    for edited in ("my conclusions, of another length", text.swapcase()):
        paths.markdown.write_text(edited)
        with pytest.raises(UserError, match=r"report\.md was edited since"):
            write()
        assert paths.markdown.read_text() == edited


def test_a_report_of_before_manifests_is_replaced_and_the_users_page_kept(write):
    folder = write().folder
    (folder / "manifest.json").unlink()
    (folder / "mine.html").write_text("mine")
    assert write().folder == folder and (folder / "mine.html").read_text() == "mine"


def test_a_report_folder_on_another_disk_is_written_there(write, tmp_path):
    (tmp_path / "big").mkdir()
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports" / "r").symlink_to(tmp_path / "big")
    write()
    write()
    assert (tmp_path / "reports" / "r").is_symlink() and (tmp_path / "big" / "index.html").is_file()


def test_a_manifest_that_names_files_outside_takes_nothing_there(write, tmp_path):
    folder = write().folder
    outside = tmp_path / "reports" / "outside.txt"
    outside.write_text("mine")
    text = (folder / "manifest.json").read_text().replace('"report.md"', '"../outside.txt"')
    (folder / "manifest.json").write_text(text)
    with pytest.raises(UserError):
        write()
    assert outside.read_text() == "mine"


@pytest.mark.parametrize("verb", [["report"], ["compact", "into=small"]])
def test_a_name_is_never_a_path(tmp_path, monkeypatch, capsys, verb):
    monkeypatch.chdir(tmp_path)
    assert main([*verb, "name=../../x"]) == 2
    assert capsys.readouterr().err.count("\n") == 1 and not list(tmp_path.iterdir())
