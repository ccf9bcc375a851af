from capmix.settings.counted import counted, plural


def test_a_count_of_one_has_a_singular_noun() -> None:
    assert counted(1, "image") == "1 image"
    assert [counted(number, "row") for number in (0, 2, 2300)] == ["0 rows", "2 rows", "2,300 rows"]
    assert (plural("shard"), plural("batch")) == ("shards", "batches")
