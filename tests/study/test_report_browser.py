"""The report in a real browser: it draws without a word on the console, sorts, hides, reads, and runs nothing hostile."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from vantage.study.report import write_report
from vantage.study.results import Arm, Study

from .synthetic import build
from .test_report import NASTY, hostile

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytest.importorskip("scipy.stats", reason="the study extra is not installed")

CHROMIUM = Path(os.environ.get("VANTAGE_CHROMIUM", "/usr/bin/chromium"))
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
pytestmark = pytest.mark.skipif(
    not CHROMIUM.exists(), reason=f"no browser at {CHROMIUM} (VANTAGE_CHROMIUM names another)"
)


@dataclass
class Opened:
    """A page with everything that it said, asked for or threw."""

    page: Any
    said: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def scrolls_sideways(self) -> bool:
        return self.page.evaluate("document.documentElement.scrollWidth > innerWidth")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
        yield found
        found.close()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("reports")
    long = build(arms=("grpo", "dapo"))
    names = {"grpo": "grpo", "dapo": "dapo-with-a-name-that-goes-on-and-on-and-on:group_size=1024,temperature=0.7"}
    long = replace(
        long,
        arms=tuple(replace(arm, name=names[arm.name]) for arm in long.arms),
        runs=tuple(replace(run, arm=names[run.arm]) for run in long.runs),
        samples=tuple(replace(one, arm=names[one.arm], completion="x" * 500) for one in long.samples),
    )
    finished = build(crashed=[("reinforce", 3)])
    live = build(
        crashed=[("reinforce", 3)],
        running=[("reinforce", 4), ("gspo", 4)],
        waiting=[("gspo", 3), *(("rloo", k) for k in range(5))],
    )
    studies = {
        "finished": finished,
        "live": live,
        "empty": replace(
            finished, runs=(), samples=(), command="", arms=tuple(Arm(arm.name, arm.name) for arm in finished.arms)
        ),
        "one": build(arms=("grpo",), seeds=1, samples=False),
        "crashed": build(arms=("grpo", "dapo"), crashed=[(arm, k) for arm in ("grpo", "dapo") for k in range(5)]),
        "lower": replace(finished, direction="lower"),
        "long": long,
        "hostile": hostile(),
    }
    return {name: write_report(study, folder / f"{name}.html") for name, study in studies.items()}


@pytest.fixture
def open_page(browser: Any, files: dict[str, Path]) -> Iterator[Any]:
    contexts = []

    def open_it(
        name: str | Path, width: int = 1280, height: int = 900, scheme: str = "light", **options: Any
    ) -> Opened:
        context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme, **options)
        contexts.append(context)
        opened = Opened(context.new_page())
        opened.page.on("console", lambda message: opened.said.append(f"{message.type}: {message.text}"))
        opened.page.on("pageerror", lambda error: opened.said.append(f"error: {error}"))
        opened.page.on("dialog", lambda dialog: (opened.said.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        opened.page.on("request", lambda request: opened.asked.append(request.url))
        path = name if isinstance(name, Path) else files[name]
        opened.page.goto(path.as_uri())
        opened.page.wait_for_selector("#notes details")
        return opened

    yield open_it
    for context in contexts:
        context.close()


STATES = ["finished", "live", "empty", "one", "crashed", "lower", "long", "hostile"]


@pytest.mark.parametrize("name", STATES)
def test_every_state_draws_quietly_asks_for_nothing_and_fits_a_phone(
    open_page: Any, files: dict[str, Path], name: str
) -> None:
    wide = open_page(name)
    assert not wide.scrolls_sideways()
    assert wide.page.locator("main section:visible").count() >= 9
    narrow = open_page(name, 320, 640)
    assert not narrow.scrolls_sideways()
    for opened in (wide, narrow):
        assert opened.said == []
        assert [url for url in opened.asked if not url.startswith("data:")] == [files[name].as_uri()]


def order(page: Any) -> list[str]:
    return page.locator(".board tbody tr").evaluate_all("rows => rows.map(row => row.dataset.arm)")


def test_sorting_by_mouse_keyboard_and_on_a_phone(open_page: Any) -> None:
    page = open_page("finished").page
    by_mean = ["dapo", "gspo", "dr-grpo", "grpo", "rloo", "reinforce"]
    assert order(page) == by_mean
    head = page.get_by_role("columnheader", name="Mean score")
    assert head.get_attribute("aria-sort") == "descending"
    head.get_by_role("button").click()
    assert order(page) == by_mean[::-1]
    assert head.get_attribute("aria-sort") == "ascending"
    page.get_by_role("button", name="Method", exact=True).focus()
    page.keyboard.press("Enter")
    assert order(page) == sorted(by_mean)
    assert head.get_attribute("aria-sort") == "none"
    page.get_by_role("columnheader", name="To 0.666").get_by_role("button").click()
    assert order(page)[0] == "dapo"
    assert order(page)[-1] == "reinforce"  # never reached: last, whichever way
    page.get_by_role("columnheader", name="To 0.666").get_by_role("button").click()
    assert order(page)[-1] == "reinforce"
    for column in ("IQM", "P(better)", "Area", "Seeds", "Crashed", "Time", "Against grpo"):
        page.get_by_role("columnheader", name=column).get_by_role("button").click()
        assert sorted(order(page)) == sorted(by_mean)
    phone = open_page("finished", 320, 640).page
    phone.get_by_label("Sort by").select_option("name")
    assert order(phone) == sorted(by_mean)


def test_lower_is_better_puts_the_lowest_first(open_page: Any) -> None:
    assert order(open_page("lower").page)[0] == "reinforce"


def test_a_curve_can_be_hidden_and_shown_by_mouse_and_keyboard(open_page: Any) -> None:
    page = open_page("finished").page
    curve = page.locator("#curves [data-arm=dapo]")
    key = page.locator("#curves .key", has_text="dapo")
    assert (curve.count(), key.get_attribute("aria-pressed")) == (1, "true")
    key.click()
    assert (curve.count(), key.get_attribute("aria-pressed")) == (0, "false")
    assert page.locator("#diagnostics [data-arm=dapo]").count() == 0  # one choice for the whole page
    assert page.locator("#samples .column").count() == 5
    key.focus()
    page.keyboard.press("Space")
    assert (curve.count(), key.get_attribute("aria-pressed")) == (1, "true")
    for one in page.locator("#curves .key").all():
        one.click()
    assert page.locator("#curves .none").is_visible()
    page.locator("#curves").get_by_role("button", name="Show all").click()
    assert page.locator("#curves [data-arm]").count() == 6


def test_intervals_seeds_and_axes_switch(open_page: Any) -> None:
    page = open_page("finished").page
    curves = page.locator("#curves")
    assert curves.locator(".band").count() == 6
    curves.get_by_role("button", name="Intervals").click()
    assert curves.locator(".band").count() == 0
    assert curves.locator("g.faint").count() == 1  # a crash is always drawn
    assert curves.locator("g.faint .cross").count() == 1
    curves.get_by_role("button", name="Every seed").click()
    assert curves.locator("g.faint").count() == 30
    before = curves.locator("[data-arm=dapo] .line").get_attribute("d")
    curves.get_by_role("button", name="over time").click()
    assert curves.locator("[data-arm=dapo] .line").get_attribute("d") != before
    assert curves.get_by_text("seconds", exact=True).count() == 1


def test_values_are_read_by_hovering_and_by_keyboard(open_page: Any) -> None:
    page = open_page("finished").page
    plot = page.locator("#curves .plot")
    plot.scroll_into_view_if_needed()
    box = plot.bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.4, box["y"] + box["height"] / 2)
    tip = plot.locator(".tip")
    assert tip.is_visible()
    assert tip.locator(".arm").all_inner_texts()[0] == "dapo"
    page.mouse.move(0, 0)
    assert not tip.is_visible()
    plot.focus()
    page.keyboard.press("End")
    assert "51.2k samples: dapo 0.790, gspo 0.739, dr-grpo 0.721" in plot.get_attribute("aria-valuetext")
    page.keyboard.press("ArrowLeft")
    assert "49.2k samples" in plot.get_attribute("aria-valuetext")
    assert plot.get_attribute("aria-valuenow") == "24"
    page.keyboard.press("Home")
    assert plot.get_attribute("aria-valuetext").startswith("0 samples")
    assert tip.is_visible()
    page.keyboard.press("Escape")
    assert not tip.is_visible()


def test_verdicts_are_worded(open_page: Any) -> None:
    page = open_page("finished").page
    rows = page.locator("#comparisons tbody tr")
    assert rows.count() == 5
    assert "difference shown\ndapo is better" in rows.nth(0).inner_text()
    assert "no difference shown" in rows.nth(2).inner_text()
    assert "about 44 seeds an arm would be needed" in rows.nth(2).inner_text()
    assert "not after correction for 5 comparisons" in rows.nth(1).inner_text()
    page.locator("#comparisons").get_by_role("button", name="Every pair (15)").click()
    assert rows.count() == 15
    live = open_page("live").page
    assert "provisional" in live.locator("#comparisons").inner_text()
    assert "Of 30 runs: 21 finished, 2 running, 1 crashed, 6 waiting." in live.locator("#runs").inner_text()
    assert live.locator("#headline").inner_text().startswith("So far: ")


def test_parts_that_differ_come_first_and_the_rest_folds(open_page: Any) -> None:
    page = open_page("finished").page
    rows = page.locator("#parts tbody tr")
    assert rows.locator("th").all_inner_texts() == [
        "rollout",
        "rewards",
        "advantage",
        "selection",
        "objective",
        "averaging",
    ]
    assert page.locator("#parts td.other").count() == 5 + 2 + 2 + 1 + 2
    assert page.locator("#parts details").inner_text() == "5 parts the same in every method"


def test_samples_filter(open_page: Any) -> None:
    page = open_page("finished").page
    place = page.locator("#samples .place")
    assert place.inner_text() == "prompt 1 of 12"
    page.get_by_role("button", name="Next").click()
    assert place.inner_text() == "prompt 2 of 12"
    page.get_by_label("Reward").select_option("below")
    assert page.locator("#samples .reward.good").count() == 0
    page.get_by_label("Reward").select_option("any")
    page.locator("#samples-seed").select_option("1")
    assert set(page.locator("#samples .completion .meta").all_inner_texts()) <= {"seed 1\nreward 0", "seed 1\nreward 1"}
    page.get_by_label("Find").fill("no such text")
    assert "Nothing fits." in page.locator("#samples").inner_text()


def test_hostile_text_is_shown_and_nothing_else(open_page: Any) -> None:
    opened = open_page("hostile")
    page = opened.page
    assert opened.said == []
    assert page.locator("img").count() == 0
    assert page.locator("script").count() == 2
    shown = page.locator("#samples .completion pre").first.text_content()
    assert shown == NASTY + "0"
    page.locator("#runs summary").click()
    for section in ("curves", "diagnostics"):
        plot = page.locator(f"#{section} .plot").first
        plot.scroll_into_view_if_needed()
        plot.hover()
        assert page.locator(f"#{section} .tip").first.is_visible()
    page.locator(".key").first.click()
    page.get_by_role("columnheader", name="IQM").get_by_role("button").click()
    assert opened.said == []
    assert len(opened.asked) == 1
    # The policy stops what a slip in the script would let through.
    blocked = page.evaluate(
        """() => { try { document.body.innerHTML = "<b>x</b>"; return false; } catch { return true; } }"""
    )
    assert blocked


CONTRAST = """() => {
  const parse = (text) => { const m = text.match(/[\\d.]+/g).map(Number); return [m[0], m[1], m[2], m[3] ?? 1]; };
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255).map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (node) => {
    for (let at = node; at; at = at.parentElement) {
      const colour = parse(getComputedStyle(at).backgroundColor);
      if (colour[3] > 0.99) return colour;
    }
    return [255, 255, 255, 1];
  };
  const bad = [];
  let seen = 0;
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode.parentElement;
    if (!walker.currentNode.textContent.trim() || !node.getClientRects().length) continue;
    if (node.closest("script, style, .sr, .skip, button:disabled")) continue;
    const style = getComputedStyle(node);
    const text = parse(node instanceof SVGElement ? style.fill : style.color);
    const [a, b] = [light(text), light(behind(node))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    seen += 1;
    if (ratio < 4.5) bad.push(`${ratio.toFixed(2)} ${node.outerHTML.slice(0, 80)}`);
  }
  return { seen, bad };
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["finished", "live"])
def test_all_text_has_the_contrast_of_wcag_aa(open_page: Any, name: str, scheme: str) -> None:
    page = open_page(name, scheme=scheme).page
    page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    page.locator("#curves .plot").hover()
    page.locator("#curves .key").first.click()
    found = page.evaluate(CONTRAST)
    assert found["seen"] > 300
    assert found["bad"] == []


def test_the_theme_can_be_chosen_and_is_kept(open_page: Any) -> None:
    opened = open_page("finished", scheme="light")
    page = opened.page
    paper = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(paper)
    button = page.locator("#theme")
    assert button.inner_text() == "◐ automatic"
    button.click()
    assert page.evaluate(paper) == light
    button.click()
    dark = page.evaluate(paper)
    assert dark != light
    page.reload()
    assert page.evaluate(paper) == dark
    assert open_page("finished", scheme="dark").page.evaluate(paper) == dark


def test_everything_that_acts_is_reached_by_tab_and_shows_its_focus(open_page: Any) -> None:
    page = open_page("finished").page
    reached = set()
    for _ in range(150):
        page.keyboard.press("Tab")
        found = page.evaluate(
            """() => { const e = document.activeElement; const s = getComputedStyle(e);
            return [e.closest("section")?.id ?? e.id ?? e.className, e.tagName, s.outlineStyle, parseFloat(s.outlineWidth)]; }"""
        )
        if found[1] == "BODY":
            break
        assert found[2] != "none", found
        assert found[3] >= 2, found
        reached.add(found[0])
    assert reached >= {
        "theme",
        "leaderboard",
        "curves",
        "comparisons",
        "profile",
        "diagnostics",
        "parts",
        "samples",
        "settings",
        "again",
    }


def test_motion_is_reduced_on_request(open_page: Any) -> None:
    how = "getComputedStyle(document.documentElement).scrollBehavior"
    assert open_page("finished").page.evaluate(how) == "smooth"
    assert open_page("finished", reduced_motion="reduce").page.evaluate(how) == "auto"


def test_print_is_light_and_without_controls(open_page: Any) -> None:
    page = open_page("finished", scheme="dark").page
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not page.locator("#curves .controls").is_visible()
    assert page.locator("#curves .picture").is_visible()


def test_a_live_page_reloads_itself_and_keeps_what_was_chosen(open_page: Any, tmp_path: Path) -> None:
    study: Study = build(arms=("grpo", "dapo"), running=[("dapo", 4)])
    opened = open_page(write_report(study, tmp_path / "live.html", refresh=2))
    page = opened.page
    page.locator("#curves .key", has_text="dapo").click()
    page.get_by_role("columnheader", name="Method").get_by_role("button").click()
    with page.expect_event("load", timeout=20_000):
        page.mouse.move(0, 0)
    page.wait_for_selector("#notes details")
    assert page.locator("#curves .key", has_text="dapo").get_attribute("aria-pressed") == "false"
    assert order(page) == ["dapo", "grpo"]
    page.locator("#refresh").click()
    assert page.locator("#refresh").inner_text() == "Paused"
    loads = []
    page.on("load", lambda _: loads.append(1))
    page.wait_for_timeout(3000)
    assert not loads
    assert opened.said == []
