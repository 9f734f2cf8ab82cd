import pytest
from pydantic import TypeAdapter, ValidationError

from pipeline.errors import ConfigurationError
from pipeline.policies import (
    LargeOnlySpec,
    PolicySpec,
    SmallOnlySpec,
    SpeculativeThinkingSpec,
    make_policy,
    parse_policy,
    policy_names,
)

ADAPTER: TypeAdapter[PolicySpec] = TypeAdapter(PolicySpec)


def test_every_name_is_parsed_made_and_stored() -> None:
    assert policy_names() == ("speculative-thinking:improved", "small-only", "large-only")
    for name in policy_names():
        spec = parse_policy(name)
        assert name.startswith(spec.name)
        assert make_policy(spec).roles
        assert ADAPTER.validate_json(ADAPTER.dump_json(spec)) == spec


def test_a_name_without_preset_means_its_default() -> None:
    assert parse_policy("speculative-thinking") == SpeculativeThinkingSpec()
    assert parse_policy("small-only") == SmallOnlySpec()
    assert parse_policy("large-only") == LargeOnlySpec()


@pytest.mark.parametrize("text", ["", "speculative-thinking:paper", "small-only:improved", "none", "improved"])
def test_an_unknown_policy_is_refused_with_the_choices(text: str) -> None:
    with pytest.raises(
        ConfigurationError, match="choose one of: speculative-thinking:improved, small-only, large-only"
    ):
        parse_policy(text)


def test_a_stored_spec_spells_out_every_value() -> None:
    dumped = ADAPTER.dump_python(parse_policy("speculative-thinking"), mode="json")
    assert dumped == {
        "name": "speculative-thinking",
        "preset": "improved",
        "cues": {
            "verify": ["verify", "think again", "recap", "check"],
            "negative": ["wait", "alternatively", "hold on", "another"],
            "positive": ["yeah", "yes", "final answer", "confident"],
        },
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
        "handback": "sentence",
        "handback_from": 0.5,
        "repetition": "finish",
        "loop_repeats": 4,
        "loop_min_tokens": 256,
        "loop_max_block_tokens": 512,
    }


@pytest.mark.parametrize(
    "values", [{"n1": 0}, {"n1": 126}, {"n3": 201}, {"threshold": 31}, {"n4": 1}, {"preset": "paper"}]
)
def test_a_spec_that_makes_no_sense_is_refused(values: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        ADAPTER.validate_python({"name": "speculative-thinking", **values})
