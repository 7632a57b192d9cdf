"""Settings and prompt templates: precedence, and errors a user can act on."""

import subprocess
import sys
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from videonarrator.config import (
    MISSING,
    CutConfig,
    config_path,
    load_config,
    load_template,
    save_config,
    save_template,
)
from videonarrator.prompt import Template
from videonarrator.schema import NarratorError


@dataclass(frozen=True)
class Optimizer:
    rate: float = 1e-3
    warmup_steps: int = 10


@dataclass(frozen=True)
class Example:
    data: str = MISSING
    output: str = MISSING
    note: str | None = None
    packed: bool = False
    stops: list[int] = field(default_factory=lambda: [1])
    optimizer: Optimizer = field(default_factory=Optimizer)
    second: Optimizer | None = None


GIVEN = ["data=in", "output=out"]


def write(folder: Path, text: str) -> Path:
    path = folder / "settings.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def message(schema, path=None, overrides=()) -> str:
    with pytest.raises(NarratorError) as error:
        load_config(schema, path, overrides)
    return str(error.value)


def test_overrides_come_before_yaml_and_yaml_before_defaults(tmp_path):
    path = write(tmp_path, "data: d\noutput: o\noptimizer:\n  rate: 1e-4\npacked: true\n")
    config = load_config(Example, path, ["optimizer.warmup_steps=3", "output=x", "output=y", "stops=[4, 5]"])
    assert config == Example("d", "y", None, True, [4, 5], Optimizer(1e-4, 3))
    assert load_config(CutConfig) == CutConfig()
    assert load_config(CutConfig, write(tmp_path, "")) == CutConfig()


@pytest.mark.parametrize("text", ["1e-4", "1E-4", "0.0001", "1.0e-4"])
def test_scientific_notation_is_a_number(tmp_path, text):
    assert load_config(CutConfig, write(tmp_path, f"threshold: {text}")).threshold == 1e-4
    assert load_config(CutConfig, None, [f"threshold={text}"]).threshold == 1e-4


def test_values_of_text_settings_stay_as_typed():
    typed = load_config(Example, None, ["data=007", "output=on", "note=a=b: c"])
    assert (typed.data, typed.output, typed.note) == ("007", "on", "a=b: c")
    assert load_config(Example, None, [*GIVEN, "note=null"]).note is None


def test_a_group_that_is_null_by_default_can_be_set():
    assert load_config(Example, None, [*GIVEN, "second.rate=2"]).second == Optimizer(2.0)


def test_one_value_can_refer_to_another(tmp_path):
    path = write(tmp_path, "data: base\noutput: ${data}/out\n")
    assert load_config(Example, path).output == "base/out"
    path = write(tmp_path, "data: base\noutput: ${dta}/out\n")
    assert "dta" in message(Example, path)


def test_a_typo_names_the_key_and_the_nearest_right_one(tmp_path):
    path = write(tmp_path, "min_secnds: 2")
    assert message(CutConfig, path).startswith(
        f"{path}: unknown setting min_secnds (did you mean min_seconds?); there are detector, threshold,"
    )
    text = message(Example, None, ["optimizer.warmup=3"])
    assert "unknown setting optimizer.warmup (did you mean optimizer.warmup_steps?)" in text
    assert "did you mean optimizer.rate?" in message(Example, None, ["rate=3"])
    assert "did you mean data?" in message(Example, None, ["optimizer.data=3"])
    assert "did you mean" not in message(Example, None, ["zzz=3"])
    assert "did you mean" not in message(Example, None, ["optimizer.zzz=3"])


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("optimizer.rate=fast", "optimizer.rate is 'fast', expected a number"),
        ("optimizer.warmup_steps=1.5", "optimizer.warmup_steps is 1.5, expected a whole number"),
        ("packed=perhaps", "packed is 'perhaps', expected true or false"),
        ("stops=[1, a]", "stops is [1, 'a'], expected a list (a whole number)"),
        ("stops=3", "stops is 3, expected a list (a whole number)"),
        ("optimizer=3", "optimizer is 3, expected a group of settings (rate, warmup_steps)"),
        ("optimizer.rate.x=3", "optimizer.rate is {'x': 3}, expected a number"),
        ("optimizer.rate=", "optimizer.rate is None, expected a number"),
    ],
)
def test_a_wrong_type_names_key_value_and_expected_type(override, expected):
    assert expected in message(Example, None, [*GIVEN, override])


def test_a_choice_and_an_optional_number_say_what_they_take():
    assert "detector is 'adaptve', expected one of adaptive, content" in message(
        CutConfig, None, ["detector=adaptve"]
    )
    assert "threshold is 'x', expected a number or null" in message(CutConfig, None, ["threshold=x"])


def test_yaml_does_not_turn_other_things_into_text(tmp_path):
    assert "data is False, expected text; put it in quotes" in message(Example, write(tmp_path, "data: no"))


def test_cut_limits_must_be_in_order():
    assert "min_seconds=20 and max_seconds=15" in message(CutConfig, None, ["min_seconds=20"])


@pytest.mark.parametrize("text", ["- a\n", "a: [", "data: a\ndata: b\n", "data: ${"])
def test_a_file_that_holds_no_settings(tmp_path, text):
    assert str(tmp_path / "settings.yaml") in message(Example, write(tmp_path, text))


@pytest.mark.parametrize("override", ["data", "=3", "data=[", "data=${"])
def test_an_override_that_is_none(override):
    assert override in message(Example, None, [override])


def test_all_missing_values_are_named_together():
    text = message(Example, None, ["packed=true"])
    assert "no value for data, output;" in text and "data=... output=..." in text


def test_config_path_finds_files_in_the_current_folder_and_in_configs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    inside = config_path("prompts/zh.yaml")
    assert inside.is_file() and config_path("prompts/zh") == config_path("configs/prompts/zh.yaml") == inside
    Path("own.yaml").write_text("")
    assert config_path("own.yaml") == Path("own.yaml")
    with pytest.raises(NarratorError, match=r"no file prompts/hz .*configs/ has .*prompts/zh\.yaml") as error:
        config_path("prompts/hz")
    assert "accelerate/" not in str(error.value)  # which holds no settings of ours
    with pytest.raises(NarratorError, match="no file"):
        config_path(tmp_path / "nothing.yaml")


def test_saved_settings_load_equal(tmp_path):
    config = load_config(Example, None, [*GIVEN, "note=观看", "second.rate=1e-5", "stops=[]"])
    save_config(config, tmp_path / "new" / "config.yaml")
    assert load_config(Example, tmp_path / "new" / "config.yaml") == config
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["config.yaml"]


def test_writing_where_one_cannot_is_one_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(NarratorError, match="cannot write"):
        save_config(CutConfig(), tmp_path / "file" / "config.yaml")


# -------------------- templates


@pytest.mark.parametrize("name", ["zh", "prompts/zh", "configs/prompts/zh_nolabel.yaml"])
def test_templates_load_by_name_and_round_trip(tmp_path, name):
    template = load_template(name)
    assert template.instruction.endswith("\n\n") and template.narration == "{i}."
    save_template(template, tmp_path / "template.yaml")
    assert load_template(tmp_path / "template.yaml") == template


@given(st.text(st.characters(exclude_categories=["Cs"])).filter(lambda text: "{" not in text))
def test_any_wording_round_trips(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("template") / "template.yaml"
    template = replace(load_template("zh"), instruction=text, scene_end=text)
    save_template(template, path)
    assert load_template(path) == template


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            {"header": "Clip {n}:\n"},
            "header must hold {i} and {n} (which may be left out) once and no other braces: 'Clip {n}",
        ),
        ({"header": "Clip {i}/{n}/{n}:\n"}, "header must hold"),
        (
            {"product": "{name}\n"},
            "product must hold {name} and {info} once and no other braces, or be empty",
        ),
        ({"length": "{low!r}-{high}"}, "length must hold"),
        ({"length": "{low}-{high} {{}}"}, "length must hold"),
        ({"length": "{low}-{high"}, "expected {low} and {high}"),
        ({"narration": "{}."}, "narration must hold {i}"),
        ({"scene": "Scene {i}: "}, "scene is taken as it stands, it cannot hold {i}"),
        ({"language": "fr"}, "language 'fr' is unknown; there are zh, en"),
        ({"language": "en", "narration": "Story {i}: "}, "ends in a blank: leave it out, in English"),
    ],
)
def test_a_template_with_wrong_placeholders(tmp_path, change, expected):
    save_template(replace(load_template("zh"), **change), tmp_path / "template.yaml")
    with pytest.raises(NarratorError) as error:
        load_template(tmp_path / "template.yaml")
    assert expected in str(error.value) and "template.yaml" in str(error.value)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("lable: x", "unknown field 'lable' (did you mean label?)"),
        ("label:", "label is None, expected text; put it in quotes"),
        ("label: no", "label is False"),
        ("", "no field label"),
        ("label: [", "is not valid YAML"),
    ],
)
def test_a_template_with_wrong_fields(tmp_path, line, expected):
    save_template(load_template("zh"), tmp_path / "whole.yaml")
    lines = (tmp_path / "whole.yaml").read_text(encoding="utf-8").splitlines()
    kept = [text for text in lines if not text.startswith('"label"')]
    path = write(tmp_path, "\n".join([*kept, line]))
    with pytest.raises(NarratorError) as error:
        load_template(path)
    assert expected in str(error.value)


def test_something_else_is_no_template(tmp_path):
    with pytest.raises(NarratorError, match="is not a prompt template"):
        load_template(write(tmp_path, "- a"))
    with pytest.raises(NarratorError, match=r"did you mean prompts/zh_nolabel\.yaml"):
        load_template("zh_nolable")


def test_every_packaged_template_is_valid():
    for path in config_path("prompts/zh").parent.glob("*.yaml"):
        assert len(fields(load_template(path.stem))) == len(fields(Template))


def test_settings_need_no_torch():
    code = "import sys, videonarrator.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
