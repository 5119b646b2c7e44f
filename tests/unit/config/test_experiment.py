import pytest


@pytest.mark.parametrize(
    ("quant", "quantizes", "needs_calibration"),
    [
        ("fp", False, False),
        ("rtn", True, False),
        ("awq", True, True),
        ("faq", True, True),
        ("gptq", True, True),
        ("qep", True, True),
        ("loaq", True, True),
    ],
)
def test_a_method_says_whether_it_quantizes_and_what_it_reads(
    compose, quant, quantizes, needs_calibration
):
    experiment = compose("model=tiny-llama", f"quant={quant}")
    assert experiment.quantizes is quantizes
    assert experiment.needs_calibration is needs_calibration


def test_a_scenario_overrules_the_calibration(compose):
    experiment = compose("model=tiny-llama", "scenario=math-only", "scenario.n_samples=3")
    assert experiment.calibration_domain == "math"
    assert experiment.n_calibration_samples == 3


def test_without_a_scenario_the_calibration_stands(compose):
    experiment = compose("model=tiny-llama", "calibration=code")
    found = (experiment.calibration_domain, experiment.n_calibration_samples)
    assert found == ("code", 32)


@pytest.mark.parametrize(
    ("own", "limit", "expected"),
    [("null", "null", None), ("4", "null", 4), ("null", "3", 3), ("4", "3", 3), ("2", "3", 2)],
)
def test_a_limit_caps_windows_and_documents(compose, own, limit, expected):
    experiment = compose(
        "model=tiny-llama",
        f"evaluation.n_windows={own}",
        f"evaluation.n_documents={own}",
        f"limit={limit}",
    )
    assert (experiment.n_windows(), experiment.n_documents()) == (expected, expected)
