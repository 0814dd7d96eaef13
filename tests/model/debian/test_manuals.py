from pathlib import Path

import pytest

from model.debian.manuals import manual, manuals
from tests.model.debian.files import put


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (".PP\nthe user\\*(Aqs\n.PP\nnext one", ["the user's", "next one"]),
        (".PP\none\n\ntwo of them", ["one", "two of them"]),
        (".TP\n.B foo\n.TQ\n.B bar\nbody of it", ["foo", "bar", "body of it"]),
        ('.PP\nfirst \\" not this\nsecond', ["first second"]),
        (".PP\n\\[beyond] us\n.PP\nclear", ["clear"]),
        (".PP\nsee\n.Vb 1\nint main\n.Ve\nthat", ["see", "that"]),
        (".Dd today\n.PP\nmdoc", []),
        ('.IP "the tag" 4\nbody of it', ["the tag", "body of it"]),
        (".IP \\(bu 2\nbody of it", ["body of it"]),
        (".TP\n.B\n\\-xx\nbody of it", ["-xx", "body of it"]),
        (".PP\nthe maintainers\\.", ["the maintainers."]),
        (".PP\nbeyond \\n[us]\n.PP\na \\enn", ["a \\nn"]),
    ],
)
def test_requests_part_blocks(text: str, expected: list[str]) -> None:
    assert [block.text for block in manual(text)] == expected


PAGE = r""".\" a comment
.TH LS 1
.SH {name}
{text}
.nf
not this
.fi
.TP
.BR \-a ", " \-\-all
{item}
"""


def test_manual_pages_lose_their_requests_and_escapes(tmp_path: Path) -> None:
    english = PAGE.format(
        name='"SEE ALSO"', text=r"Lists \fBfiles\fR, see" + "\n.BR dir (1).", item="do not hide any entry"
    )
    german = PAGE.format(
        name='"SIEHE AUCH"',
        text=r"Zeigt \fBDateien\fR, siehe" + "\n.BR dir (1).",
        item=r"verbirgt keine Eintr\[u00E4]ge",
    )
    put(tmp_path / "usr/share/man/man1/ls.1.gz", english)
    put(tmp_path / "usr/share/man/de/man1/ls.1.gz", german)
    put(tmp_path / "usr/share/man/de/man1/alone.1.gz", german)
    assert list(manuals(tmp_path)) == [
        ("SEE ALSO", "SIEHE AUCH"),
        ("Lists files, see dir(1).", "Zeigt Dateien, siehe dir(1)."),
        ("-a, --all", "-a, --all"),
        ("do not hide any entry", "verbirgt keine Einträge"),
    ]
