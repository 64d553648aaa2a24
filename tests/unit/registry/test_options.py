"""Options of components: bound as Python binds arguments, with messages for users."""

import inspect
import types

import pytest
from hypothesis import given
from hypothesis import strategies as st

from miniformer import registry
from miniformer.config import UserError
from miniformer.registry.options import call_with_options


def plain(x, scale=1.0, *, depth):
    return x, scale, depth


def open_ended(x, **options):
    return x, options


class Part:
    def __init__(self, size, width=2):
        if size < 0:
            raise ValueError(f"size must be at least 0, not {size}")
        self.size, self.width = size, {2: 2, 0: 0, 1: 1, 3: 3}[width]


LINE = inspect.getsourcelines(Part.__init__)[1] + 1


COMPONENTS = [(plain, 1), (open_ended, 1), (Part, 0), (lambda: 3, 0)]
OPTIONS = st.dictionaries(
    st.sampled_from(["scale", "depth", "size", "width", "other"]), st.integers(0, 3)
)


@pytest.mark.catches("unknown_options_are_dropped")
@given(st.sampled_from(COMPONENTS), OPTIONS)
def test_options_are_accepted_if_python_can_bind_them(component, options):
    function, num_args = component
    args = [0] * num_args
    try:
        inspect.signature(function).bind(*args, **options)
    except TypeError:
        with pytest.raises(UserError, match=r"^callbacks: part"):
            call_with_options(function, "part", options, *args, label="callbacks")
    else:
        result = call_with_options(function, "part", options, *args, label="callbacks")
        expected = function(*args, **options)
        same = vars(result) == vars(expected) if isinstance(result, Part) else result == expected
        assert same


def test_component_without_a_signature_is_called():
    assert call_with_options(max, "part", {}, 3, 4, label="callbacks") == 4
    with pytest.raises(UserError, match=r"^callbacks: part: "):
        call_with_options(max, "part", {"other": 1}, 3, 4, label="callbacks")


@pytest.mark.parametrize(
    ("component", "options", "message"),
    [
        (
            plain,
            {"depth": 1, "scal": 2},
            "has no option 'scal' (did you mean 'scale'?); its options: scale, depth",
        ),
        (plain, {"scale": 2}, "needs the option 'depth'; its options: scale, depth"),
        (Part, {}, "needs the option 'size'; its options: size, width"),
        (lambda x: x, {"a": 1}, "has no option 'a'; its options: none"),
        (Part, {"size": -1}, "size must be at least 0, not -1"),
        (
            Part,
            {"size": "a"},
            "TypeError: '<' not supported between instances of 'str' and 'int' "
            f"({__file__}:{LINE})",
        ),
        (Part, {"size": 1, "width": "a"}, f"KeyError: 'a' ({__file__}:{LINE + 2})"),
    ],
)  # fmt: skip
def test_options_that_do_not_fit_are_a_user_error(component, options, message):
    args = [0] if component is not Part else []
    with pytest.raises(UserError) as caught:
        call_with_options(component, "part", options, *args, label="callbacks[0]")
    separator = " " if message.startswith(("has", "needs")) else ": "
    assert str(caught.value) == f"callbacks[0]: part{separator}{message}"


def test_mistake_of_this_project_is_no_user_error():
    component = types.FunctionType(Part.__init__.__code__, {"__name__": "miniformer.part"})
    with pytest.raises(KeyError):
        call_with_options(component, "part", {"width": 9}, types.SimpleNamespace(), 1, label="x")


def test_build_takes_a_name_or_an_object(monkeypatch):
    monkeypatch.setitem(registry._registered, "transform", {"part": plain})
    setting = {"type": "part", "scale": 3, "depth": 4}
    assert registry.build("transform", setting, 5, label="transforms[0]") == (5, 3, 4)
    assert setting == {"type": "part", "scale": 3, "depth": 4}
    monkeypatch.setitem(registry._registered, "transform", {"part": open_ended})
    assert registry.build("transform", "part", 5, label="transforms[0]") == (5, {})


def test_problems_of_settings_are_found_without_an_import(install):
    entries = {"callback": {"clock": "clocks:Clock"}}
    install("clocks", entries, code="raise RuntimeError\n")

    def problems(*settings, **options):
        return registry.setting_problems("callback", settings, label="callbacks", **options)

    assert registry.setting_problems("callback", None, label="callbacks") == []
    assert problems("clock", {"type": "clock", "every": 2}) == []
    assert problems("a.b:C", {"type": "a.b:C"}, paths=True) == []
    unknown = (
        "callbacks[1]: unknown callback 'clok' (did you mean 'clock'?); "
        "known: sparse_training, weight_masks, clock"
    )
    assert problems("clock", {"type": "clok"}) == [unknown]
    assert problems("clock", "clok", paths=True) == [
        f"{unknown}; an import path is package.module:Class"
    ]
    for setting in (3, {}, {"type": None}, ["clock"]):
        (problem,) = problems(setting)
        assert problem == (
            "callbacks[0] must be a name, or an object with a name as type, such as "
            f'{{"type": "sparse_training"}}, not {setting!r}'
        )
