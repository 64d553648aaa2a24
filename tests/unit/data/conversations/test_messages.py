"""Checks of conversations name the message, the value and the fix."""

import pytest

from miniformer.data.conversations.messages import check_messages, is_chat

ASK = {"role": "user", "content": "Hi"}
ANSWER = {"role": "assistant", "content": "Hello"}


@pytest.mark.parametrize(
    "messages",
    [
        [ASK, ANSWER],
        [{"role": "system", "content": "Be brief."}, ASK, ANSWER, ASK, ANSWER],
        [ASK, ANSWER, {"role": "tool", "content": "1"}, ANSWER],
        [ASK, {**ANSWER, "learn": False}],
    ],
)
def test_conversation_is_accepted(messages):
    assert check_messages(messages) is None
    assert is_chat(messages)


@pytest.mark.catches("second_turns_in_a_row_are_fine")
@pytest.mark.parametrize(
    ("messages", "problem"),
    [
        ("Hi", "must be a list of messages, not "),
        ([], "is an empty list; it needs a message"),
        ([ASK], "has no assistant turn, so that nothing is learned"),
        ([ANSWER], "message 1 is an assistant turn without a user turn before it"),
        ([ASK, ASK, ANSWER], "message 2 is a second user turn in a row; join the two"),
        ([ASK, ANSWER, ANSWER], "message 3 is a second assistant turn in a row"),
        ([ASK, {"role": "system", "content": "x"}, ANSWER], "message 2 is a system message after"),
        ([ASK, {"role": "tool", "content": "x"}], "message 2 is a tool result that follows no"),
        ([ASK, "Hello"], "message 2 is "),
        ([ASK, {"role": "bot", "content": "x"}], "message 2 has the role 'bot'; use "),
        ([ASK, {"role": "assistant"}], "message 2 has no 'content' (it has 'role'); add it"),
        ([ASK, {**ANSWER, "content": " "}], "message 2 (assistant) has an empty content"),
        ([ASK, {**ANSWER, "content": 3}], "message 2 (assistant) has "),
        ([ASK, {**ANSWER, "learn": "no"}], "message 2 has a string as learn; it must be true or"),
        ([{"from": "human", "value": "Hi"}], "message 1 has 'from' and no 'role'; run miniformer"),
    ],
)
def test_problem_names_message_and_fix(messages, problem):
    assert check_messages(messages).startswith(problem)
