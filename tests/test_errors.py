from capmix.errors import UserError


def test_a_notebook_shows_one_line_that_steers_nothing() -> None:
    error = UserError("caption \x1b[2J\n of é")
    assert error._render_traceback_() == [r"UserError: caption \x1b[2J\n of é"]
