from pathlib import Path

import pytest

from model.debian.pages import pages
from tests.model.debian.files import put


@pytest.mark.parametrize(
    ("english", "german"),
    [
        ("help/en-US/a.html", "help/de/a.html"),
        ("doc/html/en-US/a.html", "doc/html/de-DE/a.html"),
        ("help/C/a.page", "help/de/a.page"),
        ("ref/a.en.html", "ref/a.de.html"),
        ("doc/guide/a.html", "doc/guide-de/a.html"),
        ("doc/guide-en/html/a.en.html", "doc/guide-de/html/a.de.html"),
    ],
)
def test_pages_are_paired_by_their_paths_and_aligned(tmp_path: Path, english: str, german: str) -> None:
    put(
        tmp_path / english,
        "<head><title>x</title></head><h1>The window</h1><p>Press <b>Enter</b> &amp; wait. It\ncloses.</p>"
        "<pre>ls -l</pre><ul><li>First item here</li></ul>",
    )
    put(
        tmp_path / german,
        "<head><title>y</title></head><h1>Das Fenster</h1><p>Drücken Sie <b>Enter</b> &amp; warten Sie. Es schließt.</p>"
        "<pre>ls -l</pre><ul><li>Der erste Punkt</li></ul>",
    )
    assert list(pages(tmp_path)) == [
        ("The window", "Das Fenster"),
        ("Press Enter & wait.", "Drücken Sie Enter & warten Sie."),
        ("It closes.", "Es schließt."),
        ("First item here", "Der erste Punkt"),
    ]


def test_pages_with_names_of_their_own_for_blocks_are_paired_by_them(tmp_path: Path) -> None:
    put(tmp_path / "en-US/a.html", '<p id="par_id1">First one.</p><p id="par_id2">Second one.</p><p id="x">Last.</p>')
    put(tmp_path / "de/a.html", '<p id="par_id2">Der zweite.</p><p id="y">Letzter.</p>')
    assert list(pages(tmp_path)) == [("Second one.", "Der zweite."), ("Last.", "Letzter.")]


def test_mallard_keeps_titles_keys_and_menus_together(tmp_path: Path) -> None:
    page = (
        "<page><info><credit><name>{0}</name></credit><desc>{1}</desc></info><title>{2} <app>Files</app></title>"
        "<p><keyseq><key>Ctrl</key><key>S</key></keyseq> <guiseq><gui>A</gui><gui>B</gui></guiseq> {3}<br/>!</p></page>"
    )
    put(tmp_path / "C/a.page", page.format("Somebody", "About it.", "Use", "and go"))
    put(tmp_path / "de/a.page", page.format("Jemand", "Darüber.", "Nutze", "und los"))
    assert list(pages(tmp_path)) == [
        ("About it.", "Darüber."),
        ("Use Files", "Nutze Files"),
        ("Ctrl+S A ▸ B and go !", "Ctrl+S A ▸ B und los !"),
    ]


def test_a_page_is_that_of_the_path_that_differs_in_most_marks_whatever_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "de" / "tmp"
    put(folder / "guide-de/a.de.html", "<p>Das hier.</p>")
    put(folder / "guide-de/a.html", "<p>Jenes da.</p>")
    put(folder / "guide-en/a.en.html", "<p>This here.</p>")
    assert list(pages(folder)) == [("This here.", "Das hier.")]
