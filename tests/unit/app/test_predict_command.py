"""`resnet predict` as a person sees it: which files and numbers it takes, and what it says of the others."""

import pytest

from app.cli import build_parser


@pytest.mark.parametrize("number", ["0", "-5", "1.5", "many"])
def test_no_class_at_all_is_no_answer_to_ask_for(number, capsys):
    with pytest.raises(SystemExit) as stopped:
        build_parser().parse_args(["predict", "picture.png", f"--top-k={number}"])
    assert stopped.value.code == 2
    assert f"argument --top-k: expected a whole number of at least 1, not '{number}'" in capsys.readouterr().err
