"""The demo pair's problems, traces and tokenizer keep what the example promises."""

import dataclasses
import json
import random
import re
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from demo_pair.evaluation import LONG_TAKEOVER, SHORT_TAKEOVER, cue_limit, find_takeover
from demo_pair.problems import Operation, Problem, Split, draw_problem, draw_problems
from demo_pair.tokenizer import render_prompt, train_tokenizer
from demo_pair.traces import (
    INSTRUCTION,
    LARGE_STYLE,
    SMALL_STYLE,
    TraceStyle,
    write_trace,
)
from demo_pair.training import SMALL, train_model
from transformers import AutoTokenizer, Qwen2Tokenizer

EXAMPLES = Path(__file__).parents[3] / "examples"
MODEL_NAMES = ("demo-small", "demo-large")
CLEAN_STYLE = TraceStyle(
    guess_hard=0,
    guess_easy=0,
    guess_wrong=0,
    doubt_right_guess=0,
    correction_wrong=0,
    doubt_wrong_correction=0,
    verify_doubt=0,
    check=0,
    slips=(1,),
    learn_slips=True,
)


@pytest.fixture(scope="module")
def tokenizer() -> Qwen2Tokenizer:
    return AutoTokenizer.from_pretrained(EXAMPLES / "models" / "demo-small")


@pytest.fixture(scope="module")
def shipped_rows() -> list[dict[str, object]]:
    return [json.loads(line) for line in (EXAMPLES / "problems.jsonl").read_text().splitlines()]


def parse_problem(text: str) -> Problem:
    start = int(re.findall(r"Start with (\d+)\.", text)[0])
    operations = tuple(
        Operation(sign=1 if verb == "add" else -1, operand=int(operand))
        for verb, operand in re.findall(r"(add|subtract) (\d)\.", text)
    )
    return Problem(start=start, operations=operations)


def test_drawn_problem_is_always_of_the_split_asked_for() -> None:
    rng = random.Random(5)
    for split in Split:
        assert {draw_problem(rng, split).split for _ in range(300)} == {split}


def test_shipped_problems_are_held_out_and_distinct(
    shipped_rows: list[dict[str, object]],
) -> None:
    problems = [parse_problem(str(row["problem"])) for row in shipped_rows]
    assert len(set(problems)) == len(shipped_rows) >= 200
    assert {problem.split for problem in problems} == {Split.HELD_OUT}
    for problem, row in zip(problems, shipped_rows, strict=True):
        assert (problem.text, str(problem.answer), problem.level) == (
            row["problem"],
            row["answer"],
            row["level"],
        )


def test_no_held_out_problem_is_met_in_a_long_training_draw(
    shipped_rows: list[dict[str, object]],
) -> None:
    shipped = {parse_problem(str(row["problem"])) for row in shipped_rows}
    assert shipped.isdisjoint(draw_problems(1, Split.TRAIN, 5000))


def test_drawing_is_repeatable() -> None:
    assert draw_problems(3, Split.VALIDATION, 20) == draw_problems(3, Split.VALIDATION, 20)


def test_answer_is_the_running_total_modulo_100() -> None:
    problem = parse_problem("Start with 97. First add 5. Second subtract 4. Third add 1. Fourth add 9.")
    assert problem.answer == 8


@pytest.mark.parametrize("style", [LARGE_STYLE, CLEAN_STYLE])
def test_trace_without_lasting_slips_ends_with_the_right_answer(
    style: TraceStyle,
) -> None:
    rng = random.Random(2)
    for _ in range(200):
        problem = draw_problem(rng, Split.TRAIN)
        text = write_trace(problem, style, rng).text
        assert text.endswith(f"</think>\n\nThe result is \\boxed{{{problem.answer}}}.")


def test_plain_steps_hold_no_cue() -> None:
    rng = random.Random(2)
    for _ in range(200):
        text = write_trace(draw_problem(rng, Split.TRAIN), CLEAN_STYLE, rng).text
        assert find_takeover(["\n\n", *re.findall(r"\n\n|\w+|\W", text)]) is None


def test_large_model_never_learns_a_slip() -> None:
    rng = random.Random(4)
    slips = re.compile(r"(\d+)([+-])(\d)=(\d+)")
    for _ in range(200):
        trace = write_trace(draw_problem(rng, Split.TRAIN), LARGE_STYLE, rng)
        for found in slips.finditer(trace.text):
            value, sign, operand, result = found.groups()
            if (int(value) + int(sign + operand)) % 100 != int(result):
                assert any(start < found.end() <= end for start, end in trace.without_loss)


@pytest.mark.parametrize(
    "text",
    [
        "Plain words.\n\nMore, 123 of them.",
        "żółw 日本語 🐢\n\n\t  <think>x</think>",
        "\\boxed{7}",
    ],
)
def test_tokenizer_returns_any_text(tokenizer: Qwen2Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_tokenizer_merges_the_break_and_keeps_digits_single(
    tokenizer: Qwen2Tokenizer,
) -> None:
    tokens = [tokenizer.decode([token]) for token in tokenizer.encode("53+4=57.\n\n", add_special_tokens=False)]
    assert tokens == ["5", "3", "+", "4", "=", "5", "7", ".\n\n"]


def test_think_tags_are_single_tokens_that_survive_decoding(
    tokenizer: Qwen2Tokenizer,
) -> None:
    tokens = tokenizer.encode("<think>a</think>", add_special_tokens=False)
    assert len(tokens) == 3
    assert tokenizer.decode(tokens, skip_special_tokens=True) == "<think>a</think>"


def test_prompt_ends_with_the_opening_think_tag(tokenizer: Qwen2Tokenizer) -> None:
    prompt = render_prompt(tokenizer, "Start with 1.")
    assert prompt == f"<|user|>Start with 1.\n\n{INSTRUCTION}<|end|><|assistant|><think>\n"


def test_both_models_share_one_tokenizer() -> None:
    first, second = ((EXAMPLES / "models" / name / "tokenizer.json").read_bytes() for name in MODEL_NAMES)
    assert first == second


def test_models_fit_into_ten_megabytes() -> None:
    files = [path for name in MODEL_NAMES for path in (EXAMPLES / "models" / name).iterdir()]
    assert sum(path.stat().st_size for path in files) < 10_000_000


def test_takeover_starts_at_the_earliest_break_whose_window_holds_a_cue() -> None:
    pieces = [".\n\n", *["a"] * 5, ".\n\n", *["b"] * 5, ".\n\n", "Hold", " on", ","]
    assert find_takeover(pieces) == 1
    assert find_takeover([".\n\n", *["a"] * 20, *pieces[6:]]) == 22


@pytest.mark.parametrize("pieces", [["\n", "Wait"], [".\n\n", "a", "waiter"], ["</think>", "\n\n", "Wait"]])
def test_no_takeover_without_a_break_a_whole_word_or_the_think_phase(
    pieces: list[str],
) -> None:
    assert find_takeover(pieces) is None


def test_verify_cue_gives_the_long_takeover() -> None:
    assert cue_limit(["Let", " me", " check"]) == LONG_TAKEOVER
    assert cue_limit(["Wait", ", ", "let me check"]) == SHORT_TAKEOVER


def test_small_style_is_the_only_one_that_learns_slips() -> None:
    assert SMALL_STYLE.learn_slips
    assert not LARGE_STYLE.learn_slips


def test_training_is_repeatable(tmp_path: Path) -> None:
    recipe = dataclasses.replace(SMALL, num_steps=2, tokens_per_step=1024)
    for folder in ("first", "second"):
        train_model(recipe, train_tokenizer(seed=1), tmp_path / folder)
    first, second = ((tmp_path / folder / "model.safetensors").read_bytes() for folder in ("first", "second"))
    assert first == second


def test_tokenizer_training_gives_the_shipped_tokenizer(
    tokenizer: Qwen2Tokenizer,
) -> None:
    assert train_tokenizer(seed=1).get_vocab() == tokenizer.get_vocab()
