"""Published values: every one has an experiment that runs its cell, and ours get an honest verdict."""

import dataclasses

import pytest
import yaml

from faqbench.cli.composing import conf_dir
from faqbench.config.identity import deciding_config
from faqbench.formatting import MINUS, NONE
from faqbench.records import find_runs
from faqbench.report import facts, reproductions
from faqbench.report.panels import build_panels
from faqbench.report.published import _entries, _sources, _verdict, measured_beside, published_table


def axes_of(name):
    raw = yaml.safe_load((conf_dir() / "experiment" / f"{name}.yaml").read_text())
    return {k: str(v).split(",") for k, v in raw["hydra"]["sweeper"]["params"].items()}


@pytest.mark.parametrize("name", list(reproductions()))
def test_every_published_cell_is_one_of_its_experiment(name, compose):
    axes, groups = axes_of(name), _sources()[name].groups
    first = [f"{key}={values[0]}" for key, values in axes.items()]
    experiment = compose(f"experiment={name}", "hydra.sweeper.params=null", *first)
    config = experiment.model_dump(mode="json")
    measured = {*experiment.evaluation.protocols, *experiment.evaluation.tasks}
    assert deciding_config(config)["model"]["source"] == "hub"
    for group in groups:
        assert not group["tasks"] or measured & set(group["tasks"])
        assert group["slug"] in axes.get("model", [experiment.model.name])
        for key, value in group["protocol"].items():
            assert facts.config_value(config, key) == (value if value is None else facts.as_text(value))
        for cell in (group | cell for cell in group["cells"]):
            assert cell["method"] in axes["quant"]
            for key in ("bits", "group_size"):
                known = axes.get(key, [str(config[key])])
                assert cell.get(key) is None or str(cell[key]) in known


def test_a_number_passes_or_fails_only_where_its_protocol_is_stated_and_kept(make_run, tmp_path):
    make_run(tmp_path, "rtn", model="llama-2-7b")
    records, _ = find_runs(tmp_path)
    (panel,) = build_panels(records)
    row, column = panel.rows[0], panel.of_kind("perplexity")[0]
    value = column.estimate(row).value
    entry = next(e for e in _entries() if e.method == "rtn" and e.tolerance == 0.5)
    kept = {"quant.symmetric": False}
    near = dataclasses.replace(entry, value=f"{value * 1.004:.4f}", protocol=kept)
    assert _verdict(near, row, column).startswith(f"pass ({MINUS}0.4")
    far = dataclasses.replace(near, value=f"{value / 1.02:.4f}")
    assert _verdict(far, row, column).startswith("fail (+2.0")
    unstated = dataclasses.replace(far, tolerance=None)
    assert _verdict(unstated, row, column) == "protocol not stated"
    other = dataclasses.replace(far, protocol={"quant.symmetric": True, "evaluation.n_windows": None})
    assert _verdict(other, row, column) == "another protocol (symmetric=false, n_windows=40)"


def test_nothing_stands_beside_the_published_values_of_other_models(make_run, tmp_path):
    make_run(tmp_path, "rtn")
    panels = build_panels(find_runs(tmp_path)[0])
    assert measured_beside(panels) is None
    assert {row[7].text for row in published_table(panels).rows} == {NONE}
