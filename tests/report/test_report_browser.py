"""The page in a real browser: narrow and wide, light and dark, on paper."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import sync_playwright

from antidote_llm.report.compose import compose
from antidote_llm.report.page import write

from . import big, samples

# Contrast of every visible text against its background (WCAG 2.1), as [ratio, text].
_CONTRASTS = """
() => {
  const channels = text => text.match(/[\\d.]+/g).map(Number);
  const luminance = text => {
    const [r, g, b] = channels(text).map(v => v / 255).map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
    return .2126 * r + .7152 * g + .0722 * b;
  };
  const found = [];
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const node = walk.currentNode, element = node.parentElement;
    if (!node.data.trim() || element.closest('title, .hidden, .skip')) continue;
    const style = getComputedStyle(element);
    if (!element.getClientRects().length || style.visibility === 'hidden') continue;
    const svg = element instanceof SVGElement;
    let back = null;
    if (svg && element.previousElementSibling?.tagName === 'rect') {
      back = getComputedStyle(element.previousElementSibling).fill;
      if (back.startsWith('url')) back = getComputedStyle(document.querySelector('.hatch-line')).fill;
    }
    for (let at = element; at && back === null; at = at.parentElement) {
      const colour = getComputedStyle(at).backgroundColor;
      if (channels(colour).length < 4) back = colour;
    }
    const [a, b] = [luminance(svg ? style.fill : style.color), luminance(back)].sort((x, y) => y - x);
    found.push([(a + .05) / (b + .05), node.data.trim().slice(0, 40)]);
  }
  return found;
}
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    executable = shutil.which("chromium")
    if executable is None:
        pytest.fail("this test looks at the page in a browser: install chromium (apt-get install chromium)")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("reports")
    data = {
        "demo": samples.demo(),
        "pair": samples.pair(80, samples.MORE_KINDS),
        "untested": samples.untested(),
        "deep": compose(big.record(big.modules(126), shards=191, outside=big.outside()), {}, revert_command="r"),
        "experts": compose(big.record(big.experts(), outside=big.outside() * 9), {}, revert_command="r"),
        "names": compose(big.record(big.modules(160, big.LONG), "weight"), {}, revert_command="r"),
    }
    for name, report in data.items():
        write(folder / f"{name}.html", report)
    return {name: folder / f"{name}.html" for name in data}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1400])
@pytest.mark.parametrize("name", ["demo", "pair", "untested", "deep", "experts", "names"])
def test_the_page_reads_well(browser: Any, pages: dict[str, Path], name: str, width: int, scheme: str) -> None:
    context = browser.new_context(
        viewport={"width": width, "height": 800}, color_scheme=scheme, java_script_enabled=True
    )
    page = context.new_page()
    troubles: list[str] = []
    page.on("console", lambda message: troubles.append(message.text))
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.on(
        "request", lambda request: None if request.url.startswith(("file:", "data:")) else troubles.append(request.url)
    )
    page.goto(pages[name].as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator("h1").count() == 1
    assert page.get_by_role("heading", name="Outcomes").is_visible()
    poor = [(round(ratio, 2), text) for ratio, text in page.evaluate(_CONTRASTS) if ratio < 4.5]
    assert poor == []
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(16, 21, 24)") == (scheme == "dark"), "the style sheet did not apply"
    assert troubles == []
    context.close()


@pytest.mark.parametrize("name", ["pair", "deep", "experts", "names"])
def test_no_texts_overlap_in_the_tables(browser: Any, pages: dict[str, Path], name: str) -> None:
    page = browser.new_page(viewport={"width": 360, "height": 800})
    page.goto(pages[name].as_uri())
    overlaps = page.evaluate("""
      () => [...document.querySelectorAll('.panel tbody tr, .map tbody tr')].filter(row => {
        const boxes = [...row.children].map(cell => cell.getBoundingClientRect());
        return boxes.some((box, i) => i && box.left < boxes[i - 1].right - 1);
      }).length
    """)
    assert overlaps == 0
    page.close()


@pytest.mark.parametrize("name", ["pair", "deep", "experts", "names"])
def test_the_map_of_a_big_model_is_readable_on_a_phone(browser: Any, pages: dict[str, Path], name: str) -> None:
    page = browser.new_page(viewport={"width": 390, "height": 800})
    page.goto(pages[name].as_uri())
    narrowest = page.evaluate("""
      () => Math.min(...[...document.querySelectorAll('.strip rect')].map(cell => cell.getBoundingClientRect().width))
    """)
    assert narrowest >= 1
    gaps = page.evaluate("""
      () => [...document.querySelectorAll('.strip')].flatMap(strip => {
        const boxes = [...strip.children].map(cell => cell.getBoundingClientRect());
        return boxes.slice(1).map((box, i) => box.left - boxes[i].right);
      })
    """)
    assert all(gap > 0.3 or abs(gap) < 0.01 for gap in gaps), "a gap too thin to be drawn blurs the colours"
    overlaps = page.evaluate("""
      () => [...document.querySelectorAll('.map .axis')].filter(axis => {
        const boxes = [...axis.children].map(text => text.getBoundingClientRect());
        return boxes.some((box, i) => i && box.left < boxes[i - 1].right + 2);
      }).length
    """)
    assert overlaps == 0
    page.close()


def test_numbers_are_not_broken_over_lines(browser: Any, pages: dict[str, Path]) -> None:
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    page.goto(pages["experts"].as_uri())
    heights = page.evaluate("""
      () => [...document.querySelectorAll('.facts .number')].map(cell => {
        const range = document.createRange(); range.selectNodeContents(cell); return range.getClientRects().length;
      })
    """)
    assert set(heights) == {1}
    page.close()


def test_tables_and_figures_have_names(browser: Any, pages: dict[str, Path]) -> None:
    page = browser.new_page()
    page.goto(pages["demo"].as_uri())
    assert page.get_by_role("table", name="Harmful score", exact=False).count() >= 2
    assert page.get_by_role("img", name="Attacked: harmful 96.4 percent", exact=False).count() == 1
    assert page.get_by_role("img", name="q_proj: ", exact=False).count() == 2
    assert page.locator("svg:not([aria-hidden]):not([role=img]):not(.mark)").count() == 0
    page.close()


def test_print_is_light_under_a_dark_colour_scheme(browser: Any, pages: dict[str, Path]) -> None:
    context = browser.new_context(color_scheme="dark")
    page = context.new_page()
    page.goto(pages["demo"].as_uri())
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.evaluate("getComputedStyle(document.body).color") == "rgb(0, 0, 0)"
    context.close()
