"""A finished run is reused only while what it was made from is still what is there."""

import json
import os
import shutil

import pytest
from toy_parts import LLAMA_SHAPE

from faqbench.cli import main
from faqbench.models.sources import byte_tokenizer, random_model
from faqbench.records import find_runs


def save(folder, **changes):
    random_model(LLAMA_SHAPE | changes).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)


@pytest.fixture
def perplexity(workplace, capsys):
    """Run one cell, and return its perplexity and what was said."""

    def run(*overrides):
        assert main([*workplace.cell, *overrides]) == 0
        (record,), _ = find_runs(workplace.runs)
        return record.metric("wikitext2-64", "perplexity").value, capsys.readouterr().err

    return run


def test_weights_saved_over_a_folder_are_another_run(workplace, perplexity):
    folder = workplace.root / "model"
    cell = ["quant=fp", "model.name=mine", "model.source=path", f"model.path={folder}"]
    cell += ["model.tokenizer=null", "model.random=null"]
    save(folder)
    first, _ = perplexity(*cell)
    assert "skipped" in perplexity(*cell)[1]
    save(folder, seed=7)
    second, said = perplexity(*cell)
    assert second != first
    assert "made again" in said and "model.safetensors is another file" in said
    assert "skipped" in perplexity(*cell)[1]


def test_a_copy_of_a_folder_with_other_times_is_the_same_folder(workplace, perplexity):
    folder = workplace.root / "model"
    cell = ["quant=fp", "model.name=mine", "model.source=path", f"model.path={folder}"]
    cell += ["model.tokenizer=null", "model.random=null"]
    save(folder)
    first, _ = perplexity(*cell)
    shutil.copytree(folder, workplace.root / "copy")
    shutil.rmtree(folder)
    (workplace.root / "copy").rename(folder)
    os.utime(folder / "model.safetensors", (1, 1))
    again, said = perplexity(*cell)
    assert again == first and "skipped" in said and "made again" not in said


@pytest.mark.parametrize("file", ["calibration.txt", "wikitext2.txt"])
def test_a_changed_text_is_another_run(workplace, perplexity, file):
    first, _ = perplexity("quant=awq")
    path = workplace.root / file
    path.write_text(path.read_text().replace("model", "weight"))
    second, said = perplexity("quant=awq")
    assert second != first and f"{file} is another file" in said


def test_a_calibration_file_does_not_matter_to_a_method_that_reads_none(workplace, perplexity):
    perplexity("quant=rtn")
    (workplace.root / "calibration.txt").write_text("another")
    assert "skipped" in perplexity("quant=rtn")[1]


def test_a_sweep_and_its_plan_run_changed_cells_again(workplace, perplexity, capsys):
    sweep = ["-m", "quant=rtn,awq", *workplace.cell]
    assert main(sweep) == 0
    path = workplace.root / "calibration.txt"
    path.write_text(path.read_text().replace("model", "weight"))
    capsys.readouterr()
    assert main(["plan", *sweep]) == 0
    assert "1 finished" in capsys.readouterr().out
    assert main(sweep) == 0
    said = capsys.readouterr().err
    assert said.count("made again") == 1 and said.count("finished before, skipped") == 1


def test_equal_weights_under_another_configuration_have_numbers_of_their_own(workplace):
    perplexities = []
    for name, rope in (("plain", 1.0), ("scaled", 8.0)):
        folder = workplace.root / name
        save(folder)
        path = folder / "config.json"
        config = json.loads(path.read_text())
        config["rope_parameters"] = {"rope_type": "linear", "factor": rope, "rope_theta": 1e4}
        path.write_text(json.dumps(config))
        cell = ["quant=rtn", f"model.name={name}", "model.source=path", f"model.path={folder}"]
        cell += ["model.tokenizer=null", "model.random=null"]
        assert main([*workplace.cell, *cell]) == 0
        record = next(r for r in find_runs(workplace.runs)[0] if f"{name}-" in r.run_id)
        perplexities.append(record.metric("wikitext2-64", "perplexity").value)
        shutil.rmtree(workplace.runs)
    assert perplexities[0] != perplexities[1]


def test_an_infinite_perplexity_is_a_failed_cell_and_breaks_no_report(workplace):
    folder = workplace.root / "broken"
    model = random_model(LLAMA_SHAPE | {"tie_word_embeddings": False})
    model.lm_head.weight.data *= 1e5
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    broken = ["quant=fp", "model.name=broken", "model.source=path", f"model.path={folder}"]
    broken += ["model.tokenizer=null", "model.random=null"]
    assert main([*workplace.cell, *broken]) == 2
    (record,), _ = find_runs(workplace.runs)
    assert record.status == "failed" and record.metrics[0].value is None
    assert "not finite: wikitext2-64 perplexity" in record.error
    assert main(["quant=rtn", *workplace.cell]) == 0
    assert main(["report"]) == 0 and main(["ls"]) == 0 and main(["show", record.run_id]) == 0
    assert "| RTN | 3 |" in (workplace.reports / "all" / "report.md").read_text()


def test_a_run_of_the_longest_names_keeps_its_record(workplace):
    long = [f"model.name={'m' * 80}", f"quant.name={'q' * 80}", f"scenario.name={'s' * 80}"]
    assert main([*workplace.cell, "quant=awq", *long]) == 0
    ((record,), damaged) = find_runs(workplace.runs)
    assert record.status == "finished" and not damaged
