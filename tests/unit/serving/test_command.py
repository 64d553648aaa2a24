"""`miniformer serve`: flags and messages, without a server."""

import pytest

from miniformer import cli

pytest.importorskip("fastapi")


@pytest.mark.catches("the_command_drops_settings")
def test_flags_are_settings_of_the_server(monkeypatch):
    from miniformer.serving import server

    calls = []
    monkeypatch.setattr(server, "serve", lambda models, config: calls.append((models, config)))
    assert cli.main(["serve", "runs/mt/best", "b=x", "--slots", "3", "--weights", "int8"]) == 0
    ((models, config),) = calls
    assert models == {"mt": "runs/mt/best", "b": "x"}
    assert (config.slots, config.weights, config.port) == (3, "int8", 8000)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["x", "--slots", "0"], "slots must be at least 1"),
        (["x", "--slot", "3"], "--slots"),
        (["x", "--host", "0.0.0.0"], "set api_key_file, or insecure"),
        (["no/model", "--port", "0"], "no/model"),
        ([], "missing: models"),
    ],
)
def test_a_mistake_is_one_message(flags, message, capsys):
    assert cli.main(["serve", *flags]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
