"""The page: whole in one file, safe with any answer, readable without colour, and alive in a browser."""

from __future__ import annotations

import dataclasses
import html
import json
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

from nsft_exp.records import ItemScore
from nsft_exp.report import browser
from nsft_exp.report.analysis import make_results
from nsft_exp.report.cell import Cell, Row
from nsft_exp.report.figure import draw_all
from nsft_exp.report.page import to_html
from nsft_exp.report.results import Results
from synthetic_study import ShortAnswers, failed_cell, make_study, without_codebook


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    folder = tmp_path_factory.mktemp("study")
    cells, study = make_study(folder, num_images=36)
    cells += without_codebook(folder, cells)
    study["description"] = "Five rows & <three> seeds."
    return make_results([*cells, failed_cell(folder)], study, replicates=200)


@pytest.fixture(scope="module")
def page(results: Results) -> str:
    return to_html(results, *draw_all(results))


VOID = {"meta", "img", "source", "input", "link", "br", "wbr"}


class Elements(HTMLParser):
    """All tags with their attributes, and a check that every tag is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_well_formed_and_whole_in_itself(page: str) -> None:
    elements = Elements(page)
    assert elements.open == []
    for tag, attributes in elements.found:
        for name in ("src", "srcset"):
            value = attributes.get(name)
            assert value is None or value.startswith("data:"), (tag, value)
        assert tag not in ("link", "iframe")
        href = attributes.get("href")
        assert href is None or href.startswith("#")


def test_every_link_leads_to_a_section(page: str) -> None:
    elements = Elements(page)
    ids = {a["id"] for _, a in elements.found if "id" in a}
    links = [a["href"] for tag, a in elements.found if tag == "a"]
    assert links
    assert {str(link)[1:] for link in links} <= ids


def test_text_from_a_study_is_escaped(page: str) -> None:
    assert "Five rows &amp; &lt;three&gt; seeds." in page


def test_an_answer_with_markup_stays_text() -> None:
    shown = browser.marked("a <script>x</script> cup", [(22, 25, "wrong")])
    assert "<script>" not in shown
    assert "&lt;script&gt;" in shown


def test_marks_differ_by_more_than_colour() -> None:
    shown = browser.marked("a dog and a cat", [(2, 5, "right"), (12, 15, "wrong")])
    text = re.sub(r"<[^>]+>", "", shown)
    assert text == "a dog✓ (right) and a cat✗ (wrong)"
    assert 'class="right"' in shown
    assert 'class="wrong"' in shown


def test_marks_that_overlap_or_leave_the_text_do_no_harm() -> None:
    shown = browser.marked("abc", [(0, 2, "right"), (1, 3, "wrong"), (2, 99, "wrong"), (3, 3, "right")])
    assert re.sub(r"<[^>]+>", "", shown) == "ab✓ (right)c✗ (wrong)"


def test_failed_cells_and_figures_left_out_are_named(page: str, results: Results) -> None:
    assert "1 failed cell" in page
    assert "out of memory on the accelerator; lower trainer.micro_batch" in page
    assert str(results.failed[0].log) in page
    assert "score against data size (needs a method at two sizes)" in page


def test_the_classes_of_the_base_and_the_form_of_answers_have_sections(page: str, results: Results) -> None:
    (table,) = results.classes
    text = html.unescape(re.sub(r"<[^>]+>", " ", page))
    assert f"In-domain, vqa: the {table.number} worst and {table.number} best classes of base" in text
    assert {a["id"] for tag, a in Elements(page).found if tag == "section"} >= {"in-domain", "form"}
    cells = page.partition('id="in-domain"')[2].partition("</section>")[0].count("<td")
    accuracies_and_differences = 2 + 2 * len(table.tables)
    assert cells == 1 + accuracies_and_differences * len(results.arms)  # the corner


def test_answers_of_all_labels_stand_beside_one_another(results: Results) -> None:
    shelves = browser.shelves(results)
    assert [s.benchmark for s in shelves] == ["pope", "chair", "vqa"]
    for shelf in shelves:
        assert len(shelf.cards) == browser.ITEMS
        for card in shelf.cards:
            assert [a.label for a in card.answers] == [a.label for a in results.arms]
            assert card.picture.data.startswith("data:image/png;base64,")
            assert card.picture.tiny


def test_most_shown_items_differ_and_the_choice_is_always_the_same(results: Results) -> None:
    first, second = browser.shelves(results), browser.shelves(results)
    assert first == second
    for shelf in first:
        differing = sum(card.differ for card in shelf.cards)
        same = shelf.num_items - shelf.num_differing
        two_thirds = min(shelf.num_differing, browser.ITEMS * 2 // 3)
        assert differing == max(two_thirds, browser.ITEMS - same)  # more only where too few are the same


def test_a_missing_image_is_said_and_not_fatal() -> None:
    shown = browser.picture("/nowhere/at/all.png")
    assert shown.data == ""
    assert "/nowhere/at/all.png" in shown.reason


def test_a_short_answer_is_judged_by_its_benchmark() -> None:
    def row(right: float, parsed: str) -> Row:
        return Row(
            "q", "?", parsed, "stop", ItemScore("q", "i", {"n": 1.0, "right": right}, parsed, truth="red")
        )

    benchmark = ShortAnswers([])
    assert browser.verdict(row(1.0, "crimson"), benchmark) == "right"
    assert browser.verdict(row(0.0, "blue"), benchmark) == "wrong"
    assert browser.verdict(row(0.5, "reddish"), benchmark) == "partly"
    assert browser.verdict(Row("q", "?", "", "stop", None, "no answer"), benchmark) == ""


def test_corrections_are_shown_with_their_errors_and_dialogue(results: Results, page: str) -> None:
    courses = browser.courses(results)
    assert courses[0].name == "critic rule, codebook full"
    lesson = courses[0].lessons[0]
    assert 'class="wrong"' in lesson.rejected
    assert lesson.correction.dialogue[0].question in html.unescape(page)
    assert sum(courses[0].statuses.values()) == 20


def test_an_unscored_answer_says_why(results: Results) -> None:
    shown = browser._answer("nsft", Row("q", "?", "", "length", None, "no answer"), ShortAnswers([]))
    assert shown.note == "no score: no answer; cut at the token limit"


def test_a_page_without_anything_but_a_base_is_made(results: Results) -> None:
    alone = make_results(list(results.cells[:1]), {"name": "base"}, replicates=20)
    text = to_html(alone, *draw_all(alone))
    assert Elements(text).open == []
    assert "No seeds: nothing was trained." in text


def test_cells_without_samples_show_corrections_without_pictures(results: Results) -> None:
    cells: list[Cell] = [dataclasses.replace(c, samples=None) for c in results.cells]
    lesson = browser.courses(make_results(cells, results.study, replicates=0))[0].lessons[0]
    assert lesson.picture is None
    assert lesson.question == ""


# --- in a browser ----------------------------------------------------------------------------------

CHROMIUM = next(
    (c for c in ("chromium", "chromium-browser", "google-chrome", "chrome") if shutil.which(c)), None
)
PROBE = """
<iframe id="page" srcdoc="{page}" style="width:{width}px;height:900px;border:0"></iframe>
<pre id="seen"></pre>
<script>
const frame = document.getElementById("page");
const report = () => {{
  const inside = frame.contentDocument;
  const shelves = [...inside.querySelectorAll(".shelf")].map((s) => s.hidden);
  inside.querySelectorAll(".tabs button")[1].click();
  const then = [...inside.querySelectorAll(".shelf")].map((s) => s.hidden);
  inside.getElementById("differ").click();
  const shown = [...inside.querySelectorAll(".shelf:not([hidden]) .card:not([hidden])")];
  const picture = inside.querySelector("picture img");
  document.getElementById("seen").textContent = JSON.stringify({{
    overflow: inside.documentElement.scrollWidth - inside.documentElement.clientWidth,
    shelves, then,
    differ: shown.every((c) => c.dataset.differ === "yes") && shown.length > 0,
    narrow: picture.naturalWidth < 500,
    pictures: [...inside.images].every((i) => i.loading === "lazy" || i.naturalWidth > 0),
  }});
}};
frame.addEventListener("load", () => setTimeout(report, 200));
</script>
"""


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here; on Debian: apt-get install chromium")
@pytest.mark.parametrize(("width", "narrow"), [(390, True), (1280, False)])
def test_the_page_works_in_a_browser(page: str, tmp_path: Path, width: int, narrow: bool) -> None:
    file = tmp_path / "probe.html"
    file.write_text(PROBE.format(page=html.escape(page), width=width), encoding="utf-8")
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    command = [str(CHROMIUM), *flags, "--window-size=1400,1000", "--virtual-time-budget=8000", "--dump-dom"]
    done = subprocess.run([*command, file.as_uri()], capture_output=True, text=True, timeout=120)
    found = re.search(r'<pre id="seen">(\{.*?\})</pre>', done.stdout)
    assert found, done.stderr[-500:]
    seen = json.loads(html.unescape(found[1]))
    assert seen == {
        "overflow": 0,
        "shelves": [False, True, True],
        "then": [True, False, True],
        "differ": True,
        "narrow": narrow,
        "pictures": True,
    }


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here; on Debian: apt-get install chromium")
@pytest.mark.skipif("NSFT_PAGE" not in os.environ, reason="NSFT_PAGE names no page of a study")
def test_the_page_of_a_study_opens_in_a_browser(tmp_path: Path) -> None:
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    command = [str(CHROMIUM), *flags, "--virtual-time-budget=8000", "--dump-dom"]
    page = Path(os.environ["NSFT_PAGE"]).resolve()
    done = subprocess.run([*command, page.as_uri()], capture_output=True, text=True, timeout=120)
    for label in ("base", "cont_sft", "gt_dpo", "nsft", "nsft/matched_random"):
        assert label in done.stdout, label
    assert "data:image/png;base64," in done.stdout
    assert "Uncaught" not in done.stderr
