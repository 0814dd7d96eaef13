from pathlib import Path

from model.debian.descriptions import descriptions
from tests.model.debian.files import put


def test_descriptions_are_paired_by_the_digest_of_the_english_one(tmp_path: Path) -> None:
    english = (
        "Package: cat\nDescription-md5: 1\nDescription-en: shows files\n It shows files. It\n is small.\n .\n"
        "  * fast and\n  * free\n\nPackage: dog\nDescription-md5: 2\nDescription-en: barks\n It barks.\n"
    )
    german = (
        "Package: cat\nDescription-md5: 1\nDescription-de: zeigt Dateien\n Es zeigt Dateien. Es ist klein.\n .\n"
        "  * schnell und\n  * frei\n\nPackage: old\nDescription-md5: 3\nDescription-de: alt\n Alt.\n"
    )
    put(tmp_path / "deb_Translation-en", english)
    put(tmp_path / "deb_Translation-de", german)
    assert list(descriptions(tmp_path)) == [
        ("shows files", "zeigt Dateien"),
        ("It shows files.", "Es zeigt Dateien."),
        ("It is small.", "Es ist klein."),
        ("fast and", "schnell und"),
        ("free", "frei"),
    ]
