"""Equal results have equal run ids; what decides a result changes them."""

import json
import re

import pytest

from faqbench.config import identity, run_id
from faqbench.config.calibration import MAX_CHARACTERS


@pytest.fixture
def id_of(compose):
    return lambda *overrides: run_id(compose("model=tiny-llama", *overrides))


def same(id_of, first, second):
    return id_of(*first) == id_of(*second)


@pytest.mark.parametrize(
    "override",
    [
        "tracking=none",
        "tracking.project=other",
        "tracking.group=study",
        "paths.runs=/elsewhere",
        "paths.reports=/elsewhere",
        "device=cpu",
        "report.name=study",
        "rerun=true",
        "evaluation.keep_items=false",
        "model.notes=other",
        "quant.trace_windows=1",
    ],
)
@pytest.mark.parametrize("quant", ["fp", "faq"])
def test_where_a_run_is_written_shown_and_computed_does_not_count(id_of, quant, override):
    assert same(id_of, [f"quant={quant}"], [f"quant={quant}", override])


@pytest.mark.parametrize(
    "override",
    [
        "bits=4",
        "group_size=64",
        "symmetric=true",
        "seed=1",
        "calibration=code",
        "calibration.n_samples=8",
        "scenario=math-only",
        "window=1",
        "gamma=0.5",
        "quant.search.n_grid=10",
    ],
)
def test_the_baseline_ignores_bits_and_calibration(id_of, override):
    assert same(id_of, ["quant=fp"], ["quant=fp", override])


@pytest.mark.parametrize(
    "override", ["seed=1", "calibration=code", "scenario=few-samples", "calibration.tokens=norm_cap"]
)
def test_rtn_ignores_calibration_and_awq_does_not(id_of, override):
    assert same(id_of, ["quant=rtn"], ["quant=rtn", override])
    assert not same(id_of, ["quant=awq"], ["quant=awq", override])


@pytest.mark.parametrize(
    ("quant", "override"),
    [
        ("rtn", "quant.search.n_grid=10"),
        ("rtn", "gamma=0.5"),
        ("awq", "gamma=0.5"),
        ("awq", "window=1"),
        ("awq", "quant.preview.roles=residual"),
        ("awq", "quant.gptq.damping=0.1"),
        ("awq", "quant.correction.strength=0.1"),
        ("gptq", "quant.search.n_grid=10"),
        ("qep", "quant.gptq.damping=0.1"),
        ("gptq", "quant.gptaq.beta=0.5"),
        ("foem", "quant.gptaq.alpha=0.5"),
        ("gptaq", "quant.gptaq.original=0.5"),
        ("qronos", "quant.gptq.damping=0.1"),
        ("gptq", "quant.mse.p=2"),
        ("awq", "quant.refinement.steps=7"),
        ("awq", "quant.refinement.adapt_on=evaluation"),
        ("lrquant", "quant.refinement.offset_rate=0.5"),
        ("signround", "quant.refinement.start=none"),
        ("signround", "quant.gptq.damping=0.1"),
    ],
)
def test_options_of_idle_stages_do_not_count(id_of, quant, override):
    assert same(id_of, [f"quant={quant}"], [f"quant={quant}", override])


@pytest.mark.parametrize(
    ("quant", "override"),
    [
        ("fp", "dtype=float16"),  # which no CPU of today means by auto
        ("fp", "limit=3"),
        ("fp", "evaluation.protocols=[wikitext2-64]"),
        ("fp", "evaluation.tasks=[piqa_validation]"),
        ("fp", "evaluation.num_fewshot=1"),
        ("fp", "evaluation.add_bos=true"),
        ("fp", "evaluation.batch_size=1"),
        ("fp", "model.random.seed=1"),
        ("rtn", "bits=4"),
        ("rtn", "group_size=64"),
        ("rtn", "symmetric=true"),
        ("rtn", 'quant.skip=["*.down_proj"]'),
        ("rtn", 'quant.overrides=[{pattern: "*", bits: 4, group_size: null}]'),
        ("awq", "quant.clip=none"),
        ("awq", "quant.search.n_grid=10"),
        ("awq", "calibration.seq_len=64"),
        ("awq", "calibration.dtype=bfloat16"),
        ("faq", "gamma=0.5"),
        ("faq", "window=1"),
        ("faq", "quant.preview.roles=residual"),
        ("gptq", "quant.gptq.act_order=true"),
        ("qep", "quant.correction.strength=0.1"),
        ("gptaq", "quant.gptaq.beta=0.1"),
        ("rescomp", "quant.gptaq.original=0.1"),
        ("qronos", "quant.gptq.act_order=false"),
        ("gptq-strong", "quant.mse.steps=40"),
        ("gptq-strong", "quant.clip=mse_unweighted"),
        ("omniquant", "quant.refine=lrquant"),
        ("lrquant", "quant.refinement.start=none"),
        ("lrquant-plus", "quant.refinement.seed=1"),
        ("signround", "quant.refinement.patience=10"),
        ("signround", "quant.refinement.offset_rate=0.5"),
    ],
)
def test_whatever_decides_the_result_counts(id_of, quant, override):
    assert not same(id_of, [f"quant={quant}"], [f"quant={quant}", override])


def test_the_usual_symmetric_grid_is_no_part_of_an_identity_and_another_is(id_of):
    symmetric = ["quant=rtn", "symmetric=true"]
    assert same(id_of, symmetric, [*symmetric, "quant.symmetric_grid=signed"])
    assert not same(id_of, symmetric, [*symmetric, "quant.symmetric_grid=half_range"])


def test_a_preset_and_the_same_stages_spelled_out_differ_in_name_alone(compose):
    preset = compose("model=tiny-llama", "quant=awq")
    spelled = compose("model=tiny-llama", "quant=rtn", "quant.scale=awq", "quant.clip=search")
    assert identity(preset) == identity(spelled)


def test_a_wikitext2_file_counts_only_where_it_is_read(id_of):
    path = "data.wikitext2_path=/some/file.txt"
    heldout = ["quant=fp", "evaluation.protocols=[heldout-wiki-64]"]
    wikitext = ["quant=fp", "evaluation.protocols=[wikitext2-64]"]
    assert same(id_of, heldout, [*heldout, path])
    assert not same(id_of, wikitext, [*wikitext, path])


def test_a_limit_that_cuts_nothing_further_does_not_count(id_of):
    capped = ["quant=fp", "evaluation.n_windows=5", "evaluation.n_documents=5"]
    assert same(id_of, capped, [*capped, "limit=5"])
    assert same(id_of, capped, [*capped, "limit=9"])


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (["scenario=mixture", "scenario.skew=0"], []),
        (["scenario=mixture", "scenario.skew=1"], ["calibration=code"]),
        (["scenario=mixture"], ["calibration.mixture={wiki: 0.5, code: 0.5}"]),
        (["scenario=few-samples"], ["calibration.n_samples=4"]),
        (["scenario.noise_rate=0", "scenario.rarity=0", "scenario.copies=1"], []),
        (["scenario=random-tokens", "calibration=code"], ["scenario=random-tokens"]),
        (["scenario=label-leak", "calibration=code"], ["scenario=label-leak"]),
        (["calibration.column=other"], []),
        (["calibration.hub.split=test"], []),
        (["calibration.n_reference=4"], []),
        (["scenario.allow_overlap=[x]"], []),
    ],
)
def test_the_same_windows_by_scenario_or_by_calibration_are_the_same(compose, first, second):
    one, other = (compose("model=tiny-llama", "quant=awq", *o) for o in (first, second))
    assert identity(one) == identity(other)


@pytest.mark.parametrize(
    "override",
    [
        "calibration.documents=apart",
        "calibration.add_bos=true",
        "allow_repeat=true",
        "calibration.mixture={wiki: 0.5, code: 0.5}",
        "scenario.min_characters=10",
        "scenario.max_characters=10",
        "scenario.length_power=1",
        "scenario.rarity=1",
        "scenario.copies=2",
        "scenario.noise_rate=0.1",
        "scenario.shuffle_tokens=true",
        "scenario.random_tokens=true",
        "scenario.leak=true",
    ],
)
def test_whatever_decides_the_windows_counts(id_of, override):
    assert not same(id_of, ["quant=awq"], ["quant=awq", override])


@pytest.mark.parametrize(
    "override", ["calibration.column=x", "calibration.hub.config=x", "calibration.hub.split=x"]
)
def test_where_a_hub_set_is_read_counts(id_of, override):
    hub = ["quant=awq", "calibration.domain=hub:owner/name"]
    assert not same(id_of, hub, [*hub, override])


def test_what_a_model_needs_of_bos_counts_where_it_is_used_alone(id_of):
    used = ["quant=awq", "calibration.add_bos=false", "evaluation.add_bos=false"]
    assert same(id_of, used, [*used, "model.add_bos=true"])


def test_a_scenario_is_what_it_changes(compose):
    by_scenario = compose("model=tiny-llama", "quant=awq", "scenario=code-only")
    by_calibration = compose("model=tiny-llama", "quant=awq", "calibration=code")
    assert identity(by_scenario) == identity(by_calibration)


@pytest.mark.parametrize(
    ("overrides", "pattern"),
    [
        (["quant=fp"], r"tiny-llama-fp-[0-9a-f]{10}"),
        (["quant=rtn", "bits=4"], r"tiny-llama-rtn-w4-g32-[0-9a-f]{10}"),
        (["quant=rtn", "group_size=-1"], r"tiny-llama-rtn-w3-grow-[0-9a-f]{10}"),
        (["quant=faq", "seed=2"], r"tiny-llama-faq-w3-g32-s2-[0-9a-f]{10}"),
        (["quant=awq", "scenario=math-only"], r"tiny-llama-awq-w3-g32-s0-math-only-[0-9a-f]{10}"),
    ],
)
def test_a_run_id_is_readable_and_safe_as_a_folder(id_of, overrides, pattern):
    found = id_of(*overrides)
    assert re.fullmatch(pattern, found)
    assert re.fullmatch(r"[A-Za-z0-9._-]+", found)


def test_an_identity_is_json(compose):
    found = identity(compose("model=tiny-llama", "quant=faq"))
    assert json.loads(json.dumps(found)) == found


def test_an_id_of_long_names_is_a_folders_name_and_tells_its_cells_apart(compose):
    names = [f"model.name={'m' * 80}", f"quant.name={'q' * 80}", f"scenario.name={'s' * 80}"]
    ids = [run_id(compose("model=tiny-llama", *names, f"bits={bits}")) for bits in (3, 4)]
    assert len(set(ids)) == 2
    assert all(len(i.encode()) < 180 and i.startswith("m" * 80) for i in ids)


def test_the_bound_on_what_is_read_changes_no_id_as_conf_has_it(compose):
    standard = compose("model=tiny-llama", "quant=awq")
    assert standard.calibration.max_characters == MAX_CHARACTERS
    assert "max_characters" not in identity(standard)["calibration"]
    assert run_id(compose("model=tiny-llama", "quant=awq", "calibration.max_characters=99")) != run_id(
        standard
    )
