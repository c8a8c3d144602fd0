"""The report without a browser: one file, nothing fetched, nothing executable from the data, readable colours."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import re
import runpy
import sys
from dataclasses import replace
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path

import numpy as np
import pytest

from vantage.study.report import SCRIPTS, inline_json, main, payload, render, write_report
from vantage.study.results import Arm, Sample, Study

from .synthetic import build

pytest.importorskip("scipy.stats", reason="the study extra is not installed")

ASSETS = resources.files("vantage.study").joinpath("report_assets")
NASTY = "</script><script>alert(1)</script><!-- <img src=x onerror=alert(1)> & \u2028 \ud800 {{data}} \x00"


class Elements(HTMLParser):
    """Elements with their attributes, and the text inside each script."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text: dict[str, list[str]] = {}
        self._open = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        self._open = tag

    def handle_data(self, data: str) -> None:
        self.text.setdefault(self._open, []).append(data)
        if self._open in ("script", "style"):
            self._open = ""


@pytest.fixture(scope="module")
def page() -> str:
    return render(build(crashed=[("reinforce", 3)]))


def test_the_page_loads_nothing(page: str) -> None:
    elements = Elements(page)
    assert {tag for tag, _ in elements.found} & {
        "img",
        "iframe",
        "object",
        "embed",
        "video",
        "audio",
        "base",
        "form",
    } == set()
    for tag, attributes in elements.found:
        assert "src" not in attributes, tag
        assert (attributes.get("href") or "#").startswith(("#", "data:,")), tag
        assert not [name for name in attributes if name.startswith("on")], tag
    outside = re.sub(r"http://www\.w3\.org/2000/svg", "", page)  # a name, not an address
    assert not re.search(r"https?://|//cdn|url\(|@import", outside)


def test_the_policy_allows_this_script_and_style_alone(page: str) -> None:
    elements = Elements(page)
    policy = next(a["content"] for tag, a in elements.found if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy
    assert "require-trusted-types-for 'script'" in policy
    assert "unsafe" not in policy
    _data, script = elements.text["script"]
    (style,) = elements.text["style"]
    for directive, text in (("script-src", script), ("style-src", style)):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{directive} 'sha256-{digest}'" in policy


def test_without_data_the_page_is_small() -> None:
    assert sum(len(ASSETS.joinpath(name).read_bytes()) for name in (*SCRIPTS, "style.css", "template.html")) < 150_000


def test_the_scripts_never_make_markup_from_text() -> None:
    for name in SCRIPTS:
        text = ASSETS.joinpath(name).read_text("utf-8")
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\b|new Function|srcdoc|DOMParser", text
        ), name


def hostile() -> Study:
    study = build(arms=("grpo", "dapo"), crashed=[("dapo", 1)])
    names = {"grpo": f"grpo {NASTY}", "dapo": f"dapo {NASTY}"}
    arms = tuple(
        Arm(names[a.name], NASTY, {NASTY: NASTY}, {NASTY: NASTY, "objective": a.name}, NASTY) for a in study.arms
    )
    runs = tuple(
        replace(run, arm=names[run.arm], error=NASTY, diagnostics={NASTY: ((1, 2), (3, 4))}) for run in study.runs
    )
    return replace(
        study, name=NASTY, arena=NASTY, metric=NASTY, description=NASTY, command=NASTY, created=NASTY, commit=NASTY,
        versions={NASTY: NASTY}, settings={NASTY: NASTY}, arms=arms, runs=runs,
        samples=tuple(Sample(names["grpo"], 0, NASTY, NASTY + str(k), 1.0) for k in range(2)),
    )  # fmt: skip


def test_hostile_text_stays_data() -> None:
    study = hostile()
    page = render(study)
    elements = Elements(page)
    assert [tag for tag, _ in elements.found].count("script") == 2
    assert "img" not in [tag for tag, _ in elements.found]
    data, script = elements.text["script"]
    assert "{{" not in script
    assert not set(data) & set("<>&\u2028\x00")
    assert data.isascii()
    found = json.loads(data)
    assert found["study"]["name"] == NASTY
    assert found["samples"]["prompts"][0]["rows"][0][3] == f"{NASTY}0"
    page.encode("utf-8")  # a lone surrogate would fail here


def test_inline_json_refuses_what_json_cannot_say() -> None:
    assert inline_json({"a": "</script>"}) == '{"a":"\\u003c/script\\u003e"}'
    with pytest.raises(ValueError, match="not JSON compliant"):
        inline_json(float("nan"))


def test_payload_holds_what_the_page_draws() -> None:
    study = build(crashed=[("reinforce", 3)])
    data = payload(study)
    dapo = data["arms"][1]
    curve = dapo["curve"]["samples"]
    expected = np.mean([[point.score for point in run.curve] for run in study.runs_of("dapo")], axis=0)
    np.testing.assert_allclose(curve["y"], expected, rtol=1e-5)
    assert all(low <= y <= high for low, y, high in zip(curve["low"], curve["y"], curve["high"], strict=True))
    assert dapo["curve"]["seconds"]["x"][0] == 0
    assert [d["title"] for d in data["diagnostics"]][:3] == ["Entropy", "KL to the reference", "Clip fraction"]
    assert data["diagnostics"][-1]["name"] == "pass@8"
    clip = next(d for d in data["diagnostics"] if d["name"] == "clip_fraction")
    assert clip["arms"][2] is None  # all NaN: nothing to draw
    assert [row["differs"] for row in data["parts"]] == sorted([row["differs"] for row in data["parts"]], reverse=True)
    assert data["settings"][0]["name"] == "clip"
    assert data["settings"][0]["values"][1] == "[0.2, 0.28]"
    assert data["study"]["settings"]["model.parameters"] == "302400"


@pytest.mark.parametrize("direction", ["higher", "lower"])
def test_profile_steps_at_the_scores(direction: str) -> None:
    study = build(arms=("grpo", "dapo"))
    data = payload(replace(study, direction=direction))["profile"]
    scores = np.ravel(study.scores("grpo"))
    x, y = np.array(data["x"]), np.array(data["arms"][0]["y"])
    for left, right, value in zip(x[:-1], x[1:], y[:-1], strict=True):  # the curve rests at `value` between two steps
        middle = (left + right) / 2
        assert value == pytest.approx((scores > middle).mean() if direction == "higher" else (scores < middle).mean())
    assert {y[0], y[-1]} == {0.0, 1.0}


def test_samples_beyond_the_limit_stay_out_and_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vantage.study.report.SAMPLE_CHARACTERS", 2500)
    found = payload(build())["samples"]
    assert 0 < len(found["prompts"]) < found["total"] == 12


def test_curves_without_time_offer_no_time_axis() -> None:
    study = build(arms=("grpo",))
    runs = tuple(replace(run, curve=tuple(replace(point, seconds=0.0) for point in run.curve)) for run in study.runs)
    assert payload(replace(study, runs=runs))["arms"][0]["curve"]["seconds"] is None


def test_write_report_replaces_the_file(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "report.html"
    study = build(arms=("grpo",), samples=False)
    assert write_report(study, path) == path
    write_report(replace(study, name="second"), path)
    assert "<title>second: accuracy</title>" in path.read_text("utf-8")
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]
    assert json.loads(Elements(render(study, refresh=3)).text["script"][0])["refresh"] == 3


@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
def test_module_writes_a_report_or_says_what_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    build(arms=("grpo",)).save(tmp_path / "study.json")
    monkeypatch.setattr(sys, "argv", ["report", str(tmp_path / "study.json"), str(tmp_path / "out.html")])
    with pytest.raises(SystemExit) as done:
        runpy.run_module("vantage.study.report", run_name="__main__")
    assert done.value.code == 0
    assert "wrote" in capsys.readouterr().out
    assert (tmp_path / "out.html").read_text("utf-8").startswith("<!doctype html>")
    assert main([str(tmp_path / "none.json"), "x.html"]) == 2
    assert "cannot read" in capsys.readouterr().err
    assert main([]) == 2
    assert main(["--help"]) == 0
    assert capsys.readouterr().out.count("usage: ") == 2


# ---- colours

SIGHT = {  # Machado et al. 2009, severity 1: linear RGB as seen
    "common": np.eye(3),
    "protan": np.array([[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]),
    "deutan": np.array([[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]]),
    "tritan": np.array([[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]]),
}  # fmt: skip


def linear(colour: str) -> np.ndarray:
    value = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def contrast(a: str, b: str) -> float:
    low, high = sorted(float(linear(c) @ [0.2126, 0.7152, 0.0722]) for c in (a, b))
    return (high + 0.05) / (low + 0.05)


def oklab(rgb: np.ndarray) -> np.ndarray:
    lms = np.cbrt(
        np.array(
            [[0.4122215, 0.5363325, 0.051446], [0.2119035, 0.6806995, 0.1073970], [0.0883025, 0.2817188, 0.6299787]]
        )
        @ np.clip(rgb, 0, 1)
    )
    return 100 * np.array(
        [[0.2104543, 0.7936178, -0.0040720], [1.9779985, -2.4285922, 0.4505937], [0.0259040, 0.7827718, -0.8086758]]
    ) @ lms  # fmt: skip


def palettes() -> dict[str, dict[str, str]]:
    css = ASSETS.joinpath("style.css").read_text("utf-8")
    blocks = [dict(re.findall(r"--([a-z0-9-]+): (#[0-9a-f]{6})", block)) for block in css.split("color-scheme:")]
    light, dark, chosen = (block for block in blocks if "a7" in block and "paper" in block and block["paper"] != "#fff")
    assert dark == chosen  # the system's dark and the chosen one are the same colours
    return {"light": light, "dark": dark}


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_arms_can_be_told_apart_by_everyone(theme: str) -> None:
    colours = palettes()[theme]
    arms = [colours[f"a{k}"] for k in range(8)]
    for colour in arms:
        assert contrast(colour, colours["surface"]) >= 3  # WCAG 1.4.11, graphics
    for name, sight in SIGHT.items():
        seen = [oklab(sight @ linear(colour)) for colour in arms]
        nearest = min(np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2))
        assert nearest >= 7, name  # 2 is just noticeable


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_colours_stand_out(theme: str) -> None:
    colours = palettes()[theme]
    for text, behind in itertools.product(("ink", "soft", "accent", "bad"), ("paper", "surface")):
        assert contrast(colours[text], colours[behind]) >= 4.5, (text, behind)
    for text, behind in (
        ("soft", "sunk"),
        ("ink", "sunk"),
        ("good", "good-back"),
        ("bad", "bad-back"),
        ("ink", "warn-back"),
    ):
        assert contrast(colours[text], colours[behind]) >= 4.5, (text, behind)
