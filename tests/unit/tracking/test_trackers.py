from __future__ import annotations

import http.server
import json
import logging
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from offline_runs import config_of, history_of, logged, only, summary_of

import faqbench.tracking.wandb
from faqbench.config.experiment import TrackingSection
from faqbench.records import SCHEMA_VERSION, Gate, Metric, RunData, RunRecord, StageTiming
from faqbench.tracking import NoTracker, Tracker, tracker
from faqbench.tracking.wandb import has_credentials, resolve_mode, stable_id

KEY = "0123456789abcdef0123456789abcdef01234567"


def section(**changed: Any) -> TrackingSection:
    fields = {
        "name": "wandb",
        "project": "faqbench",
        "entity": None,
        "mode": "offline",
        "group": "quickstart",
        "tags": ("demo",),
    }
    return TrackingSection.model_validate({**fields, **changed})


def run_data(**changed: Any) -> RunData:
    metric = Metric(
        task="wikitext2-512",
        name="perplexity",
        value=57.5,
        stderr=1.25,
        n=20440,
        unit="perplexity",
        higher_is_better=False,
    )
    record = RunRecord(
        schema_version=SCHEMA_VERSION,
        run_id="smollm2-135m-faq-w3-g64-s0-1f0c9a2b7d",
        status="finished",
        error=None,
        config={"quant": {"round": "nearest", "bits": 3}, "model": {"name": "smollm2-135m"}},
        environment={},
        fingerprints={"weights": "abc"},
        stages={"quantize": StageTiming(seconds=2.5, cached=False)},
        metrics=(metric, replace(metric, name="nan", value=None, stderr=None)),
        bits_per_weight=3.5,
        checkpoint_bytes=1000,
        peak_memory_bytes=2_000_000,
        gates=(Gate(name="finite", passed=True, detail=""),),
        seconds=12.0,
    )
    layers = pd.DataFrame(
        {
            "block": [0, 0, 1, 1],
            "linear": ["q", "k", "q", "k"],
            "relative_error": [0.1, 0.3, 0.2, np.nan],
            "alpha": [None, 0.5, 0.25, 0.5],
        }
    )
    return RunData(record=replace(record, **changed), items=pd.DataFrame(), tokens={}, layers=layers)


@pytest.fixture(autouse=True)
def no_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("NETRC", str(home / ".netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(home / "wandb"))
    return home


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    runs = tmp_path_factory.mktemp("runs")
    Tracker(section(), runs).log(run_data())
    return runs, logged(runs)


def ours(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """Leave out W&B's own logger, which pytest listens to though it reaches no other handler."""
    return [record for record in caplog.records if record.name == "faqbench"]


def test_an_offline_run_carries_the_records_identity_and_config(finished: Any) -> None:
    (run,) = only(finished[1], "run")
    assert run["run_id"] == run["display_name"] == run_data().record.run_id
    assert (run["project"], run["run_group"], run["job_type"]) == ("faqbench", "quickstart", "cell")
    assert run["tags"] == ["demo"]
    assert config_of(finished[1]) == {**run_data().record.config, "fingerprints": {"weights": "abc"}}


def test_final_numbers_are_in_the_summary_under_stable_names(finished: Any) -> None:
    summary = summary_of(finished[1])
    expected = {
        "eval/wikitext2-512/perplexity": 57.5,
        "eval/wikitext2-512/perplexity_stderr": 1.25,
        "bits_per_weight": 3.5,
        "seconds": 12.0,
        "peak_memory_bytes": 2_000_000,
        "gates/finite": True,
        "gates_passed": True,
        "stages/quantize/seconds": 2.5,
        "status": "finished",
    }
    assert {name: summary[name] for name in expected} == expected
    assert not [name for name in summary if name.startswith("eval/") and "nan" in name]


def test_the_curve_is_the_mean_error_of_each_block(finished: Any) -> None:
    history = history_of(finished[1])
    curve = [(row["block"], row["blocks/relative_error"]) for row in history if "block" in row]
    assert curve == [(0, pytest.approx(0.2)), (1, pytest.approx(0.2))]
    axes = {m.get("glob_name"): m.get("step_metric") for m in only(finished[1], "metric")}
    assert axes["blocks/*"] == "block"


def test_tables_hold_typed_columns(finished: Any) -> None:
    (path,) = finished[0].rglob("media/table/tables/linears_*.table.json")
    table = json.loads(path.read_text())
    assert table["columns"] == ["block", "linear", "relative_error", "alpha"]
    assert table["data"][0] == [0, "q", 0.1, None]
    assert len(list(finished[0].rglob("media/table/tables/metrics_*.table.json"))) == 1


def test_nothing_but_the_record_is_kept(finished: Any) -> None:
    names = {path.name for path in finished[0].rglob("files/**/*") if path.is_file()}
    kept = (".table.json", ".png", "config.yaml", "wandb-summary.json")
    assert all(name.endswith(kept) for name in names)
    assert [e["exit_code"] for e in only(finished[1], "exit")] == [0]
    staged = [
        Path(entry["local_path"])
        for artifact in only(finished[1], "artifact")
        for entry in artifact["manifest"]["contents"]
    ]
    assert len(staged) == 2
    assert all(path.is_file() and path.is_relative_to(finished[0]) for path in staged)
    assert not only(finished[1], "stats")


def test_the_same_record_twice_is_one_run(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    n_staged = []
    for _ in range(2):
        Tracker(section(), runs).log(run_data())
        n_staged.append(len(list((runs / "wandb" / "staging").rglob("*"))))
    (run,) = only(logged(runs), "run")
    assert n_staged[0] == n_staged[1] > 0
    assert run["run_id"] == stable_id(run_data().record.run_id)


def test_a_failed_run_is_finished_with_exit_code_1_and_a_key_is_never_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    data = run_data(status="failed", error="a sentence", metrics=())
    Tracker(section(), tmp_path).log(replace(data, layers=pd.DataFrame()))
    records = logged(tmp_path)
    assert [e["exit_code"] for e in only(records, "exit")] == [1]
    assert only(records, "run")[-1]["tags"] == ["demo", "failed"]
    assert summary_of(records)["error"] == "a sentence"
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not [path for path in files if KEY.encode() in path.read_bytes()]
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""


def test_a_folder_that_cannot_be_written_is_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "runs").write_text("a file, not a folder")
    Tracker(section(), tmp_path / "runs").log(run_data())
    (record,) = ours(caplog)
    assert record.levelno == logging.WARNING
    assert "its record is complete" in record.getMessage()


def test_a_server_that_does_not_answer_leaves_an_offline_run(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setattr(faqbench.tracking.wandb, "_answers", lambda _url: False)
    Tracker(section(mode="auto"), tmp_path).log(run_data())
    (record,) = ours(caplog)
    assert "W&B does not answer" in record.getMessage()
    assert [e["exit_code"] for e in only(logged(tmp_path), "exit")] == [0]
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""


def test_whether_a_server_answers_is_known_at_once() -> None:
    answers = faqbench.tracking.wandb._answers
    handler = http.server.BaseHTTPRequestHandler
    with http.server.HTTPServer(("127.0.0.1", 0), handler) as server:
        url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        assert answers(url)  # 501, but an answer
        thread.join()
    assert not answers(url)


def test_a_crash_inside_wandb_is_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = run_data(run_id="ok")
    Tracker(section(project="no/slashes?"), tmp_path).log(data)
    (record,) = ours(caplog)
    assert "W&B could not show run ok" in record.getMessage()


def test_a_defect_of_our_own_is_not_hidden(tmp_path: Path) -> None:
    with pytest.raises(AttributeError):
        Tracker(section(), tmp_path).log(None)  # type: ignore[arg-type]


def test_disabled_and_none_write_nothing(tmp_path: Path) -> None:
    tracker(section(mode="disabled"), tmp_path).log(run_data())
    quiet = tracker(section(name="none"), tmp_path)
    quiet.log(run_data())
    assert isinstance(quiet, NoTracker)
    assert not (tmp_path / "wandb").exists()


def test_auto_is_online_exactly_where_credentials_are_configured(
    no_account: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert resolve_mode("auto") == resolve_mode("online") == "offline"
    (no_account / ".netrc").write_text(f"machine api.wandb.ai login user password {KEY}\n")
    (no_account / ".netrc").chmod(0o600)
    assert resolve_mode("auto") == resolve_mode("online") == "online"
    assert resolve_mode("offline") == "offline"
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert resolve_mode("auto") == "offline"


def test_credentials_of_a_self_hosted_server_and_of_the_environment_count(
    no_account: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (no_account / ".netrc").write_text(f"machine wandb.example.org login user password {KEY}\n")
    (no_account / ".netrc").chmod(0o600)
    assert not has_credentials()
    (no_account / "wandb").mkdir()
    settings = no_account / "wandb" / "settings"
    settings.write_text("[default]\nbase_url = https://wandb.example.org\n")
    assert has_credentials()
    settings.unlink()
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    assert has_credentials()


def test_a_damaged_netrc_is_no_credentials(no_account: Path) -> None:
    (no_account / ".netrc").write_text("machine")
    assert not has_credentials()


def test_ids_are_stable_legal_and_short() -> None:
    assert stable_id("a-b_c-1") == "a-b_c-1"
    long = "qwen2.5-" + "x" * 200
    assert stable_id(long) == stable_id(long)
    assert len(stable_id(long)) == 64
    assert len({stable_id("a.b"), stable_id("a-b"), stable_id("a+b")}) == 3
    assert stable_id("a.b").replace("-", "").isalnum()


def test_wandb_is_not_imported_until_a_run_is_shown() -> None:
    code = "import sys, faqbench.tracking; assert 'wandb' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=1800)
