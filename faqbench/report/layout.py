"""Jinja2 templates to text. HTML is escaped by default; Markdown through the filter `md`."""

from __future__ import annotations

import functools
from importlib.resources import files
from typing import Any

import jinja2
from markupsafe import Markup

from faqbench.report import markup
from faqbench.report.content import slug_of
from faqbench.report.figures import style

GENERATOR = b'<meta name="generator" content="faqbench">'  # by which a page is known as ours


def render(template: str, **values: Any) -> str:
    """Return a template's text with one newline at its end."""
    return _environment().get_template(template).render(**values).strip() + "\n"


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_source),
        autoescape=jinja2.select_autoescape(enabled_extensions=("html.j2",)),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["md"] = markup.escape_markdown
    environment.filters["md_table"] = markup.to_markdown
    environment.filters["break_words"] = break_words
    environment.filters["slug"] = slug_of
    environment.filters["method_color"] = style.color
    environment.globals["asset"] = lambda name: Markup(_source(name))  # noqa: S704 (our own files)
    environment.globals["inline_svg"] = Markup  # drawn by matplotlib, which escapes all text
    return environment


@functools.lru_cache(maxsize=100_000)  # keys and values of configurations, the same for all runs
def break_words(text: str) -> Markup:
    """Return escaped text that may break after underscores, hyphens and slashes."""
    escaped = str(Markup.escape(text))
    for mark in ("_", "/"):
        escaped = escaped.replace(mark, f"{mark}<wbr>")
    return Markup(escaped)  # noqa: S704 (escaped above; <wbr> is ours)


def _source(name: str) -> str:
    return files("faqbench.report").joinpath("templates", name).read_text("utf-8")
