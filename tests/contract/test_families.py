"""Every model family has a tiny model, and every tiny model is quantized by every kind of method."""

from importlib import resources

import pytest
import yaml

from faqbench.cli.composing import conf_dir

TINY = sorted(p.stem for p in conf_dir().glob("model/tiny-*.yaml"))
FAMILIES = sorted(
    f.name.removesuffix(".yaml")
    for f in (resources.files("faqbench.models") / "families").iterdir()
    if f.name.endswith(".yaml")
)
MODEL_TYPES = {
    yaml.safe_load((conf_dir() / f"model/{name}.yaml").read_text())["random"]["model_type"] for name in TINY
}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_and_each_of_its_model_types_has_a_tiny_model(family):
    text = (resources.files("faqbench.models") / "families" / f"{family}.yaml").read_text()
    assert f"tiny-{family}" in TINY
    assert set(yaml.safe_load(text)["model_types"]) <= MODEL_TYPES


@pytest.mark.parametrize("quant", ["awq", "faq", "gptaq-strong", "qep", "qronos", "lrquant-plus"])
@pytest.mark.parametrize("name", TINY)
def test_every_tiny_model_is_quantized(run_cell, name, quant):
    options = ["quant.search.gqa_scale=repeat", "quant.refinement.steps=3"]
    protocol = "evaluation.protocols=[wikitext2-32]"
    _, data = run_cell(f"model={name}", f"quant={quant}", *options, protocol, "limit=2")
    assert [g for g in data.record.gates if not g.passed] == []
    known = data.layers[data.layers["relative_error"].notna()]
    assert known["relative_error"].between(0, 0.5).all()
