import json

import pytest

from faqbench.records import RunRecord


def test_a_record_survives_json(record):
    original = record()
    assert RunRecord.from_json(json.loads(json.dumps(original.to_json()))) == original


@pytest.mark.parametrize("version", [2, 99, 0, "1", None])
def test_another_schema_is_refused_with_both_versions(record, version):
    raw = record().to_json() | {"schema_version": version}
    with pytest.raises(ValueError, match=rf"schema_version {version!r} is not 1, the one that"):
        RunRecord.from_json(raw)


def test_keys_added_by_a_later_writer_are_kept(record):
    raw = record().to_json() | {"carbon_grams": 3}
    assert RunRecord.from_json(raw).extra["carbon_grams"] == 3


@pytest.mark.parametrize("missing", ["stages", "metrics", "run_id", "peak_memory_bytes"])
def test_a_record_that_lacks_a_key_is_malformed(record, missing):
    raw = record().to_json()
    del raw[missing]
    with pytest.raises(ValueError, match="malformed record"):
        RunRecord.from_json(raw)


@pytest.mark.parametrize("metrics", [[1], [{"task": "x"}], "text", None])
def test_metrics_of_another_shape_are_malformed(record, metrics):
    raw = record().to_json() | {"metrics": metrics}
    with pytest.raises(ValueError, match="malformed record"):
        RunRecord.from_json(raw)


def test_a_metric_is_found_by_task_and_name(record):
    assert record().metric("wikitext2-512", "perplexity").value == 29.19
    assert record().metric("wikitext2-512", "acc") is None


def test_a_configuration_that_no_experiment_had_is_malformed(record):
    raw = record().to_json()
    raw["config"] |= {"quant": {"scale": "awq", "round": "nearest"}, "calibration": {"domain": {"wiki": 1}}}
    with pytest.raises(ValueError, match="malformed record: config is that of no experiment"):
        RunRecord.from_json(raw)
