"""The command `predict`."""

import pytest

from miniformer.commands import predict
from miniformer.config import UserError


@pytest.mark.catches("lines_of_standard_input_are_not_numbered")
@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '{"input": "a"}\n\n{"txt": "b"}\n',
            "standard input:3: the record has no 'input' and no 'source' and no 'text'",
        ),
        ('"a"\nb\n', "standard input:2: not JSON"),
    ],
)
def test_predict_command_names_the_line_of_standard_input(text, message):
    with pytest.raises(UserError, match=message):
        predict._parse_json_lines(text, ["text"])
