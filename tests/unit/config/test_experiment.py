import pytest

from faqbench.config.calibration import matched


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
def test_a_method_says_whether_it_quantizes_and_what_it_reads(compose, quant, quantizes, needs_calibration):
    experiment = compose("model=tiny-llama", f"quant={quant}")
    assert experiment.quantizes is quantizes
    assert experiment.needs_calibration is needs_calibration


def test_a_scenario_overrules_the_calibration(compose):
    experiment = compose("model=tiny-llama", "scenario=math-only", "scenario.n_samples=3")
    assert experiment.calibration_mixture == {"math": 1.0}
    assert experiment.n_calibration_samples == 3


def test_without_a_scenario_the_calibration_stands(compose):
    experiment = compose("model=tiny-llama", "calibration=code")
    found = (experiment.calibration_mixture, experiment.n_calibration_samples)
    assert found == ({"code": 1.0}, 32)


@pytest.mark.parametrize(
    ("overrides", "mixture"),
    [
        (["calibration.mixture={wiki: 0.7, code: 0.3}"], {"wiki": 0.7, "code": 0.3}),
        (["scenario=mixture"], {"wiki": 0.5, "code": 0.5}),
        (["scenario=mixture", "scenario.skew=0.25"], {"wiki": 0.75, "code": 0.25}),
        (["scenario=mixture", "scenario.skew=0"], {"wiki": 1.0}),
        (["scenario=mixture", "scenario.skew=1"], {"code": 1.0}),
        (["scenario=mixture", "calibration=code"], {"code": 1.0}),
        (["scenario.mixture={math: 0.5, code: 0.5}"], {"math": 0.5, "code": 0.5}),
        (
            ["scenario.mixture={math: 0.5, code: 0.5}", "scenario.skew=0.5"],
            {"wiki": 0.5, "math": 0.25, "code": 0.25},
        ),
    ],
)
def test_a_mixture_is_calibrations_own_and_the_scenarios_share(compose, overrides, mixture):
    found = compose("model=tiny-llama", *overrides).calibration_mixture
    assert found == pytest.approx(mixture)


def test_what_a_model_needs_of_bos_goes_to_calibration_and_evaluation_alike(compose):
    gemma, llama = compose("model=gemma3-270m"), compose("model=tiny-llama")
    assert gemma.calibration.add_bos and gemma.evaluation.add_bos
    assert not llama.calibration.add_bos and not llama.evaluation.add_bos


def test_the_matched_scenario_in_code_is_the_one_in_conf(compose):
    assert compose("model=tiny-llama").scenario == matched()


@pytest.mark.parametrize(
    ("own", "limit", "expected"),
    [("null", "null", None), ("4", "null", 4), ("null", "3", 3), ("4", "3", 3), ("2", "3", 2)],
)
def test_a_limit_caps_windows_and_documents(compose, own, limit, expected):
    experiment = compose(
        "model=tiny-llama", f"evaluation.n_windows={own}", f"evaluation.n_documents={own}", f"limit={limit}"
    )
    assert (experiment.n_windows(), experiment.n_documents()) == (expected, expected)
