import pytest

from model.significance import SAMPLES, compare

REFERENCES = [f"Der Zug nach Hamburg fährt um {hour} Uhr vom Gleis {hour + 2} ab." for hour in range(1, 41)]


def test_a_better_translation_of_every_pair_is_no_luck() -> None:
    worse = [text.replace("fährt", "geht").replace("Gleis", "Ort") for text in REFERENCES]
    bleu, chrf = compare(REFERENCES, worse, REFERENCES)
    assert (bleu.metric, chrf.metric) == ("BLEU", "chrF")
    for found in (bleu, chrf):
        assert found.score == 100 > found.other
        assert found.p_value == pytest.approx(1 / (SAMPLES + 1), abs=1e-4)  # the least there is
    assert [found.p_value for found in compare(worse, REFERENCES, REFERENCES)] == [bleu.p_value, chrf.p_value]


def test_one_pair_in_forty_may_be_luck() -> None:
    worse = [REFERENCES[0].replace("Zug", "Bus"), *REFERENCES[1:]]
    assert all(found.score > found.other and found.p_value > 0.05 for found in compare(REFERENCES, worse, REFERENCES))


def test_the_same_translations_do_not_differ() -> None:
    written = [text.replace("Zug", "Bus") for text in REFERENCES]
    assert all(found.score == found.other and found.p_value == 1 for found in compare(written, written, REFERENCES))


def test_as_many_of_each_are_wanted() -> None:
    with pytest.raises(ValueError, match="40 translations, 39 to compare with, 40 references"):
        compare(REFERENCES, REFERENCES[1:], REFERENCES)
