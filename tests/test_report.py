"""The report: one page, complete, escaped, readable in a browser without scripts."""

from __future__ import annotations

import itertools
import re
import shutil
import subprocess
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_support import TASKS, make_small_zoo, run, run_well
from zoo_support import make_zoo

from uws_store import build
from uws_store.api import open_registry
from uws_store.report import gather, render
from uws_store.report.letters import Letters
from uws_store.report.spectrum import chance_shares
from uws_store.report.text import printable, size

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
NASTY = 'task <script>alert(1)</script> $x_1$ "&amp;'
SCRIPTS = "日本語 モデル 🎉 ᐁ ᐂ ⠿ 한국어 العربية"
_VOID = {"meta", "link", "br", "img", "input", "hr"}


def score(weights: dict[str, torch.Tensor], task: str) -> dict[str, object]:
    right = (weights["fc1.weight"].flatten()[:100] * 1e6).to(torch.int64) % 7 != 0
    return {
        "metric": "share",
        "value": float(right.double().mean()),
        "higher_is_better": True,
        "n": 100,
        "correct": right,
    }


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> str:
    place = str(tmp_path_factory.mktemp("registry"))
    zoo = make_small_zoo(tmp_path_factory.mktemp("zoo"))
    (zoo / f"{TASKS[0]}.safetensors").rename(zoo / f"{NASTY.replace('/', '_')}.safetensors")
    (zoo / f"{TASKS[1]}.safetensors").rename(zoo / f"{SCRIPTS}.safetensors")
    build(zoo, family="nets", registry=place, change_error=0.1, exact=True, evaluate=score)
    return place


@pytest.fixture(scope="module")
def page(registry: str) -> str:
    return render(gather(open_registry(registry), "nets"))


@dataclass
class Element:
    tag: str
    attributes: dict[str, str | None]
    text: str = ""


@dataclass
class Reading(HTMLParser):
    """Every element in order; mismatched tags are found."""

    elements: list[Element] = field(default_factory=list)
    open: list[Element] = field(default_factory=list)
    mismatched: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(Element(tag, dict(attrs)))
        if tag not in _VOID:
            self.open.append(self.elements[-1])

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(Element(tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop().tag != tag:
            self.mismatched.append(tag)

    def handle_data(self, data: str) -> None:
        for element in self.open:
            element.text += data


@pytest.fixture(scope="module")
def reading(page: str) -> Reading:
    reading = Reading()
    reading.feed(page)
    reading.close()
    return reading


def test_the_page_is_well_formed_and_needs_nothing_else(reading: Reading, page: str) -> None:
    assert not reading.mismatched
    assert not reading.open
    assert {element.tag for element in reading.elements}.isdisjoint(
        {"script", "link", "iframe", "object", "img"}
    )
    for element in reading.elements:
        for name, value in element.attributes.items():
            if name in {"src", "href", "xlink:href"}:
                assert (value or "").startswith(("#", "data:image/png;base64,")), element
            assert not name.startswith("on")
    assert "$\\mathdefault" not in page


def test_names_from_a_registry_are_escaped(reading: Reading, page: str) -> None:
    assert "<script" not in page
    shown = [element.text for element in reading.elements if element.tag == "th"]
    assert any("<script>alert(1)<_script>" in text for text in shown)


def test_names_in_any_script_stand_in_the_plots(page: str) -> None:
    plots = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    texts = [re.findall(r"<text[^>]*>([^<]*)</text>", plot) for plot in plots]
    assert sum(SCRIPTS in text for text in texts) == 2
    assert "\N{REPLACEMENT CHARACTER}" not in "".join(itertools.chain.from_iterable(texts))


def test_letters_come_back_from_their_stand_ins_until_there_are_no_more() -> None:
    letters = Letters()
    every = "".join(map(chr, range(0x1400, 0x1600))) + "\N{PARTY POPPER}日 plain"
    assert letters.restored(letters.known(every)) == every
    many = "".join(map(chr, range(0x4E00, 0x6000)))
    drawn = letters.known(many)
    assert drawn.endswith("\N{REPLACEMENT CHARACTER}")
    assert letters.restored(drawn)[0] == many[0]


def test_ids_are_unique_and_every_reference_has_its_target(reading: Reading) -> None:
    ids = [element.attributes["id"] for element in reading.elements if "id" in element.attributes]
    assert len(ids) == len(set(ids))
    assert len(ids) > 50
    for element in reading.elements:
        for name, value in element.attributes.items():
            if value and name in {"href", "xlink:href"} and value.startswith("#"):
                assert value[1:] in ids
            if value and name == "clip-path":
                assert value.removeprefix("url(#").removesuffix(")") in ids
            if value and name == "aria-labelledby":
                assert value in ids


def test_it_can_be_read_without_seeing_it(reading: Reading) -> None:
    (root,) = (element for element in reading.elements if element.tag == "html")
    assert root.attributes["lang"] == "en"
    levels = [int(element.tag[1]) for element in reading.elements if re.fullmatch("h[1-6]", element.tag)]
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    tables = sum(element.tag == "table" for element in reading.elements)
    assert tables == sum(element.tag == "caption" for element in reading.elements) == 4
    assert all(element.attributes.get("scope") for element in reading.elements if element.tag == "th")
    plots = [element for element in reading.elements if element.attributes.get("role") == "img"]
    assert len(plots) == sum(element.tag == "svg" for element in reading.elements) == 6
    assert all(len(element.attributes["aria-label"] or "") > 30 for element in plots)
    scrollable = [element for element in reading.elements if element.attributes.get("class") == "wide"]
    assert all(element.attributes.get("tabindex") == "0" for element in scrollable)


def _luminance(colour: str) -> float:
    channels = [int(colour[index : index + 2], 16) / 255 for index in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _contrast(one: str, other: str) -> float:
    light, dark = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_colours_have_the_contrast_of_wcag_in_light_and_dark(page: str) -> None:
    themes = [
        dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", rule)) for rule in re.findall(r":root \{([^}]*)\}", page)
    ]
    assert len(themes) == 2
    for theme in themes:
        for ink in ("ink", "soft", "link", "bad"):
            for ground in ("paper", "card"):
                assert _contrast(theme[ink], theme[ground]) >= 4.5, (ink, ground)


def test_the_numbers_are_those_of_the_registry(registry: str, reading: Reading) -> None:
    view = gather(open_registry(registry), "nets")
    stored = sum(
        path.stat().st_size for path in Path(registry, "families/nets").rglob("*/*") if path.is_file()
    )
    folders = sum(path.stat().st_size for path in Path(registry, "families/nets").glob("*/zarr.json"))
    assert view.bytes.total == stored - folders
    assert view.bytes.source == sum(model.source_bytes for model in view.models)
    text = next(element.text for element in reading.elements if element.tag == "main")
    assert size(view.bytes.compact) in text
    assert f"{len(view.models)} of {len(view.models)}" in text
    assert all(printable(model.task) in text for model in view.models)


def test_chance_is_flat_for_many_samples_and_steep_for_few() -> None:
    generator = np.random.default_rng(0)
    for extent, samples in ((60, 6000), (60, 120), (90, 45)):
        matrix = generator.standard_normal((extent, samples))
        found = np.sort(np.linalg.eigvalsh(matrix @ matrix.T / samples))[::-1]
        law = chance_shares(extent, extent / samples)
        np.testing.assert_allclose(np.cumsum(law) / law.sum(), np.cumsum(found) / found.sum(), atol=0.03)


def test_a_shared_subspace_stands_out_from_chance(registry: str) -> None:
    (basis,) = gather(open_registry(registry), "nets").bases
    spectra = [spectrum for spectrum in (basis.left, basis.right) if spectrum is not None]
    assert spectra
    for spectrum in spectra:
        own, chance = spectrum.share_at(0.25)
        assert own > chance + 0.2


def test_a_family_without_scores_and_factors_says_so(tmp_path: Path) -> None:
    make_zoo(tmp_path / "zoo", models=2)
    build(tmp_path / "zoo", family="two", registry=str(tmp_path / "registry"))
    text = render(gather(open_registry(str(tmp_path / "registry")), "two"))
    assert "No scores are on record." in text
    assert "no shared subspace that pays for itself" in text


def test_the_command_writes_a_file_once(registry: str, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    ran = run_well("report", "nets", "-o", path, "--registry", registry, "--json")
    assert ran.document["size_bytes"] == path.stat().st_size
    assert run("report", "nets", "-o", path, "--registry", registry).error_kind == "already-exists/file"
    run_well("report", "nets", "-o", path, "--registry", registry, "--overwrite")
    absent = run("report", "nets", "-o", tmp_path / "no" / "report.html", "--registry", registry)
    assert absent.error_kind == "not-found/folder"
    assert (
        run("report", "none", "-o", tmp_path / "r.html", "--registry", registry).error_kind
        == "not-found/family"
    )


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
@pytest.mark.parametrize("width", [360, 1200])
def test_a_browser_shows_it_without_errors_and_without_scrolling_sideways(
    page: str, tmp_path: Path, width: int
) -> None:
    # A copy that may run one script, which leaves what it measured in the page.
    probe = "<script>document.title = [document.documentElement.scrollWidth, innerWidth].join('/')</script>"
    copy = re.sub(r"<meta http-equiv[^>]*>", "", page).replace("</body>", f"{probe}</body>")
    path = tmp_path / "copy.html"
    path.write_text(copy)
    (tmp_path / "page.html").write_text(page)
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--enable-logging=stderr",
        "--v=0",
    ]
    assert CHROMIUM is not None

    def browse(file: Path, *more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [
                CHROMIUM or "",
                *flags,
                f"--user-data-dir={tmp_path / 'profile'}",
                f"--window-size={width},2000",
                *more,
                file.as_uri(),
            ],
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )

    measured = re.search(r"<title>(\d+)/(\d+)</title>", browse(path, "--dump-dom").stdout)
    assert measured is not None
    assert int(measured[1]) <= int(measured[2])
    shot = tmp_path / "page.png"
    shown = browse(tmp_path / "page.html", f"--screenshot={shot}")
    assert "CONSOLE" not in shown.stderr
    assert shot.stat().st_size > 20_000
