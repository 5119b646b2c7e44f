"""trackio and MLflow behind the same interface; each needs its extra."""

import logging
from dataclasses import replace

import pandas as pd
import pytest
from toy_runs import write_toy_run

from faqbench.config.experiment import TrackingSection
from faqbench.records import read_run
from faqbench.report import ReportRequest, write_report
from faqbench.tracking import ProgressSample, tracker
from faqbench.tracking.samples import ProgressWriter

pytestmark = pytest.mark.filterwarnings("ignore")
FAQ = "smollm2-135m-faq-w3-g64-s0-0a1b2c"


def section(name, **changed):
    fields = {"name": name, "project": "study", "entity": None, "mode": "auto", "group": "g"}
    return TrackingSection.model_validate({**fields, "tags": ("demo",), **changed})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    runs = tmp_path_factory.mktemp("services") / "runs"
    write_toy_run(runs, "fp", run_id="smollm2-135m-fp-0123456789")
    write_toy_run(runs, "faq")
    writer = ProgressWriter(runs, FAQ, "g")
    for i in range(3):
        writer.add(ProgressSample(seconds=i, activity="quantize", done=i, total=4, memory_bytes=10**9))
    writer.end("ended")
    return runs


@pytest.fixture(scope="module")
def mlflow_runs(folder):
    mlflow = pytest.importorskip("mlflow", reason="needs the extra mlflow")
    pytest.importorskip("sqlalchemy", reason="needs the whole mlflow, not mlflow-skinny alone")
    for _ in range(2):
        tracker(section("mlflow"), folder).log(read_run(folder / FAQ))
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{folder / 'mlflow' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("study")
    return client, client.search_runs([experiment.experiment_id])


def test_mlflow_shows_a_run_once_with_its_numbers_and_parameters(mlflow_runs):
    _, (run,) = mlflow_runs
    record_metrics = run.data.metrics
    assert run.info.run_name == FAQ and run.info.status == "FINISHED"
    assert record_metrics["eval/heldout-wiki-512/perplexity"] > 1
    assert run.data.params["quant.preview.gamma"] == "0.85"
    assert run.data.tags["group"] == "g" and run.data.tags["tag.demo"] == "true"
    assert run.data.tags["faqbench.baseline"] == "smollm2-135m-fp-0123456789"


def test_mlflow_keeps_one_point_per_block_and_sample_however_often_it_is_shown(mlflow_runs):
    client, (run,) = mlflow_runs
    curve = client.get_metric_history(run.info.run_id, "blocks/added_up_error")
    assert [point.step for point in sorted(curve, key=lambda p: p.step)] == list(range(30))
    assert len(client.get_metric_history(run.info.run_id, "live/memory_bytes")) == 3


def test_mlflow_keeps_tables_plots_and_the_record(mlflow_runs):
    client, (run,) = mlflow_runs
    shown = {f.path for f in client.list_artifacts(run.info.run_id, "shown")}
    assert {"shown/comparison.csv", "shown/linears.csv", "shown/depth.png"} <= shown
    kept = {f.path for f in client.list_artifacts(run.info.run_id, "record")}
    assert "record/record.json" in kept


def test_mlflow_marks_a_failed_run(folder, mlflow_runs):
    client, _ = mlflow_runs
    data = read_run(folder / FAQ)
    failed = replace(data.record, run_id="f", status="failed", error="broke", metrics=(), extra={})
    tracker(section("mlflow"), folder).log(replace(data, record=failed, layers=pd.DataFrame()))
    place = client.get_experiment_by_name("study").experiment_id
    (run,) = client.search_runs([place], filter_string="attributes.run_name = 'f'")
    assert run.info.status == "FAILED" and run.data.tags["faqbench.error"] == "broke"


@pytest.fixture(scope="module")
def trackio(folder):
    return pytest.importorskip("trackio", reason="needs the extra trackio")


def test_trackio_shows_a_run_once_with_all_its_numbers(folder, tmp_path, monkeypatch, trackio):
    # trackio has settled on its folder when it was imported: a process of its own
    import subprocess
    import sys

    code = f"""
import json
from pathlib import Path
from faqbench.config.experiment import TrackingSection
from faqbench.records import read_run
from faqbench.tracking import tracker
runs = Path({str(folder)!r})
section = TrackingSection.model_validate_json({section("trackio").model_dump_json()!r})
for _ in range(2):
    tracker(section, runs).log(read_run(runs / {FAQ!r}))
import trackio
(run,) = trackio.Api().runs("study")
rows = trackio.SQLiteStorage.get_logs("study", run.name, max_points=None, run_id=run.id)
print("result:" + json.dumps([run.name, run.config["quant"]["bits"], rows], default=str))
"""
    monkeypatch.delenv("TRACKIO_DIR", raising=False)
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    import json

    name, bits, rows = json.loads(done.stdout.partition("result:")[2].splitlines()[0])
    assert done.stdout.startswith("result:"), "trackio says nothing of its own"
    assert name == FAQ and bits == 3
    assert [row["block"] for row in rows if "block" in row] == list(range(30))
    assert sum("live/memory_bytes" in row for row in rows) == 3
    assert sum("eval/heldout-wiki-512/perplexity" in row for row in rows) == 1
    assert any("plots/depth" in row and "tables/comparison" in row for row in rows)
    assert (folder / "trackio").is_dir()


@pytest.mark.parametrize("name", ["trackio", "mlflow"])
def test_a_service_that_is_not_installed_is_one_warning_with_the_remedy(folder, name, monkeypatch, caplog):
    monkeypatch.setitem(__import__("sys").modules, name, None)
    tracker(section(name), folder).log(read_run(folder / FAQ))
    (record,) = [r for r in caplog.records if r.name == "faqbench"]
    assert record.levelno == logging.WARNING
    assert f"pip install 'faqbench[{name}]'" in record.getMessage()


@pytest.mark.parametrize("name", ["trackio", "mlflow"])
def test_disabled_shows_nothing(folder, tmp_path, name):
    tracker(section(name, mode="disabled"), tmp_path).log(read_run(folder / FAQ))
    assert not list(tmp_path.iterdir())


def test_mlflow_shows_a_report_with_its_files(folder, mlflow_runs, tmp_path):
    client, _ = mlflow_runs
    paths = write_report(ReportRequest(runs=folder, reports=tmp_path, name="study", select=("*fp*",)))
    tracker(section("mlflow"), folder).show_report(paths.folder)
    place = client.get_experiment_by_name("study").experiment_id
    (run,) = client.search_runs([place], filter_string="attributes.run_name = 'report-study'")
    assert "index.html" in {f.path for f in client.list_artifacts(run.info.run_id)}


def test_mlflow_shows_the_looks_of_a_decision(folder, mlflow_runs):
    client, _ = mlflow_runs
    points = [{"settle/draws": 5.0}, {"settle/draws": 6.0}]
    for n in (1, 2):
        tracker(section("mlflow"), folder).show_points("settle-x", {"question": "?"}, points[:n])
    place = client.get_experiment_by_name("study").experiment_id
    (run,) = client.search_runs([place], filter_string="attributes.run_name = 'settle-x'")
    history = client.get_metric_history(run.info.run_id, "settle/draws")
    assert [point.value for point in history] == [5.0, 6.0]
    assert run.data.params["question"] == "?"
