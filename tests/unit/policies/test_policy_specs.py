import math

import pytest
from pydantic import TypeAdapter, ValidationError

from pipeline.errors import ConfigurationError
from pipeline.policies import AnyPolicySpec, PolicySpec, parse_policy, policy_names
from pipeline.policies.baselines import LargeOnlySpec, SmallOnlySpec
from pipeline.policies.first_steps import FirstStepsSpec
from pipeline.policies.glimpse import GlimpseSpec
from pipeline.policies.mentor import MentorSpec
from pipeline.policies.random_delegation import RandomDelegationSpec
from pipeline.policies.reading.cues import CueLists
from pipeline.policies.redo import RedoSpec, TrigSpec
from pipeline.policies.relay import RelaySpec
from pipeline.policies.reward import RsdSpec, SpecSearchSpec
from pipeline.policies.specreason import DoubtedSpec, RatedSpec
from pipeline.policies.speculative_thinking.improved import ImprovedInstructSpec, SpeculativeThinkingSpec
from pipeline.policies.speculative_thinking.paper import PaperInstructSpec, PaperSpec
from pipeline.policies.speculative_thinking.released_code import CodeInstructSpec, CodeSpec

ADAPTER: TypeAdapter[PolicySpec] = TypeAdapter(AnyPolicySpec)
SPECS = {
    "speculative-thinking:improved": SpeculativeThinkingSpec(),
    "speculative-thinking:paper": PaperSpec(),
    "speculative-thinking:code": CodeSpec(),
    "speculative-thinking:improved-instruct": ImprovedInstructSpec(),
    "speculative-thinking:paper-instruct": PaperInstructSpec(),
    "speculative-thinking:code-instruct": CodeInstructSpec(),
    "small-only": SmallOnlySpec(),
    "large-only": LargeOnlySpec(),
    "random": RandomDelegationSpec(),
    "glimpse": GlimpseSpec(),
    "first-steps": FirstStepsSpec(),
    "redo": RedoSpec(),
    "redo:trig": TrigSpec(),
    "relay": RelaySpec(switch_cues=("so",)),
    "specreason:rating": RatedSpec(),
    "specreason:doubt": DoubtedSpec(),
    "mentor": MentorSpec(),
    "rsd": RsdSpec(),
    "specsearch": SpecSearchSpec(),
}
NEEDED = {"relay": {"switch_cues": ["so"]}}
"""Values that a policy has no default for."""


def test_every_name_is_parsed_made_and_stored() -> None:
    assert policy_names() == tuple(SPECS)
    for name, expected in SPECS.items():
        spec = parse_policy(name, NEEDED.get(name))
        assert spec == expected
        assert spec.build().roles
        stored = ADAPTER.validate_json(ADAPTER.dump_json(spec))
        assert (stored, type(stored)) == (spec, type(spec))


def test_a_name_without_preset_means_its_default() -> None:
    assert parse_policy("speculative-thinking") == SpeculativeThinkingSpec()


@pytest.mark.parametrize("text", ["", "speculative-thinking:Paper", "small-only:improved", "none", "improved"])
def test_an_unknown_policy_is_refused_with_the_choices(text: str) -> None:
    with pytest.raises(ConfigurationError, match=f"choose one of: {', '.join(SPECS)}"):
        parse_policy(text)


def test_single_values_can_be_set_from_text() -> None:
    assert parse_policy("speculative-thinking:code", {"n1": "30", "choose_large": "false"}) == CodeSpec(
        n1=30, choose_large=False
    )
    assert parse_policy("random", {"rate": "0.5"}) == RandomDelegationSpec(rate=0.5)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"n4": "1"}, "policy speculative-thinking:paper has no n4; it has: cues, n1"),
        ({"preset": "code"}, "has no preset"),
        ({"n1": "many"}, "n1: Input should be a valid integer"),
        ({"n1": "126"}, "its values: Value error, n2 must be at least n1"),
    ],
)
def test_values_that_make_no_sense_are_refused(values: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        parse_policy("speculative-thinking:paper", values)


CUES = {
    "verify": ["verify", "think again", "recap", "check"],
    "negative": ["wait", "alternatively", "hold on", "another"],
    "positive": ["yeah", "yes", "final answer", "confident"],
}


@pytest.mark.parametrize("number", ["inf", "-inf", "nan"])
@pytest.mark.parametrize("name", SPECS)
def test_a_number_that_cannot_be_stored_is_refused(name: str, number: str) -> None:
    for field in (field for field, info in type(SPECS[name]).model_fields.items() if info.annotation is float):
        with pytest.raises(ConfigurationError, match=f"{field}: Input should be"):
            parse_policy(name, {**NEEDED.get(name, {}), field: number})


def test_the_preset_code_is_stored_with_every_value() -> None:
    assert ADAPTER.dump_python(parse_policy("speculative-thinking:code"), mode="json") == {
        "name": "speculative-thinking",
        "preset": "code",
        "cues": CUES,
        "n1": 20,
        "n2": 125,
        "n3": 125,
        "n3_step": 25,
        "n3_max": 200,
        "threshold": 15,
        "threshold_step": 5,
        "threshold_max": 30,
        "inserted_sentence": "Let me check whether there are some wrong steps:",
        "opening_tokens": 0,
        "every_break": False,
        "choose_large": True,
        "draft_tokens": 1024,
        "break_within": 5,
    }


def test_the_preset_paper_is_stored_with_every_value() -> None:
    assert ADAPTER.dump_python(parse_policy("speculative-thinking:paper"), mode="json") == {
        "name": "speculative-thinking",
        "preset": "paper",
        "cues": CUES,
        "window_tokens": 20,
        "n1": 20,
        "n2": 125,
        "n3": 125,
        "n3_step": 0,
        "n3_max": 125,
        "threshold": 15,
        "threshold_step": 0,
        "threshold_max": 15,
        "inserted_sentence": "Let us check whether there are some wrong steps.",
        "opening_tokens": 0,
        "every_break": False,
    }


def test_the_preset_improved_is_stored_with_every_value() -> None:
    dumped = ADAPTER.dump_python(parse_policy("speculative-thinking"), mode="json")
    assert dumped == {
        "name": "speculative-thinking",
        "preset": "improved",
        "cues": CueLists.model_validate("en+zh").model_dump(mode="json"),
        "window_tokens": 20,
        "n1": 20,
        "n2": 125,
        "n3": 125,
        "n3_step": 25,
        "n3_max": 200,
        "threshold": 15,
        "threshold_step": 5,
        "threshold_max": 30,
        "inserted_sentence": "Let me check whether there are some wrong steps:",
        "opening_tokens": 0,
        "every_break": False,
        "takeover_from": "earliest",
        "every_break_of": "text",
        "handback": "sentence",
        "handback_from": 0.5,
        "repetition": "finish",
        "loop_repeats": 4,
        "loop_min_tokens": 256,
        "loop_max_block_tokens": 512,
    }


@pytest.mark.parametrize(
    "values",
    [
        {"preset": "improved", "n1": 0},
        {"preset": "improved", "n1": 126},
        {"preset": "paper", "n1": 126},
        {"preset": "code", "n3": 201},
        {"preset": "paper", "threshold": 31},
        {"preset": "code", "opening_tokens": -1},
        {"preset": "code", "n4": 1},
        {"preset": "code", "window_tokens": 20},
        {"preset": "paper", "choose_large": True},
        {"preset": "Paper"},
        {},
        {"name": "random", "rate": 1.5},
        {"name": "random", "preset": "paper"},
        {"name": "random", "tokens": math.inf},
        {"name": "glimpse", "threshold": math.inf},
        {"name": "redo", "confident_below_perplexity": math.inf},
        {"name": "none"},
    ],
)
def test_a_spec_that_makes_no_sense_is_refused(values: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        ADAPTER.validate_python({"name": "speculative-thinking", **values})


@pytest.mark.parametrize("preset", ["improved", "paper", "code"])
def test_a_preset_for_a_small_model_that_does_not_reason_differs_in_opening_and_breaks_alone(preset: str) -> None:
    usual = parse_policy(f"speculative-thinking:{preset}").model_dump()
    instruct = parse_policy(f"speculative-thinking:{preset}-instruct").model_dump()
    differing = {key for key, value in instruct.items() if usual[key] != value}
    assert differing == {"preset", "opening_tokens", "every_break"} | ({"every_break_of"} & usual.keys())
    assert (instruct["opening_tokens"], instruct["every_break"]) == (100, True)


def test_cues_can_be_set_by_the_name_of_their_lists() -> None:
    spec = parse_policy("speculative-thinking:paper", {"cues": "zh"})
    assert spec == PaperSpec(cues=CueLists.model_validate("zh"))
    assert "等等" in ADAPTER.dump_python(spec, mode="json")["cues"]["negative"]
    with pytest.raises(ConfigurationError, match="cues: Value error, there are no cues 'klingon'; there are: en, wide"):
        parse_policy("speculative-thinking", {"cues": "klingon"})
