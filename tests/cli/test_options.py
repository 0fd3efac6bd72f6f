"""How options become settings."""

import json
import math
from dataclasses import replace

import pytest

from pureebm.cli.options import emit, langevin_config, parse_batch_size, parse_device, parse_shard
from pureebm.energy.weights import load_model
from pureebm.errors import InputError
from pureebm.sampling.langevin import LangevinConfig


def test_the_sampler_of_the_card_is_the_default_and_options_stand_over_it(tiny_model):
    model = load_model(tiny_model)
    own = LangevinConfig(n_steps=3, step_size=0.02, temperature=1e-2)
    assert langevin_config(model) == own
    assert langevin_config(model, steps="7") == replace(own, n_steps=7)
    assert langevin_config(model, step_size=0.5, noise=0.0) == replace(own, step_size=0.5, noise=0.0)
    assert langevin_config(model, sampler="paper", temperature=2.0) == replace(LangevinConfig(), temperature=2.0)


def test_steps_auto_is_the_mid_run_of_the_card(tiny_model):
    model = load_model(tiny_model)
    assert langevin_config(model, steps="auto").n_steps == 5
    bare = replace(model, card={"sampler": {}})
    with pytest.raises(InputError, match="holds no measured mid-run; give a number"):
        langevin_config(bare, steps="auto")


def test_a_constant_given_by_hand_ends_the_schedule_of_the_card(tiny_model):
    model = load_model(tiny_model)
    scheduled = replace(model, card={"sampler": {"step_size_end": 0.001, "temperature_end": 1e-5}})
    config = langevin_config(scheduled, step_size=0.1)
    assert (config.step_size, config.step_size_end, config.temperature_end) == (0.1, None, 1e-5)


@pytest.mark.parametrize("text", ["-1", "1.5", "many", ""])
def test_bad_steps_are_named(tiny_model, text):
    with pytest.raises(InputError, match=f"--steps must be 'auto' or a whole number of at least 0, got '{text}'"):
        langevin_config(load_model(tiny_model), steps=text)


def test_batch_size_shard_and_device():
    assert parse_batch_size("auto") is None
    assert parse_batch_size("12") == 12
    assert parse_shard("2/4") == (2, 4)
    assert parse_device("cpu") == "cpu"
    for parse, text in ((parse_batch_size, "0"), (parse_shard, "2"), (parse_shard, "a/4"), (parse_device, "tpu")):
        with pytest.raises(InputError, match=f"'{text}'"):
            parse(text)


def test_what_is_printed_is_json_whatever_the_numbers_are(capsys):
    emit({"loss": math.nan, "all": [1, 0.5, math.inf, {"least": -math.inf}], "pair": (True, None, "nan")})
    printed = capsys.readouterr().out
    assert json.loads(printed, parse_constant=pytest.fail) == {
        "loss": None, "all": [1, 0.5, None, {"least": None}], "pair": [True, None, "nan"]
    }  # fmt: skip
