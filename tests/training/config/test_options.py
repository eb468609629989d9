"""What follows from the description of an option."""

import dataclasses

import pytest

from dnnlib.util import UserError
from training.config.options import LIMITS, OPTIONS, Options, get, on_command_line, replaced
from training.config.resolve import resolve
from training.config.schema import DatasetConfig
from training.jobs.summary import describe_options

SAID = {  # A value for each option that sets fields by itself.
    "snap": 7, "tick": 2.0, "grid_size": 64, "metrics": ("fid50k",), "detector": "net.pt", "seed": 5, "keep": "best",
    "timeout": 9.0, "cfg": "cifar", "gamma": 3.0, "kimg": 8.0, "glr": 0.01, "dlr": 0.02, "batch": 16,
    "r1": "finite", "recon_target": "clean", "cbase": 256, "cmax": 16, "map_depth": 3, "mbstd_group": 8,
    "freezed": 2, "lpips_fp32": True, "nhwc": True, "allow_tf32": True, "workers": 1,
    "log": ("wandb",),
}


def configure(**said):
    return resolve(Options(**said), DatasetConfig(path="d", resolution=32), device="cpu")


def test_what_is_said_reaches_the_fields_that_an_option_sets():
    assert SAID.keys() == {name for name, option in OPTIONS.items() if option.sets}
    before, config = configure(), configure(**SAID)
    for name, value in SAID.items():
        for path in OPTIONS[name].sets:
            assert get(config, path) == value != get(before, path), path


@pytest.mark.parametrize("name", [name for name, option in OPTIONS.items() if option.limits])
def test_limits_hold_wherever_a_configuration_comes_from(name):
    from training.config.checks import validate

    option, config = OPTIONS[name], configure(aug="fixed", p=0.5) if name == "p" else configure()
    for limit, bound in option.limits.items():
        beyond = {"at_least": -1, "more_than": 0, "at_most": 1, "below": 0}
        value = bound[1] + 1 if limit == "between" else bound + beyond[limit]
        path = option.fields[0]
        assert get(config, path) is not None
        with pytest.raises(UserError) as e:
            validate(replaced(config, path, value))
        words = LIMITS[limit][1].format(bound)
        assert str(e.value) == f"{option.flag_name} is {value}, expected {words}"


def test_fields_of_options_are_those_of_a_configuration():
    whole = configure(method="glead+ggdr")
    for option in OPTIONS.values():
        assert set(option.shape) <= set(option.fields)
        for path in option.fields:
            *parents, last = path.split(".")
            owner = get(whole, ".".join(parents)) if parents else whole
            assert last in {field.name for field in dataclasses.fields(owner)}, path


def test_second_names_are_options_of_their_own():
    names = [option.flag_name for option in on_command_line(adversarial=["a"])]
    assert len(names) == len(set(names)) == len(OPTIONS) + 5 and "--glead_res_g" in names
    assert {option.name: option.choices for option in on_command_line(adversarial=["a"])}["adversarial"] == ("a",)


def test_summary_follows_from_the_options(monkeypatch):
    """A new option with a `summary` gets its line without a word of code."""
    lines = describe_options(configure(gamma=3.0, metrics=()))
    assert list(lines) == [
        "Data", "Method", "Real images", "Generated images", "Decoder of D", "Start", "R1 gamma", "Length",
        "Learning rate, G", "Learning rate, D", "Batch", "Augmentation", "Snapshots", "Metrics"]
    assert (lines["R1 gamma"], lines["Metrics"], lines["Start"]) == ("3", "none", "new networks")
    monkeypatch.setitem(OPTIONS, "half", OPTIONS["half"]._replace(summary="Half precision"))
    assert describe_options(configure(half="bfloat16"))["Half precision"] == "bfloat16"
