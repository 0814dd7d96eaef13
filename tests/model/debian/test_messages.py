import json
from pathlib import Path

import polib
import pytest

from model.debian.messages import catalogues, json_messages
from tests.model.debian.files import put


def test_catalogues_give_messages_as_people_see_them(tmp_path: Path) -> None:
    catalogue = polib.MOFile()
    catalogue.append(polib.POEntry(msgid="_Open file", msgstr="Datei ö_ffnen"))
    catalogue.append(polib.POEntry(msgid="Up", msgstr="Auf", msgctxt="direction"))
    catalogue.append(
        polib.POEntry(msgid="%d cat", msgid_plural="%d cats", msgstr_plural={0: "%d Katze", 1: "%d Katzen"})
    )
    catalogue.append(polib.POEntry(msgid="One.\nTwo.\n\nThree.", msgstr="Eins.\nZwei.\n\nDrei."))
    catalogue.append(polib.POEntry(msgid="female^Elf", msgstr="Elfin"))
    catalogue.append(polib.POEntry(msgid="Loading&hellip;", msgstr="Lädt&hellip;"))
    catalogue.append(polib.POEntry(msgid="read file_name", msgstr="lies file_name"))
    path = tmp_path / "usr/share/locale/de/LC_MESSAGES/cat.mo"
    path.parent.mkdir(parents=True)
    catalogue.save(str(path))
    put(tmp_path / "usr/share/locale/fr/LC_MESSAGES/cat.mo", "not one of ours")
    assert sorted(catalogues(tmp_path)) == [
        ("%d cat", "%d Katze"),
        ("%d cats", "%d Katzen"),
        ("Elf", "Elfin"),
        ("Loading&hellip;", "Lädt&hellip;"),
        ("One.", "Eins."),
        ("Open file", "Datei öffnen"),
        ("Three.", "Drei."),
        ("Two.", "Zwei."),
        ("Up", "Auf"),
        ("read file_name", "lies file_name"),
    ]


def test_messages_of_both_languages_are_paired_by_key(tmp_path: Path) -> None:
    put(tmp_path / "i18n/en.json", json.dumps({"a": "Page", "b": "Only here", "@metadata": {"authors": []}}))
    put(tmp_path / "i18n/de.json", json.dumps({"a": "Seite", "@metadata": {"authors": []}}))
    put(tmp_path / "other/de.json", json.dumps({"a": "Seite"}))
    assert list(json_messages(tmp_path)) == [("Page", "Seite")]


@pytest.mark.parametrize(
    ("english", "german", "expected"),
    [
        ("_Name", "_Name", ("Name", "Name")),
        ("&Import...", "&Import...", ("Import...", "Import...")),
        ("_exit", "_exit", ("_exit", "_exit")),
        ("E_xport", "Ausfüh_ren", ("Export", "Ausführen")),
        ("The user_id is wrong", "Die Kennung ist falsch", ("The user_id is wrong", "Die Kennung ist falsch")),
        ("R&D", "F&E-Etat", ("R&D", "F&E-Etat")),
        ("_a and _b", "_a und _b", ("_a and _b", "_a und _b")),
        ("Adjusted R^2", "Angepasstes R^2", ("Adjusted R^2", "Angepasstes R^2")),
        ("Use HEAD^ now", "HEAD nehmen", ("Use HEAD^ now", "HEAD nehmen")),
        ("?plural:Dogs", "Hunde", ("Dogs", "Hunde")),
        ("One.\n\nTwo.", "Eins. Und zwei. Und drei.", ("One. Two.", "Eins. Und zwei. Und drei.")),
    ],
)
def test_only_what_is_not_said_is_taken_out(
    tmp_path: Path, english: str, german: str, expected: tuple[str, str]
) -> None:
    put(tmp_path / "en.json", json.dumps({"a": english}))
    put(tmp_path / "de.json", json.dumps({"a": german}))
    assert list(json_messages(tmp_path)) == [expected]


def test_a_file_that_cannot_be_read_is_named_and_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for folder, text in (("bad", "no JSON"), ("good", json.dumps({"a": "Katze"}))):
        put(tmp_path / folder / "de.json", text)
        put(tmp_path / folder / "en.json", json.dumps({"a": "Cat"}))
    put(tmp_path / "de.mo", "x")
    assert list(json_messages(tmp_path)) == [("Cat", "Katze")]
    assert list(catalogues(tmp_path)) == []
    assert "bad/de.json is left out: JSONDecodeError" in caplog.text
    assert "de.mo is left out" in caplog.text
