"""The prompts made without transformers are the ones that transformers makes (its import takes seconds)."""

from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from pipeline.chat.model import ChatModel

MODELS = Path(__file__).parents[2] / "examples" / "models"


@pytest.mark.parametrize("name", ["demo-small", "demo-large"])
@pytest.mark.parametrize(
    "message", ["Start with 86.\nFirst add 1.\n\nWhat is the result?", "a   b", "é € 😀\n", " {{ x }} "]
)
def test_prompt_ids_are_those_of_transformers(name: str, message: str) -> None:
    model = ChatModel.load(MODELS / name)
    # Not AutoTokenizer: for some model types it puts its own word splitting in place of the one in tokenizer.json.
    theirs = PreTrainedTokenizerFast.from_pretrained(str(MODELS / name), local_files_only=True)
    expected = theirs.apply_chat_template([{"role": "user", "content": message}], add_generation_prompt=True)
    assert model.prompt_ids(message) == list(expected["input_ids"])
    assert model.eos_ids == (theirs.eos_token_id,)
    assert model.tokenizer.decode(model.prompt_ids(message), skip_special_tokens=False) == theirs.apply_chat_template(
        [{"role": "user", "content": message}], add_generation_prompt=True, tokenize=False
    )
