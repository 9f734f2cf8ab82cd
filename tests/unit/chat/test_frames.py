"""What a judge reads: problem and steps in its frame, in its own template and vocabulary."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from pipeline.chat.files import refuse_pooling
from pipeline.chat.frames import FramedModel, messages, split_text
from pipeline.chat.model import ChatModel
from pipeline.errors import ConfigurationError
from pipeline.policies.requests import Ask, Frame, Layout
from pipeline.policies.reward import FORMS, RsdSpec
from pipeline.samples import ModelRole

DEMO = Path(__file__).parents[3] / "examples" / "models" / "demo-small"
STEPS = ["First add 3 and 4.", "So the result is 7."]


@pytest.fixture(scope="module")
def chat() -> ChatModel:
    return ChatModel.load(DEMO)


def shown(chat: ChatModel, ask: Ask, problem: str = "What is 3+4?", steps: list[str] | None = None) -> str:
    ids = FramedModel(chat).token_ids(ask, problem, steps or STEPS)
    return chat.tokenizer.decode(ids, skip_special_tokens=False)


def asked(frame: str) -> Ask:
    return RsdSpec.model_validate({"frame": frame}).ask("reward")


def test_the_steps_are_what_stands_between_breaks() -> None:
    assert split_text("<think>\na\nb\n\nc. \n \n\nd", think_start="<think>") == ["a\nb", "c.", "d"]
    assert split_text("a\r\n\r\nb\n\n") == ["a", "b"]
    assert split_text(" \n\n<think>\n", think_start="<think>") == []
    assert split_text("<think>a") == ["<think>a"]


def test_a_message_shows_problem_steps_and_question() -> None:
    message, earlier = messages(asked("chat"), "What is {step}?", STEPS)
    assert earlier == []
    assert message.startswith("Problem:\nWhat is {step}?\n\nSteps of a solution:\n\nFirst add 3 and 4.\n\nSo the")
    assert message.endswith("is 7.\n\nIs the last of these steps correct, and does it follow from the problem and the "
                            "steps before it? Reply with one word, Yes or No.")  # fmt: skip


def test_turns_answer_each_earlier_step_as_a_good_one() -> None:
    message, earlier = messages(asked("turns"), "What is 3+4?", STEPS)
    assert message == "So the result is 7."
    assert [(turn["role"], turn["content"]) for turn in earlier] == [
        ("user", "What is 3+4? First add 3 and 4."), ("assistant", "+"),
    ]  # fmt: skip
    assert messages(asked("turns"), "What is 3+4?", STEPS[:1]) == ("What is 3+4? First add 3 and 4.", [])


def test_plain_text_ends_with_the_tag_of_the_last_step(chat: ChatModel) -> None:
    text = shown(chat, asked("math-psa"))
    assert text.endswith("What is 3+4? First add 3 and 4. \n\n\n\n\n So the result is 7. \n\n\n\n\n")
    assert FORMS["math-shepherd"].frame.step == "{step} ки"


def test_a_template_that_opens_the_thoughts_has_them_closed_at_once(chat: ChatModel) -> None:
    assert shown(chat, asked("chat")).endswith("<|assistant|><think>\n\n</think>\n\n")


def test_text_of_control_tokens_in_a_step_stays_text(chat: ChatModel) -> None:
    for frame in ("chat", "turns", "math-psa"):
        ids = FramedModel(chat).token_ids(asked(frame), "What?", ["Done.<|end|>", "More.<|end|>"])
        plain = FramedModel(chat).token_ids(asked(frame), "What?", ["Done.", "More."])
        end = chat.tokenizer.token_to_id("<|end|>")
        assert end is not None
        assert ids.count(end) == plain.count(end)


def test_a_frame_shows_problem_and_step() -> None:
    with pytest.raises(ValueError, match=r"shows no \{problem\}"):
        Frame(layout=Layout.TEXT, before="", step="{step}")
    with pytest.raises(ValueError, match="is no question to a judge"):
        messages(Ask(role=ModelRole.LARGE, purpose="rate"), "", STEPS)


def test_a_judge_may_lack_a_chat_template_and_no_other_model(tmp_path: Path) -> None:
    folder = tmp_path / "judge"
    shutil.copytree(DEMO, folder)
    (folder / "chat_template.jinja").unlink()
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": None}))
    with pytest.raises(ConfigurationError, match="it has no chat template"):
        ChatModel.load(folder)
    judge = ChatModel.load(folder, may_lack_template=True)
    assert shown(judge, asked("math-psa")).startswith("What is 3+4? First")


@pytest.mark.parametrize("name", ["Qwen2ForProcessRewardModel", "LlamaForSequenceClassification"])
def test_a_reward_model_with_a_head_is_refused_as_a_judge(tmp_path: Path, name: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": [name]}))
    with pytest.raises(ConfigurationError, match=rf"a head of its own \({name}\), which gives numbers and no tokens"):
        refuse_pooling("prm", tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    refuse_pooling("prm", tmp_path)
