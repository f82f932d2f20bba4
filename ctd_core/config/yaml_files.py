"""Reading YAML files, and reporting what is wrong in them."""

import copy
import difflib
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from ctd_core.config.align import AnyChunks
from ctd_core.config.base import Options
from ctd_core.config.run import DECIDED_BY_OBJECTIVES, RunConfig
from ctd_core.config.secrets import NO_KEYS, fields_with_secrets, redact
from ctd_core.errors import UsageError

AnyOptions = TypeVar("AnyOptions", bound=Options)
_NO_KIND = FieldInfo()
RENAMED_FIELDS = {
    "clip_norm": "max_grad_norm",
    "final_learning_rate_fraction": "min_lr_ratio",
    "leave_out_one_to_one": "exclude_one_to_one",
    "micro_batches": "gradient_accumulation",
    "more_teachers": "extra_teachers",
    "part_bytes": "slice_bytes",
    "places": "positions",
    "split_fraction": "fragmented_fraction",
    "vocab_multiple": "pad_to_multiple_of",
}
RENAMED_KINDS = {"mined": "min_ed"}


def read_config(text: str, source: str, overrides: list[str]) -> RunConfig:
    """The run that `text` (YAML) describes, with `overrides` such as `train.steps=100` put in.

    Raises UsageError that names `source`, the field, its value and what is allowed.
    """
    values = parse_yaml(text, source)
    if not isinstance(values, dict):
        raise UsageError(f"{source}: a run's file holds fields such as `name:`, not {type(values).__name__}.")
    changed = copy.deepcopy(values)
    try:
        set_values = _parse_overrides(overrides)
        for path, value in set_values.items():
            _put(changed, path, value, f"--set {path}")
        return _validated(RunConfig, changed, source, list(set_values), values)
    except UsageError:
        with suppress(UsageError):  # what is set may lie in a default, as train.objectives.0 does
            return with_overrides(_validated(RunConfig, values, source), overrides)
        raise


def read_group(kind: type[AnyOptions], group: str, overrides: list[str]) -> AnyOptions:
    """One group of options out of its defaults and `overrides`, such as evaluate.tasks.limit=200 of evaluate.tasks.

    Raises UsageError as `read_config` does, also where one is of another group.
    """
    values: dict[str, Any] = {}
    for path, value in _parse_overrides(overrides).items():
        if not path.startswith(f"{group}."):
            raise UsageError(
                f"--set {path}: here are options of {group} alone, such as {group}.{next(iter(kind.model_fields))}."
            )
        _put(values, path.removeprefix(f"{group}."), value, f"--set {path}")
    if fields := list(fields_with_secrets(values, group)):
        raise UsageError(f"{', '.join(fields)}: {NO_KEYS}.")
    return _validated(kind, values, group)


def with_overrides(config: RunConfig, overrides: list[str]) -> RunConfig:
    """`config` with `overrides` as `read_config` takes them."""
    return with_values(config, _parse_overrides(overrides), "--set")


def _parse_overrides(overrides: list[str]) -> dict[str, Any]:
    values = {}
    for override in overrides:
        path, equals, written = override.partition("=")
        if not equals:
            raise UsageError(f"--set {redact(override)}: write --set dotted.path=value.")
        values[path] = parse_yaml(written, f"--set {redact(override)}")
    return values


def with_values(config: RunConfig, changes: Mapping[str, Any], source: str) -> RunConfig:
    """`config` with other values at dotted paths, and defaults by these; raises UsageError as `read_config` does."""
    values = config.model_dump()
    values["prepare"] = {
        name: value
        for name, value in values["prepare"].items()
        if name in config.prepare.model_fields_set or name not in DECIDED_BY_OBJECTIVES
    }
    for path, value in changes.items():
        _put(values, path, value, f"{source}: {path}")
    return _validated(RunConfig, values, source)


def read_options(file: Path, kind: type[AnyOptions]) -> AnyOptions:
    """The options that a YAML file holds; raises UsageError that names the file and the field that is wrong."""
    return _validated(kind, parse_yaml(read_text(file), str(file)), str(file))


def read_text(file: Path) -> str:
    """The text of a UTF-8 file, line ends as they are; raises UsageError where there is none."""
    try:
        return file.read_bytes().decode()
    except OSError as error:
        raise UsageError(f"{file}: cannot be read ({error.strerror}).") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{file}: not UTF-8 text ({error.reason} at byte {error.start}). Convert it first.") from error


def _validated(
    kind: type[AnyOptions], values: Any, source: str, overrides: Sequence[str] = (), before: Any = None
) -> AnyOptions:
    """`values` as options; `overrides` are the dotted paths of what --set has put into the values `before`."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        without = _problems(kind, before) if overrides else []
        lines = [
            f"{_source_of(where, (where, line) in without, source, overrides)}: {line}"
            for where, line in _problems(kind, values)
        ]
        raise UsageError("\n".join(lines)) from error


def _problems(kind: type[Options], values: Any) -> list[tuple[str, str]]:
    """What is wrong with `values`: where, and in words. Of checks of several fields each message is one."""
    try:
        kind.model_validate(values)
    except ValidationError as error:
        return [
            (_where(details, values), line)
            for details in error.errors()
            for line in _explain(details, values, kind).split("\n")
        ]
    return []


def _source_of(where: str, is_of_file: bool, source: str, overrides: Sequence[str]) -> str:
    """What is to blame for an error: `source`, what --set has put in, or how the two go together."""
    if any(where == path or where.startswith(f"{path}.") or path == f"{where}.kind" for path in overrides):
        return "--set"
    beside = [path for path in overrides if not where or path.startswith(f"{where}.")]
    return f"{source} with --set {', '.join(beside)}" if beside and not is_of_file else source


def _where(error: Any, values: Any) -> str:
    """The dotted path of an error in `values` as the user wrote them: pydantic's has the kinds of groups in it too."""
    path, inner = [], values
    for number, part in enumerate(error["loc"], 1):
        is_there = part in inner if isinstance(inner, dict) else isinstance(inner, list) and isinstance(part, int)
        if is_there:
            inner = inner[part]
        if is_there or (number == len(error["loc"]) and error["type"] == "missing"):
            path.append(str(part))
    return ".".join(path)


def read_rule(text: str) -> AnyChunks:
    """The chunking rule that `text` (YAML) describes, or the kind of one; raises UsageError that names it."""
    values = parse_yaml(text, f"--rule {text}")
    try:
        rule: AnyChunks = TypeAdapter(AnyChunks).validate_python(
            {"kind": values} if isinstance(values, str) else values
        )
    except ValidationError as error:
        lines = (_explain(details, values) for details in error.errors())
        raise UsageError(f"--rule {text}: " + "\n".join(lines)) from error
    return rule


def parse_yaml(text: str, source: str) -> Any:
    """What `text` holds; raises UsageError, naming `source`, where it is not YAML."""
    try:
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError) as error:  # PyYAML's own dates and numbers raise the second
        problem: object = error
        if isinstance(error, yaml.MarkedYAMLError) and (mark := error.problem_mark) is not None:
            # without the text there, of which the error shows a part: a part of a key is not known as one
            problem = f"{error.problem}, line {mark.line + 1}, column {mark.column + 1}"
        raise UsageError(f"{source}: not YAML ({problem}).") from None


class _Loader(yaml.SafeLoader):
    """YAML 1.1 as PyYAML reads it, except that 1e-5 is a number, as everywhere else, and a key given twice an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key_node.value for key_node, _ in node.value if isinstance(key_node, yaml.ScalarNode)]
        if twice := [key for key in keys if keys.count(key) > 1]:
            raise yaml.constructor.ConstructorError(None, None, f"{twice[0]} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"),
    list("-+0123456789"),
)


def _put(values: dict[str, Any], path: str, value: Any, source: str) -> None:
    *parents, last = path.split(".")
    inner: Any = values
    for parent in parents:
        if not isinstance(inner, dict):
            inner = _item(inner, parent, source)
        else:
            if inner.get(parent) is None:
                inner[parent] = {}
            inner = inner[parent]
    if isinstance(inner, dict):
        inner[last] = value
    else:
        _item(inner, last, source)
        inner[int(last)] = value


def _item(inner: Any, key: str, source: str) -> Any:
    if not (isinstance(inner, list) and key.isascii() and key.isdigit() and int(key) < len(inner)):
        raise UsageError(f"{source}: there is no {key!r} to set there.")
    return inner[int(key)]


def _fields_beside(kind: Any, path: Sequence[int | str]) -> list[str]:
    """The names of the fields of the group of options in which the last part of `path` was looked for."""
    kinds = [kind]
    for part in path[:-1]:
        inner = [
            group.model_fields[part].annotation for group in kinds if str(part) in getattr(group, "model_fields", {})
        ]
        kinds = [
            leaf for annotation in inner for leaf in _models_in(annotation)
        ] or kinds  # a number, a key or a tag stays within
        tagged = [group for group in kinds if part in get_args(group.model_fields.get("kind", _NO_KIND).annotation)]
        kinds = tagged or kinds
    return [name for group in kinds for name in getattr(group, "model_fields", {})]


def _models_in(annotation: Any) -> list[Any]:
    """Every group of options that an annotation such as `dict[str, A | B] | None` names."""
    if hasattr(annotation, "model_fields"):
        return [annotation]
    return [leaf for argument in get_args(annotation) for leaf in _models_in(argument)]


def _explain(error: Any, values: Any, kind: Any = None) -> str:
    """One of pydantic's errors in `values` in words: the field, what is wrong, the value; `kind` is their model."""
    where = f"{path}: " if (path := _where(error, values)) else ""
    if error["type"] == "extra_forbidden":
        name = str(error["loc"][-1])
        if name in RENAMED_FIELDS:
            return f"{where}this field is called {RENAMED_FIELDS[name]} since version 0.1.0."
        near = difflib.get_close_matches(name, _fields_beside(kind, error["loc"]), n=1)
        hint = f" Did you mean {near[0]}?" if near else " `ctd config --reference` describes every field."
        return f"{where}there is no such field.{hint}"
    if error["type"] in {"literal_error", "union_tag_invalid"}:
        allowed = re.findall(r"'([^']*)'", str(error["ctx"].get("expected") or error["ctx"].get("expected_tags")))
        given = error["ctx"].get("tag") or error["input"]
        if str(given) in RENAMED_KINDS:
            return f"{where}the kind {given} is called {RENAMED_KINDS[given]} since version 0.1.0."
        if near := difflib.get_close_matches(str(given), allowed, n=1):
            return f"{where}{error['msg']} (it is {redact(repr(given))}). Did you mean {near[0]}?"
    if error["type"] == "union_tag_not_found":
        given = error["input"]
        is_group = isinstance(given, dict)
        shown = f"its fields are {', '.join(map(str, given))}" if is_group else f"it is {redact(repr(given))}"
        return f"{where}give its kind ({shown})."
    given = "" if error["type"] in {"missing", "value_error"} else f" (it is {redact(repr(error['input']))})"
    return f"{where}{error['msg'].removeprefix('Value error, ')}{given}."
