"""One rule per kind of argument, one message for all."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hypergrad.ground import checks

NOT_NUMBERS = [None, True, np.True_, jnp.array(True), "3", b"3", [3], {}, object(), int, 3j, jnp.ones(2), np.ones(1)]
NOT_NUMBERS += [jax.random.key(0), np.array(3, object), np.datetime64("2020-01-01"), float]


def refused(rule, value, kind, message=""):
    with pytest.raises(kind, match=f"^{rule.name} must be {message}.*, got ") as error:
        rule(value)
    assert len(str(error.value)) < 200


@pytest.mark.parametrize(
    "value", [3, np.int64(3), np.uint8(3), jnp.int32(3), np.array(3), 3.0, np.float32(3), jnp.bfloat16(3)]
)
def test_integers_of_every_kind(value):
    found = checks.integer("size", least=1)(value)
    assert found == 3 and type(found) is int


@pytest.mark.parametrize("value", [*NOT_NUMBERS, 2.5, np.float32(0.1)], ids=lambda value: type(value).__name__)
def test_what_is_no_integer(value):
    refused(checks.integer("size", least=1), value, TypeError, "a positive integer")


@pytest.mark.parametrize(
    "value", [0, -1, 2**31, 10**400, float("nan"), float("inf"), -np.inf, 1e300, np.float16("nan")]
)
def test_integers_out_of_range(value):
    refused(checks.integer("size", least=1), value, ValueError)
    refused(checks.integer("size", least=1, most=5, optional=True), value, ValueError, "an integer from 1 to 5 or None")


@pytest.mark.parametrize(
    "value", [0.5, np.float32(0.5), np.float16(0.5), jnp.asarray(0.5), jnp.bfloat16(0.5), np.array(0.5)]
)
def test_numbers_of_every_kind(value):
    found = checks.real("rate", above=0)(value)
    assert found == 0.5 and isinstance(found, float | jax.Array)
    assert checks.real("rate")(np.int64(2)) == 2.0


@pytest.mark.parametrize("value", NOT_NUMBERS, ids=lambda value: type(value).__name__)
def test_what_is_no_number(value):
    refused(checks.real("rate", above=0), value, TypeError, "a finite number above 0")


@pytest.mark.parametrize("value", [0, -1e-9, 1, 2.0, jnp.nan, np.inf, 10**400, jnp.array(jnp.inf), np.float16(-1)])
def test_numbers_out_of_range(value):
    refused(checks.real("rate", above=0, below=1), value, ValueError, "a finite number above 0 and below 1")


def test_numbers_inside_a_transformation():
    assert jax.jit(lambda rate: checks.real("rate", above=0)(rate))(0.5) == 0.5
    with pytest.raises(TypeError, match="size must be"):
        jax.jit(lambda size: checks.integer("size")(size))(3)
    with pytest.raises(TypeError, match="rate must be"):
        jax.jit(lambda rate: checks.real("rate")(rate))(jnp.ones(2))


def test_optional_arguments():
    assert checks.integer("size", optional=True)(None) is None
    refused(checks.real("rate", optional=True), "a", TypeError, "a finite number or None")


def test_truth_values_and_words():
    assert checks.boolean("warm_start")(np.True_) is True
    for value in (1, 0.0, None, "yes", jnp.ones(2)):
        refused(checks.boolean("warm_start"), value, TypeError, "True or False")
    rule = checks.choice("path", "linear", "cubic")
    assert rule("cubic") == "cubic"
    refused(rule, "square", ValueError, '"linear" or "cubic"')
    refused(rule, 3, TypeError)


def test_functions_objects_and_paths(tmp_path):
    assert checks.function("prior", "key -> hparams")(len) is len
    refused(checks.function("prior", "key -> hparams"), 3, TypeError, "a function key -> hparams")
    assert checks.instance("table", dict, "a dictionary")({}) == {}
    refused(checks.instance("table", dict, "a dictionary"), dict, TypeError, "a dictionary")
    assert checks.path("file")(tmp_path / "a") == str(tmp_path / "a")
    for value in (True, 3, np.int64(3), None, object(), b"a"):
        refused(checks.path("file"), value, TypeError, "the path of a file")
    for value in ("", "a\0b"):
        refused(checks.path("file"), value, ValueError)


def test_random_keys():
    rule, key = checks.random_key("key"), jax.random.key(3)
    assert rule(key) is key
    assert rule(jax.random.PRNGKey(3)) == key
    assert jax.jit(lambda key: jax.random.key_data(rule(key)))(jax.random.PRNGKey(3))[1] == 3
    for value in (
        3,
        None,
        "key",
        np.zeros(2, np.uint32),
        jnp.zeros(3, jnp.uint32),
        jnp.zeros(2),
        np.random.default_rng(0),
    ):
        refused(rule, value, TypeError, "one random key")
    refused(rule, jax.random.split(key), ValueError)


def test_a_function_with_a_table():
    @checks.checked(checks.integer("size", least=1), checks.random_key("key"))
    def draw(key, size, *, scale=1.0):
        """Draws."""
        return size, scale

    assert draw(jax.random.PRNGKey(0), np.int64(2)) == (2, 1.0) and draw.__doc__ == "Draws."
    assert draw(size=3.0, key=jax.random.key(0), scale=2.0) == (3, 2.0)
    with pytest.raises(ValueError, match="size must be a positive integer, got 0"):
        draw(jax.random.key(0), 0)
    with pytest.raises(TypeError, match="size"):
        draw(jax.random.key(0))
    with pytest.raises(TypeError, match="draw has no argument length"):
        checks.checked(checks.integer("length"))(draw)


def test_a_message_is_short_whatever_the_value():
    class Rude:
        def __repr__(self):
            raise RuntimeError

    for value in ("x" * 10_000, list(range(10_000)), Rude(), jnp.ones((1000, 1000)), {"a": "b\nc" * 100}):
        refused(checks.integer("size"), value, TypeError)
