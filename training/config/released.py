"""Translates command lines of the released GLeaD and GGDR programs into our options."""

import dataclasses
from typing import Any, Mapping, NamedTuple, cast

from dnnlib.util import UserError

from .options import GLEAD, OPTIONS, SECOND_NAMES, Options
from .rivals import method_name, read_method
from .schema import Method


class Parsed(NamedTuple):
    options: Options
    notes: list[str]        # Warnings about options without effect.


def parse(said: Mapping[str, Any]) -> Parsed:
    """Translate a command line. In the result, `method` and `recipe` are never None.

    Args:
        said: Values by name of the option. Second names are allowed.

    Raises:
        UserError: Two options contradict each other.
    """
    options = _merge_names(said)
    notes: list[str] = []
    recipe = options.recipe or ("released" if options.reg_type == "glead" else "paper")
    options = dataclasses.replace(options, recipe=recipe)
    said_method, rivals = (None, ()) if options.method is None else read_method(options.method)
    method = _choose_method(dataclasses.replace(options, method=said_method), notes)
    options = dataclasses.replace(options, method=method_name(method, rivals))
    if method in GLEAD:
        for images in ("real", "fake"):
            options = _translate_target(options, images, notes)
    return Parsed(options, notes)


def _merge_names(said: Mapping[str, Any]) -> Options:
    values = {name: value for name, value in said.items() if name in OPTIONS}
    for theirs, ours in SECOND_NAMES.items():
        if said.get(theirs) is not None:
            if said.get(ours) is not None:
                raise UserError(f"{OPTIONS[ours].flag_name} and --{theirs} are two names of one option: give one of "
                                "them")
            values[ours] = said[theirs]
    if values.get("metrics") is not None:
        values["metrics"] = tuple(values["metrics"])
    return Options(**values)


def _choose_method(options: Options, notes: list[str]) -> Method:
    """The method that --method, --reg_type and --reg_target_fake agree on; "glead" if none of them is given.

    If --reg_type=glead comes without a task for generated images, they get that of the released program.
    """
    given, reg_type = cast(Method | None, options.method), options.reg_type
    said = {name: getattr(options, name) for name in ("reg_target_real", "reg_target_fake")}
    targets = [f"--{name}={value}" for name, value in said.items() if value is not None]
    if reg_type is None and not targets:
        return given or "glead"
    implied: Method
    if reg_type in ("none", "ggdr"):
        implied = "stylegan2" if reg_type == "none" else "ggdr"
        notes += [f"{target} has no effect with --reg_type={reg_type}" for target in targets]
    elif options.reg_target_fake in ("gfwimage", "gfeat"):
        implied = "glead" if options.reg_target_fake == "gfwimage" else "glead+ggdr"
    else:
        unsaid = options.reg_target_fake is None and options.reg_loss_fake in (None, "cos")
        of_recipe: Method = "glead+ggdr" if options.recipe == "released" and unsaid else "glead"
        implied = given if given in GLEAD else of_recipe
    if given not in (None, implied):
        why = ([f"--reg_type={reg_type}"] if reg_type else []) + (targets if reg_type not in ("none", "ggdr") else [])
        raise UserError(f"--method={given} contradicts {' '.join(why)}, which mean --method={implied}")
    return implied


def _translate_target(options: Options, images: str, notes: list[str]) -> Options:
    """Translate --reg_target_real or --reg_target_fake: the target None becomes a weight of 0."""
    target = getattr(options, f"reg_target_{images}")
    if images == "real" and target == "gfeat":
        raise UserError("--reg_target_real is gfeat, but real images have no feature map of G: say gfwimage or None")
    if target != "None":
        return options
    weight = f"lambda_{images}"
    if getattr(options, weight):
        notes.append(f"{OPTIONS[weight].both_names} has no effect with --reg_target_{images}=None")
    changes: dict[str, Any] = {weight: 0.0}
    return dataclasses.replace(options, **changes)
