from capmix.measure.measure import text_measures


def test_a_hand_worked_case() -> None:
    texts = ["A red apple, food"] * 5 + ["the red apple falls", "apple"]
    found = text_measures(texts)
    assert found["texts"] == 7
    assert found["unique_texts"] == 3
    assert found["share_repeated_5"] == 5 / 7
    assert found["mean_words"] == (5 * 4 + 4 + 1) / 7
    assert found["vocabulary"] == 6  # a red apple food the falls
    # a red apple, red apple food, the red apple, red apple falls
    assert found["unique_trigrams"] == 4


def test_no_texts_give_zeros() -> None:
    assert set(text_measures([]).values()) == {0}
